"""Classification of refused requests: the prompt is too long, the model unknown, a parameter not taken.

Services have no common code for these, so they are known by code or by message, as LiteLLM does it. The tables are
data: a new wording is a line here and a line in its test.
"""

import re
from collections.abc import Iterable

from llm_blender_ray.actors.engines.chat_completions import Failure

TOO_LONG_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length", "request_too_large"}
)
TOO_LONG = re.compile(
    "|".join(
        (
            # OpenAI, vLLM, SGLang, DeepSeek, Mistral, OpenRouter, Fireworks, xAI
            r"maximum (?:context|prompt|model|sequence) length",
            r"(?:longer|larger) than (?:the )?(?:model'?s? )?(?:maximum )?(?:model|context) (?:length|size)",
            r"too (?:long|large) (?:to fit into|for) (?:the )?(?:requested )?model",
            r"input length \(.*\) exceeds|input tokens exceed|context length is only",
            # llama.cpp, Ollama, LM Studio
            r"exceeds? (?:the )?(?:available |model'?s? |maximum |max )*context (?:size|length|limit|window)",
            r"context size has been exceeded|context (?:the )?overflows|exceeded max context length",
            r"input is too large to process",
            # TGI, Together
            r"`inputs`.* must (?:be <=|have less than)",
            # Anthropic, Bedrock, Fireworks
            r"prompt is too long|input is too long|too many (?:input )?tokens",
            r"input length and `max_tokens` exceed",
            # Gemini, Vertex
            r"input token count .*exceeds|input token count is .* but model only supports",
            # Alibaba, Moonshot, Z.ai, MiniMax, LiteLLM
            r"range of input length should be|exceeded model token limit|prompt exceeds max length",
            r"context window exceeds|ContextWindowExceeded|reduce the length of the (?:messages|prompt|input)",
        )
    ),
    re.IGNORECASE,
)
UNKNOWN_MODEL_CODES = frozenset({"model_not_found", "model_not_available", "invalid_model"})
UNKNOWN_MODEL = re.compile(
    r"invalid model|unknown model|model not (?:exist|found)|not a valid model|no such model|unsupported model"
    r"|model [^.]{0,200}(?:does not exist|not found|is not (?:available|supported|a valid))"
    r"|unable to access model|try pulling it",
    re.IGNORECASE,
)
UNSUPPORTED_PARAMETER = re.compile(
    r"unsupported|not supported|n't support|not support|unknown|unrecognized|unrecognised|unexpected|not permitted"
    r"|not allowed|not accepted|deprecated|only the default|cannot find field|cannot be specified|instead",
    re.IGNORECASE,
)
VALUE_REFUSED = re.compile(r"too (?:large|small|high|low)|at (?:most|least)|must be|exceed|between", re.IGNORECASE)


def is_too_long(failure: Failure) -> bool:
    """Whether prompt and answer exceed what the model takes."""
    return failure.code in TOO_LONG_CODES or bool(TOO_LONG.search(failure.message))


def is_unknown_model(failure: Failure) -> bool:
    """Whether the service has no such model."""
    return failure.code in UNKNOWN_MODEL_CODES or bool(UNKNOWN_MODEL.search(failure.message))


def unsupported_parameters(failure: Failure, names: Iterable[str]) -> set[str]:
    """Parameters of the request that the service rejects with any value."""
    if is_too_long(failure) or is_unknown_model(failure):
        return set()
    named = {
        name
        for name in names
        if name == failure.param or re.search(rf"(?<!\w){name}(?!\w)", failure.message.replace("body.", ""))
    }
    if UNSUPPORTED_PARAMETER.search(failure.message):
        return named
    return set() if VALUE_REFUSED.search(failure.message) else named & {failure.param, "max_tokens"}

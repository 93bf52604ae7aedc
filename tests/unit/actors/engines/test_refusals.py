# ruff: noqa: E501 (messages as they are sent)
"""Refusals as services word them, each copied from one."""

import pytest

from llm_blender_ray.actors.engines.chat_completions import Failure
from llm_blender_ray.actors.engines.refusals import is_too_long, is_unknown_model, unsupported_parameters

TOO_LONG = [
    # OpenAI
    "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens. Please reduce "
    "the length of the messages.",
    "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
    # vLLM
    "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (2000 in the messages, 100 "
    "in the completion). Please reduce the length of the messages or completion.",
    "The decoder prompt (length 5000) is longer than the maximum model length of 2048. Make sure that `max_model_len` "
    "is no smaller than the number of text tokens.",
    "The prompt (total length 5000) is too long to fit into the model (context length 2048).",
    "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 2048 tokens "
    "and your request has 100 input tokens (5000 > 2048 - 100).",
    "You passed 5000 input tokens and requested 100 output tokens. However, the model's context length is only 2048.",
    # SGLang
    "The input (5000 tokens) is longer than the model's context length (2048 tokens).",
    "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested a total of 2100.",
    "Input length (5000 tokens) exceeds the maximum allowed length (2042 tokens). Use a shorter input.",
    # llama.cpp
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "request (5000 tokens) exceeds the available context size (2048 tokens), try increasing it",
    "Context size has been exceeded.",
    "input is too large to process. increase the physical batch size",
    # TGI, Together
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2000 `inputs` tokens and 100 "
    "`max_new_tokens`",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
    # Ollama
    "the input length exceeds the context length",
    "prompt too long; exceeded max context length by 12 tokens",
    # Anthropic, Bedrock
    "prompt is too long: 210000 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease input length",
    "Input is too long for requested model.",
    "Too many input tokens. Max input tokens: 4000, request input token count: 5000",
    # DeepSeek, Mistral, xAI, Fireworks, OpenRouter
    "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens (69000 in the messages).",
    "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "The prompt is too long: 5000, model maximum context length: 4096",
    "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens.",
    # Gemini
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "Unable to submit request because the input token count is 5000 but model only supports up to 2048.",
    # LM Studio, Alibaba, Moonshot, Z.ai, MiniMax, LiteLLM
    "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with 4096 tokens.",
    "Range of input length should be [1, 30720]",
    "Invalid request: Your request exceeded model token limit: 8192 (requested: 10000)",
    "Prompt exceeds max length",
    "invalid params, context window exceeds limit",
    "litellm.ContextWindowExceededError: litellm.BadRequestError: OpenAIException",
]
UNKNOWN_MODELS = [
    "The model `gpt-9` does not exist or you do not have access to it.",
    'model "llama9" not found, try pulling it first',
    "meta/none is not a valid model ID",
    "Invalid model: mistral-none",
    "Model Not Exist",
    "/chat/completions: Invalid model name passed in model=x. Call `/v1/models` to view available models",
    "Unable to access model none. Please visit api.together.ai to see the list of supported models",
]
NOT_TAKEN = [
    ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
     "max_tokens", {"max_tokens"}),
    ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
     "temperature", {"temperature"}),
    ("Unrecognized request argument supplied: stream_options", None, {"stream_options"}),
    ("body.seed: Extra inputs are not permitted", None, {"seed"}),
    ("Argument not supported on this model: stop", None, {"stop"}),
    ("`temperature` and `top_p` cannot be specified both for this model.", None, {"temperature", "top_p"}),
    ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', None, {"seed"}),
    ("litellm.UnsupportedParamsError: openai does not support parameters: {'temperature': 0}", None, {"temperature"}),
    ("max_tokens is too large: 5000. This model supports at most 4096 completion tokens.", "max_tokens", set()),
    ("temperature must be between 0 and 1", "temperature", set()),
    ("max_tokens", None, {"max_tokens"}),
    ("the seeds of unsupported plants", None, set()),
]  # fmt: skip
NAMES = ("max_tokens", "temperature", "top_p", "stop", "seed", "stream_options")


@pytest.mark.parametrize("message", TOO_LONG)
def test_too_long(message: str) -> None:
    failure = Failure(message, 400)
    assert is_too_long(failure) and not is_unknown_model(failure)
    assert unsupported_parameters(failure, NAMES) == set()


@pytest.mark.parametrize(
    "code", ["context_length_exceeded", "exceed_context_size_error", "string_above_max_length", "request_too_large"]
)
def test_too_long_by_code(code: str) -> None:
    assert is_too_long(Failure("no", 400, code))


@pytest.mark.parametrize("message", UNKNOWN_MODELS)
def test_unknown_model(message: str) -> None:
    failure = Failure(message, 400)
    assert is_unknown_model(failure) and not is_too_long(failure)


@pytest.mark.parametrize(("message", "param", "names"), NOT_TAKEN)
def test_parameters_not_taken(message: str, param: str | None, names: set[str]) -> None:
    failure = Failure(message, 400, param=param)
    assert unsupported_parameters(failure, NAMES) == names
    assert not is_too_long(failure) and not is_unknown_model(failure)

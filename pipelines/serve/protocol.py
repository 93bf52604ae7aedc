"""Requests of the HTTP API: the pydantic models of its OpenAPI document; `responses` has the responses.

The fields are OpenAI's, Jina's and Cohere's, and ours are in `blend`. Fields without effect on the answer
(`metadata`, `store`, `user`, ...) are ignored. Unsupported fields are accepted only with their no-op value (null,
0, an empty list), since clients send them; any other value, and any unknown field, is rejected by name. Messages
are read by `actors.chats`, like those of bulk rows.

A few errors end a validation: lists stop at their first bad item, and of unknown fields one is reported.
"""

from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llm_blender_ray.actors.chats import ROLES
from llm_blender_ray.configs.reasoning import ReasoningEffort
from llm_blender_ray.configs.sampling import (
    MAX_LOGPROBS,
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    TemplateKwargs,
)

MAX_ITEMS = 10_000  # of any list in a request: messages and their content parts, documents
MAX_BIASES = 1024  # tokens in `logit_bias`
TEXT, LIST, OBJECT = TAGS = ("(text)", "(list)", "(object)")  # only in paths of pydantic's errors


def _characters(text: str) -> str:
    """Reject half a surrogate pair, which JSON can spell, and which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "half of a surrogate pair is no character") from None
    return text


def _nothing(value: Any, validate: Any) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("unsupported_parameter", "not supported") from None


def _form(value: Any) -> str | None:
    if isinstance(value, list):
        return LIST
    return TEXT if isinstance(value, str) else OBJECT if isinstance(value, dict) else None


def _one_of(forms: str) -> Discriminator:
    return Discriminator(
        lambda value: _form(value), custom_error_type="form", custom_error_message=f"Input should be {forms}"
    )


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int)]  # 8.0 is one, as in JSON Schema
Text = Annotated[str, AfterValidator(_characters)]
Name = Annotated[Text, Field(min_length=1)]
ASKS_NOTHING = WrapValidator(_nothing)  # of a field's type: what asks for nothing; any other value is unsupported
Off = Annotated[Literal[False] | None, ASKS_NOTHING]
Empty = Annotated[Annotated[list[Any], Field(max_length=0)] | None, ASKS_NOTHING]


def first_unknown(value: Any, known: Container[str]) -> Any:
    """The object with at most one unknown field that is not null: each would be an error of its own."""
    if not isinstance(value, dict):
        return value
    unknown = next((name for name in value if value[name] is not None and name not in known), None)
    return {name: value[name] for name in value if name in known or name == unknown}


class RequestModel(BaseModel):
    """A part of a request: types are strict, and any unknown field must be null."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, None] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        return first_unknown(value, cls.model_fields)


class WithText(BaseModel):
    """A text with more fields, which are not read."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    text: Text


MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_ITEMS,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
                    {"type": "null"},
                ]
            },
        },
    },
}
Messages = Annotated[
    list[Any], Field(min_length=1, max_length=MAX_ITEMS), WithJsonSchema(MESSAGES_SCHEMA)
]  # read by `actors.chats.read_messages`
TextInput = Annotated[Annotated[Text, Tag(TEXT)] | Annotated[WithText, Tag(OBJECT)], _one_of("text or {text: ...}")]


def text_of(given: str | WithText) -> str:
    """The text itself."""
    return given if isinstance(given, str) else given.text


class StreamOptions(RequestModel):
    """Options of a stream. `include_usage`: one more chunk with the tokens."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


class TextResponseFormat(RequestModel):
    """The only supported form of answers."""

    type: Literal["text"]


class BlendOptions(RequestModel):
    """Options of this service alone.

    `details`: candidates, ranking, scores and timings in the response. `events`: the blend's events, in a stream.
    `deadline_s`: a shorter time limit than the service's. `vote`: open the answers to votes.
    """

    details: bool = True
    events: bool = False
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    vote: bool = False


def _options(value: Any) -> Any:
    if value is True:
        return {}
    return None if value is False else value


Stop = Annotated[
    Annotated[Name, Tag(TEXT)] | Annotated[list[Name], Field(max_length=4, fail_fast=True), Tag(LIST)],
    _one_of("text or a list of up to four"),
]


def _one_mistake(value: Any, validate: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise PydanticCustomError("too_long", "at most {most} tokens", {"most": MAX_BIASES})
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("logit_bias", "expected biases of -100 to 100 by token ids") from None


class ChatRequest(RequestModel):
    """`POST /v1/chat/completions`, as in OpenAI's API."""

    model: Name
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None  # limited to serve.limits.max_tokens
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # 0: only the most likely token
    stop: Stop | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[LogitBias, WrapValidator(_one_mistake)] | None = None  # by token id
    logprobs: bool | None = None  # only of one model's own answer; in a stream with its last piece
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    # Not OpenAI's, but vLLM's and SGLang's.
    top_k: Annotated[Whole, Field(ge=1)] | None = None
    min_p: MinP | None = None
    min_tokens: Annotated[Whole, Field(ge=0)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    chat_template_kwargs: TemplateKwargs | None = None  # variables of the chat template
    num_beams: Annotated[Whole, Field(ge=1)] | None = None  # above 1: beam search; `n` are then the best beams
    reasoning_effort: ReasoningEffort | None = None
    thinking_token_budget: Annotated[Whole, Field(ge=0)] | None = None  # vLLM's name
    include_reasoning: bool | None = None  # default: true, like vLLM's
    blend: Annotated[
        BlendOptions | None, BeforeValidator(_options, json_schema_input_type=bool | BlendOptions | None)
    ] = None

    response_format: Annotated[TextResponseFormat | None, ASKS_NOTHING] = None
    tools: Empty = None
    tool_choice: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    functions: Empty = None
    function_call: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(max_length=1)] | None, ASKS_NOTHING] = None
    verbosity: Annotated[Literal["medium"] | None, ASKS_NOTHING] = None

    # Without effect on the answer, whatever the value.
    user: Any = None
    safety_identifier: Any = None  # OpenAI's new name of `user`
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None  # there are no tools
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class RerankRequest(RequestModel):
    """`POST /v1/rerank`, as in Jina's and Cohere's APIs."""

    model: Name | None = None
    query: Name
    documents: Annotated[list[TextInput], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    top_n: Annotated[Whole, Field(ge=1)] | None = None
    return_documents: bool | None = None  # default: true, like Jina's


class CompareRequest(RequestModel):
    """`POST /v1/compare`: a row with `prompt`, `instruction` (and `input`) or `messages`, and two candidates.

    As in rows, `prompt` may be a list of messages.
    """

    model: Name | None = None
    prompt: (
        Annotated[
            Annotated[Text, Tag(TEXT)] | Annotated[Messages, Tag(LIST)], _one_of("text or a list of messages")
        ]
        | None
    ) = None
    instruction: Text | None = None
    input: Text | None = None
    messages: Messages | None = None
    candidates: Annotated[list[TextInput], Field(min_length=2, max_length=2)]

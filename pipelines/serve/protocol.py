"""What the HTTP API takes, as the pydantic models that its OpenAPI document is made of; `api` has what it gives.

The fields are OpenAI's, Jina's and Cohere's, and ours stand in `blend`. Fields that change nothing in the answer
(`metadata`, `store`, `user`, ...) are ignored. A field that would change it and isn't supported is taken with the
value that asks for nothing (null, 0, an empty list), because clients send it; with any other value it is refused by
its name, as unknown fields are. Messages are read by `actors.chats`, as those of bulk rows are.

Few mistakes end a validation: lists stop at their first bad item, and of unknown fields one is told.
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

MAX_ITEMS = 10_000  # of any list in a request: messages with their content parts, documents
TEXT, LIST, OBJECT = TAGS = ("(text)", "(list)", "(object)")  # in the paths of pydantic's errors only


def _characters(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and has no UTF-8."""
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


Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int)]  # 8.0 is one, as JSON Schema has it
Text = Annotated[str, AfterValidator(_characters)]
Name = Annotated[Text, Field(min_length=1)]
ASKS_NOTHING = WrapValidator(_nothing)  # of a field's type: what asks for nothing; any other value is unsupported
Zero = Annotated[Annotated[float, Field(ge=0, le=0)] | None, ASKS_NOTHING]
Off = Annotated[Literal[False] | None, ASKS_NOTHING]
Empty = Annotated[Annotated[list[Any], Field(max_length=0)] | None, ASKS_NOTHING]
EmptyObject = Annotated[Annotated[dict[str, Any], Field(max_length=0)] | None, ASKS_NOTHING]


def first_unknown(value: Any, known: Container[str]) -> Any:
    """The object with at most one unknown field that isn't null: each would be a mistake of its own."""
    if not isinstance(value, dict):
        return value
    unknown = next((name for name in value if value[name] is not None and name not in known), None)
    return {name: value[name] for name in value if name in known or name == unknown}


class Asked(BaseModel):
    """A part of a request: types are strict, and any field that isn't ours must be null."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, None] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        return first_unknown(value, cls.model_fields)


class WithText(BaseModel):
    """A text with more: its other fields are not read."""

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


class StreamOptions(Asked):
    """include_usage: one more chunk with the tokens."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


class TextResponseFormat(Asked):
    """The one form of answers there is."""

    type: Literal["text"]


class BlendOptions(Asked):
    """What only this service has.

    details: candidates, ranking, scores and timings in the answer. events: what happens on the way, in a stream.
    deadline_s: less time than the service allows. vote: people will be asked which answer is better.
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


class ChatRequest(Asked):
    """`POST /v1/chat/completions`, as OpenAI has it."""

    model: Name
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None  # at most serve.limits.max_tokens count
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # 0: the likeliest token alone
    stop: Stop | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    blend: Annotated[
        BlendOptions | None, BeforeValidator(_options, json_schema_input_type=bool | BlendOptions | None)
    ] = None

    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: EmptyObject = None
    logprobs: Off = None
    top_logprobs: Zero = None
    response_format: Annotated[TextResponseFormat | None, ASKS_NOTHING] = None
    tools: Empty = None
    tool_choice: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    functions: Empty = None
    function_call: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(max_length=1)] | None, ASKS_NOTHING] = None
    verbosity: Annotated[Literal["medium"] | None, ASKS_NOTHING] = None

    # What changes nothing in the answer, whatever it says.
    user: Any = None
    safety_identifier: Any = None  # OpenAI's new name of `user`
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None  # of no tools
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None  # a model's own effort is set where the model is


class RerankRequest(Asked):
    """`POST /v1/rerank`, as Jina and Cohere have it."""

    model: Name | None = None
    query: Name
    documents: Annotated[list[TextInput], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    top_n: Annotated[Whole, Field(ge=1)] | None = None
    return_documents: bool | None = None  # as at Jina's, yes unless told otherwise


class CompareRequest(Asked):
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

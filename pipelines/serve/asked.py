"""What the HTTP API takes, as the pydantic models that its OpenAPI document is made of; `api` has what it gives.

The fields are OpenAI's, Jina's and Cohere's, and ours stand in `blend`. A field that those services have and this
one hasn't is taken with the value that asks for nothing (null, 0, an empty list), because clients send it; with any
other value it is refused by its name, as unknown fields are. Nothing is ignored in silence but `user`, and what
comes with a document or a candidate beside its text.
"""

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
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from actors.records import Message

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


Text = Annotated[str, AfterValidator(_characters)]
Name = Annotated[Text, Field(min_length=1)]
ASKS_NOTHING = WrapValidator(_nothing)  # of a field's type: what asks for nothing; any other value is unsupported
Zero = Annotated[Annotated[float, Field(ge=0, le=0)] | None, ASKS_NOTHING]
Off = Annotated[Literal[False] | None, ASKS_NOTHING]
Empty = Annotated[Annotated[list[Any], Field(max_length=0)] | None, ASKS_NOTHING]
EmptyObject = Annotated[Annotated[dict[str, Any], Field(max_length=0)] | None, ASKS_NOTHING]


class Asked(BaseModel):
    """A part of a request: types are strict, and any field that isn't ours must be null."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, None] = Field(init=False)


class TextPart(Asked):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class WithText(BaseModel):
    """A text with more: its other fields are not read."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    text: Text


Content = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[list[TextPart], Field(min_length=1), Tag(LIST)],
    _one_of("text or a list of text parts"),
]
Given = Annotated[Annotated[Text, Tag(TEXT)] | Annotated[WithText, Tag(OBJECT)], _one_of("text or {text: ...}")]


def text_of(given: str | WithText) -> str:
    """The text itself."""
    return given if isinstance(given, str) else given.text


class ChatMessage(Asked):
    """One turn. `developer` is what OpenAI calls `system` now."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    tool_calls: Empty = None
    annotations: Empty = None

    def message(self) -> Message:
        """The turn as models are given it."""
        texts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Message(role="system" if self.role == "developer" else self.role, content="".join(texts))


class StreamOptions(Asked):
    """include_usage: one more chunk with the tokens."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


class TextFormat(Asked):
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
    Annotated[Name, Tag(TEXT)] | Annotated[list[Name], Field(max_length=4), Tag(LIST)],
    _one_of("text or a list of up to four"),
]


class ChatRequest(Asked):
    """`POST /v1/chat/completions`, as OpenAI has it."""

    model: Name
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None  # OpenAI's new name of `user`
    blend: Annotated[
        BlendOptions | None, BeforeValidator(_options, json_schema_input_type=bool | BlendOptions | None)
    ] = None

    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: EmptyObject = None
    logprobs: Off = None
    top_logprobs: Zero = None
    response_format: Annotated[TextFormat | None, ASKS_NOTHING] = None
    tools: Empty = None
    tool_choice: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    parallel_tool_calls: bool | None = None  # of no tools
    functions: Empty = None
    function_call: Annotated[Literal["none", "auto"] | None, ASKS_NOTHING] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(max_length=1)] | None, ASKS_NOTHING] = None
    metadata: EmptyObject = None
    store: Off = None
    service_tier: Annotated[Literal["auto", "default"] | None, ASKS_NOTHING] = None
    verbosity: Annotated[Literal["medium"] | None, ASKS_NOTHING] = None


class RerankRequest(Asked):
    """`POST /v1/rerank`, as Jina and Cohere have it."""

    model: Name | None = None
    query: Name
    documents: Annotated[list[Given], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None  # as at Jina's, yes unless told otherwise


class CompareRequest(Asked):
    """`POST /v1/compare`: a row with `prompt`, `instruction` (and `input`) or `messages`, and two candidates."""

    model: Name | None = None
    prompt: Text | None = None
    instruction: Text | None = None
    input: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    candidates: Annotated[list[Given], Field(min_length=2, max_length=2)]

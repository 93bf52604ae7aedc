"""Sampling settings of LLMs.

Fields have the names and ranges of vLLM's `SamplingParams`. What an engine has no means for, its settings refuse by
name (`BaseLLM.sampling_problem`). A field that a request may set too is in `SamplingOverrides`, with the same type.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from llm_blender_ray.configs.reasoning import ReasoningEffort
from llm_blender_ray.configs.settings import OMIT_DEFAULT, Settings

MAX_LOGPROBS = 20  # OpenAI's and vLLM's limit of alternatives to a token
MaxTokens = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopTokens = Annotated[int, Field(ge=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
StopStrings = tuple[Annotated[str, Field(min_length=1)], ...]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MinTokens = Annotated[int, Field(ge=0)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
# keys are token ids, as text in JSON
LogitBias = dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]]
NumBeams = Annotated[int, Field(ge=1)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
ThinkingBudget = Annotated[int, Field(ge=0)]

# Variables of chat templates that are no caller's.
_TEMPLATE_ARGUMENTS = frozenset(
    {"messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"}
    | {"padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"}
    | {"tokenizer_kwargs"}
)


def _are_variables(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if taken := sorted(_TEMPLATE_ARGUMENTS & value.keys()):
        raise ValueError(f"{taken[0]} is no variable that can be set")
    return value


TemplateKwargs = Annotated[dict[str, JsonValue], AfterValidator(_are_variables)]

# Fields that not every engine has; of the others each must make use.
OPTIONS = (
    "min_p",
    "min_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "num_beams",
    "logprobs",
    "chat_template_kwargs",
    "thinking_token_budget",
    "from_model",
)
FROM_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # what `from_model` can fill in


class Sampling(Settings):
    """Sampling of an LLM. `temperature: 0` is greedy decoding.

    `temperature: null` sends none to an endpoint, whose own default counts; a local engine draws at 1, the default
    of OpenAI's API.
    """

    max_tokens: MaxTokens = 512
    temperature: Temperature | None = 0.0
    top_p: TopP = 1.0
    top_k: TopTokens | None = None
    stop: StopStrings = ()
    seed: Seed | None = None
    # sent to endpoints, and a variable of chat templates; None: the model's own
    reasoning_effort: Annotated[ReasoningEffort | None, OMIT_DEFAULT] = None
    # most tokens of reasoning; then the end mark is written, and the answer follows. max_tokens counts them, too
    thinking_token_budget: Annotated[ThinkingBudget | None, OMIT_DEFAULT] = None
    # least probability of a token that may be drawn, as a share of the most likely one's
    min_p: Annotated[MinP, OMIT_DEFAULT] = 0.0
    min_tokens: Annotated[MinTokens, OMIT_DEFAULT] = 0  # tokens before the answer may end or a stop string counts
    # above 1 makes tokens of prompt and answer less likely, below 1 more
    repetition_penalty: Annotated[RepetitionPenalty, OMIT_DEFAULT] = 1.0
    presence_penalty: Annotated[Penalty, OMIT_DEFAULT] = 0.0  # taken off the logits of tokens in the answer
    frequency_penalty: Annotated[Penalty, OMIT_DEFAULT] = 0.0  # taken off for each time that they are in it
    logit_bias: Annotated[LogitBias, OMIT_DEFAULT] = Field(default_factory=dict)  # added to logits, by token id
    # above 1: beam search in place of drawing; `samples` are then the best beams (num_return_sequences)
    num_beams: Annotated[NumBeams, OMIT_DEFAULT] = 1
    # also the log-probability of each token of the answer, and of this many likeliest in its place
    logprobs: Annotated[Logprobs | None, OMIT_DEFAULT] = None
    # variables of the chat template, such as {enable_thinking: false}; a request's are added to them
    chat_template_kwargs: Annotated[TemplateKwargs, OMIT_DEFAULT] = Field(default_factory=dict)
    # temperature, top_p, top_k, min_p and repetition_penalty that are not set are those of the model's
    # generation_config.json; an endpoint gets only those that are set
    from_model: Annotated[bool, OMIT_DEFAULT] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problem := self.problem():
            raise ValueError(": ".join(problem))
        return self

    def problem(self) -> tuple[str, str] | None:
        """Find fields that exclude each other.

        Returns:
            The name of one, and what is wrong with it.
        """
        if self.min_tokens > self.max_tokens:
            return "min_tokens", f"{self.min_tokens} is larger than max_tokens ({self.max_tokens})"
        if self.num_beams > 1 and self.temperature and "temperature" in self.model_fields_set:
            return "num_beams", "beam search draws nothing; leave out temperature"
        if self.num_beams > 1 and self.logprobs is not None:
            return "num_beams", "beam search returns no logprobs"
        if self.num_beams > 1 and self.thinking_token_budget is not None:
            return "num_beams", "beam search has no thinking_token_budget"
        return None

    @model_serializer(mode="wrap")
    def _leave_open_fields_out(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Leave out what `from_model` fills in, so that it is still open when the settings are read again."""
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if name not in self.open_fields}

    @property
    def open_fields(self) -> frozenset[str]:
        """Fields that the model's own generation config sets."""
        return frozenset(FROM_MODEL) - self.model_fields_set if self.from_model else frozenset()

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """The settings with the model's own defaults.

        Args:
            defaults: Values for `FROM_MODEL`, as far as the model has some.
        """
        open_fields = self.open_fields
        return self.model_copy(update={name: value for name, value in defaults.items() if name in open_fields})

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for chat templates, by the names that templates and vLLM have for them."""
        if self.reasoning_effort is None:
            return self.chat_template_kwargs
        thinks = self.reasoning_effort != "none"
        effort = {"reasoning_effort": self.reasoning_effort, "enable_thinking": thinks, "thinking": thinks}
        return {**effort, **self.chat_template_kwargs}

    @property
    def local_temperature(self) -> float:
        """The temperature at which local engines draw."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def greedy(self) -> bool:
        """Whether there is nothing to draw: the same prompt gets the same answer."""
        if self.num_beams > 1:
            return True
        return (self.temperature == 0 and "temperature" not in self.open_fields) or self.top_k == 1

    @property
    def options(self) -> tuple[str, ...]:
        """Those of `OPTIONS` that differ from their default."""
        fields = type(self).model_fields
        return tuple(
            name for name in OPTIONS if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        )

    def nth(self, sample: int) -> "Sampling":
        """The settings of one of several samples: where there is a seed, its own; of a beam search, its beam."""
        if sample == 0:
            return self
        if self.num_beams > 1:
            return BeamSampling.model_construct(self.model_fields_set, **{**dict(self), "beam": sample})
        if self.seed is None:
            return self
        return self.model_copy(update={"seed": (self.seed + sample) % 2**63})

    def shared(self) -> "Sampling":
        """The settings without seed and beam: requests that have these in common can be decoded together."""
        given = {name: value for name, value in dict(self).items() if name != "beam"}
        return Sampling.model_construct(self.model_fields_set, **{**given, "seed": None})


class BeamSampling(Sampling):
    """Sampling of one request that gets another beam than the best.

    Attributes:
        beam: Which one, from 0, the best.
    """

    beam: int = 0


class SamplingOverrides(Settings):
    """Sampling fields of one request to the service, or of an adapter; None leaves the model's own."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopTokens | None = None
    stop: StopStrings | None = None
    seed: Seed | None = None
    reasoning_effort: ReasoningEffort | None = None
    thinking_token_budget: ThinkingBudget | None = None
    min_p: MinP | None = None
    min_tokens: MinTokens | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    num_beams: NumBeams | None = None
    logprobs: Logprobs | None = None
    chat_template_kwargs: TemplateKwargs | None = None

    def of(self, sampling: Sampling) -> Sampling:
        """The changed settings. A beam search replaces the model's own temperature."""
        change = self.model_dump(exclude_none=True)
        if change.get("num_beams", 1) > 1:
            change = {"temperature": 0.0, **change}
        if self.chat_template_kwargs:
            change["chat_template_kwargs"] = {**sampling.chat_template_kwargs, **self.chat_template_kwargs}
        return sampling.model_copy(update=change)

"""Requests to an endpoint, without the parameters that it has refused so far."""

import logging
from collections.abc import Sequence
from typing import Any

from llm_blender_ray.actors.engines.chat_completions import Failure
from llm_blender_ray.actors.engines.refusals import unsupported_parameters
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.endpoint import SAMPLING_FIELDS
from llm_blender_ray.configs.schema import EndpointModel, Sampling

_log = logging.getLogger(__name__)

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
DEFAULT_TEMPERATURE = Sampling.model_fields["temperature"].default
# Not OpenAI's, like top_k, but vLLM's, SGLang's, llama.cpp's, OpenRouter's.
_EXTENSIONS = ("min_p", "min_tokens", "repetition_penalty", "chat_template_kwargs")


class Requests:
    """Requests to one endpoint, as keywords of OpenAI's client.

    Services refuse parameters that others need. What one has refused is remembered here, so that it costs a request
    once and not for every prompt.
    """

    def __init__(self, model: EndpointModel) -> None:
        self._model = model
        self._length = MAX_COMPLETION_TOKENS if model.max_tokens_field == MAX_COMPLETION_TOKENS else MAX_TOKENS
        self._refused: frozenset[str] = frozenset()

    def build(self, messages: list[Message], sampling: Sampling, *, stream: bool = False) -> dict[str, Any]:
        """A request: temperature and the length always, since services' defaults differ; else what is set."""
        parameters: dict[str, Any] = {self._length: sampling.max_tokens}
        if sampling.temperature is not None and "temperature" not in sampling.open_fields:
            parameters["temperature"] = sampling.temperature
        if sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            parameters["seed"] = sampling.seed
        if sampling.reasoning_effort is not None:
            parameters["reasoning_effort"] = sampling.reasoning_effort
        for name in ("presence_penalty", "frequency_penalty"):
            if value := getattr(sampling, name):
                parameters[name] = value
        if sampling.logit_bias:
            parameters["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.logprobs is not None:
            parameters |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if stream and self._model.stream_usage:
            parameters["stream_options"] = {"include_usage": True}
        extra = {name: value for name, value in self._model.extra_body.items() if name not in parameters}
        if sampling.top_k is not None:
            extra["top_k"] = sampling.top_k
        extra |= {name: getattr(sampling, name) for name in _EXTENSIONS if name in sampling.options}
        if stream:
            extra["stream"] = True  # with the keyword of that name the client would return at the first byte
        if sampling.thinking_token_budget is not None:
            extra = _with(extra, self._model.thinking_budget_field.split("."), sampling.thinking_token_budget)
        request = {"model": self._model.model, "messages": messages, **parameters}
        if extra:
            request["extra_body"] = extra
        return _without(request, self._refused & self._may_go(request))

    def adapted(self, request: dict[str, Any], failure: Failure) -> dict[str, Any] | None:
        """The request in the form that the endpoint accepts.

        Args:
            request: The one that it refused.
            failure: Its refusal.

        Returns:
            Another request; None where nothing may be changed.
        """
        if failure.status not in (400, 422):
            return None
        may_go = self._may_go(request)
        refused = unsupported_parameters(failure, may_go | {MAX_TOKENS} & set(request))
        changed = _without(request, refused & may_go)
        if MAX_TOKENS in refused and self._model.max_tokens_field == "auto":
            changed[MAX_COMPLETION_TOKENS] = changed.pop(MAX_TOKENS)
        return changed if changed != request else None

    def learn(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Remember how a request had to be changed, now that it has succeeded."""
        gone = _names(before) - _names(after)
        if MAX_COMPLETION_TOKENS in after:
            self._length = MAX_COMPLETION_TOKENS
            gone -= {MAX_TOKENS}
        for name in sorted(gone - self._refused):
            _log.warning("%s: %s refuses %s; it is left out", self._model.name, self._model.base_url, name)
        self._refused |= gone

    def _may_go(self, request: dict[str, Any]) -> frozenset[str]:
        """Parameters that may be left out: those that the answer doesn't depend on, or that are not set."""
        may_go = {"stream_options"}
        if self._model.drop_params:
            may_go |= {*SAMPLING_FIELDS, "top_logprobs", "reasoning_effort"}
        if request.get("temperature") == DEFAULT_TEMPERATURE:
            may_go.add("temperature")
        if request.get("reasoning_effort") != self._model.sampling.reasoning_effort:  # a client's, of all models
            may_go.add("reasoning_effort")
        return frozenset(may_go & _names(request))


def _with(fields: dict[str, Any], path: Sequence[str], value: int) -> dict[str, Any]:
    """The fields with a value at a path, beside what is there."""
    name, *within = path
    if within:
        inner = fields.get(name)
        return {**fields, name: _with(inner if isinstance(inner, dict) else {}, within, value)}
    return {**fields, name: value}


def _names(request: dict[str, Any]) -> set[str]:
    return {*request, *request.get("extra_body", {})}


def _without(request: dict[str, Any], names: frozenset[str] | set[str]) -> dict[str, Any]:
    kept = {name: value for name, value in request.items() if name not in names and name != "extra_body"}
    extra = {name: value for name, value in request.get("extra_body", {}).items() if name not in names}
    return {**kept, "extra_body": extra} if extra else kept

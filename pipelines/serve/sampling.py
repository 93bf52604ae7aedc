"""Sampling fields of a request: overrides of the models' settings, refused where a model can't do what they ask."""

from collections.abc import Mapping

from llm_blender_ray.configs.schema import BaseLLM, SamplingOverrides
from llm_blender_ray.configs.serving import Limits
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND
from llm_blender_ray.pipelines.serve.errors import UNSUPPORTED, invalid
from llm_blender_ray.pipelines.serve.protocol import ChatRequest

# Fields of a request that are those of `SamplingOverrides` as they are.
_SAME = (
    *("reasoning_effort", "top_k", "min_p", "min_tokens", "num_beams", "logit_bias", "chat_template_kwargs"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "thinking_token_budget"),
)


def read_sampling(asked: ChatRequest, models: Mapping[str, BaseLLM], limits: Limits) -> SamplingOverrides:
    """Read the sampling fields of a request.

    Args:
        asked: The request.
        models: Settings of the base LLMs by name, as far as they are known.
        limits: Of requests.

    Returns:
        The overrides.

    Raises:
        ApiError: A field is beyond the limits, or one of the models that the request is for can't do it.
    """
    if asked.top_logprobs and not asked.logprobs:
        raise invalid("top_logprobs", "only with logprobs")
    if (asked.num_beams or 1) > limits.candidates:
        raise invalid("num_beams", f"at most {limits.candidates} (serve.limits.candidates)")
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    wanted = asked.max_completion_tokens or asked.max_tokens
    change = SamplingOverrides(
        max_tokens=min(wanted, limits.max_tokens) if wanted else None,
        temperature=0.0 if asked.top_p == 0 else asked.temperature,
        top_p=asked.top_p or None,
        stop=tuple(stop) if stop else None,
        seed=None if asked.seed is None else asked.seed % 2**63,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        **{name: getattr(asked, name) for name in _SAME},
    )
    alone = models.get(asked.model)
    if asked.logprobs and asked.model in (BLEND, BEST):
        raise invalid("logprobs", "only of one model's own answer, by its name", UNSUPPORTED)
    for model in models.values() if alone is None else [alone]:
        _check(model, change, answers=(asked.n or 1) * (1 if alone else model.samples))
    return change


def _check(model: BaseLLM, change: SamplingOverrides, answers: int) -> None:
    """Check that a model can give this number of answers with changed settings."""
    changed = change.of(model.sampling)
    if problem := model.sampling_problem(changed):
        name, why = problem
        raise invalid(name, f"{model.name}: {why}", UNSUPPORTED)
    if 1 < changed.num_beams < answers:
        raise invalid("n", f"{model.name}: a search with {changed.num_beams} beams has no more answers")

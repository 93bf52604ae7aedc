"""A config as the service runs it."""

from llm_blender_ray.configs.schema import (
    BlendConfig,
    EndpointModel,
    FuserSettings,
    Judge,
    LLMFuser,
    LocalLLM,
    ModelSettings,
    RankerSettings,
)
from llm_blender_ray.configs.serving import Serving


def online(config: BlendConfig) -> BlendConfig:
    """The config with the service's limits where its models have none of their own, and endpoints for requests.

    Endpoints get few retries, since a person waits, and no circuit breaker of their own: the gateway has one for
    each part.
    """
    serving = config.serve
    models = tuple(_limited(_asked(model, serving), serving) for model in config.models)
    parts = {"ranker": _ranker(config.ranker, serving), "fuser": _fuser(config.fuser, serving)}
    return config.model_copy(update={"models": models, **parts})


def _ranker(ranker: RankerSettings, serving: Serving) -> RankerSettings:
    if isinstance(ranker, Judge):
        return ranker.model_copy(update={"llm": _asked(ranker.llm, serving)})
    return ranker


def _fuser(fuser: FuserSettings | None, serving: Serving) -> FuserSettings | None:
    if isinstance(fuser, LLMFuser):
        return fuser.model_copy(update={"llm": _asked(fuser.llm, serving)})
    return fuser


def _asked(model: ModelSettings, serving: Serving) -> ModelSettings:
    if not isinstance(model, EndpointModel):
        return model
    return model.model_copy(update={"max_retries": min(model.max_retries, serving.max_retries), "breaker": None})


def _limited(model: ModelSettings, serving: Serving) -> ModelSettings:
    most = serving.limits.prompt_tokens
    if most is None or not isinstance(model, LocalLLM) or model.max_prompt_tokens is not None:
        return model
    return model.model_copy(update={"max_prompt_tokens": most})

"""Settings of a blend in the online service."""

from llm_blender_ray.configs.schema import BlendConfig


def online(config: BlendConfig) -> BlendConfig:
    """Apply the service's limits to the parts that have none of their own.

    Endpoints get few retries, since a client waits, and no circuit breaker: the gateway has one for each part.
    """
    retries, prompt_tokens = config.serve.max_retries, config.serve.limits.prompt_tokens
    return config.model_copy(
        update={
            "models": tuple(model.for_service(retries, prompt_tokens) for model in config.models),
            "ranker": config.ranker.for_service(retries),
            "fuser": config.fuser.for_service(retries) if config.fuser else None,
        }
    )

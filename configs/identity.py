"""Which settings decide what a model answers, and which only where and how fast it runs.

Results that were kept count as long as the former stay the same; the latter may change between two sessions of a
run.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from llm_blender_ray.configs.loading import PRESETS

# Settings of any part of a config that leave its answers as they are.
HOW = frozenset(
    {
        *("num_cpus", "num_gpus", "resources", "accelerator_type", "replicas", "device"),
        *("max_batch_size", "batch_tokens", "cache"),
        *("tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs", "enforce_eager"),
        *("api_key_env", "timeout_s", "max_retries", "max_in_flight", "stream_usage", "breaker"),
        *("headers_env", "max_answer_mib", "max_error_rate"),
    }
)


def deciding(settings: BaseModel) -> dict[str, Any]:
    """The settings that decide answers, as JSON has them."""
    return _without_how(settings.model_dump(mode="json"))


def _without_how(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_how(item) for name, item in value.items() if name not in HOW}
    if isinstance(value, str) and value.startswith(f"{PRESETS}/"):
        return value.removeprefix(f"{PRESETS}/")  # included models: a job unpacks them elsewhere each time
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One text for each setting that differs, with its path: `ranker.model was 'a', is 'b'`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = [
        path for path in (*old, *(path for path in new if path not in old)) if old.get(path) != new.get(path)
    ]
    return [f"{path} was {old.get(path)!r}, is {new.get(path)!r}" for path in changed]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value

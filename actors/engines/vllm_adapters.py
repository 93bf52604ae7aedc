"""LoRA adapters of a vLLM engine: its arguments for them, and the requests that name them."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_blender_ray.actors.adapter_files import adapter_rank
from llm_blender_ray.actors.adapters import locate_adapter
from llm_blender_ray.actors.engines.vllm_executor import over_nodes
from llm_blender_ray.actors.errors import GenerationError, ModelLoadError, one_line
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.schema import VLLMModel

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


class VLLMAdapters:
    """Adapters of one engine, each loaded at its first request."""

    def __init__(self, model: VLLMModel, folder: Path) -> None:
        """Find the adapters, and check them.

        Args:
            model: Settings of the engine.
            folder: Folder of its model.

        Raises:
            ModelLoadError: One is missing, or can't be applied to that model, or not on several nodes.
        """
        self._name = model.name
        weights = model.weights
        self._folders = {one: locate_adapter(one, weights.formats, folder) for one in weights.adapters}
        # the processes on other nodes read the hub's cache of their own
        self._paths = {one: one.path if over_nodes(model) else str(path) for one, path in self._folders.items()}
        pinned = [one.path for one, path in self._folders.items() if one.revision and self._paths[one] != str(path)]
        if pinned:
            raise ModelLoadError(
                f"{model.name}: {pinned[0]}: on several nodes vLLM reads no revision of an adapter; give a folder "
                "that all nodes have"
            )
        self._loaded: set[Adapter] = set()
        self._loading = asyncio.Lock()

    def arguments(self, given: Mapping[str, Any], ranks: Sequence[int], *, on_cpu: bool) -> dict[str, Any]:
        """Make the engine's arguments; none without adapters.

        Args:
            given: Those of the config, which come before these.
            ranks: Values that `max_lora_rank` can have.
            on_cpu: Whether the engine runs on CPUs.

        Raises:
            ModelLoadError: The installed vLLM has no such rank.
        """
        if not self._folders:
            return {}
        rank = max(map(adapter_rank, self._folders.values()))
        if rank > max(ranks):
            raise ModelLoadError(
                f"{self._name}: adapters: the installed vLLM takes ranks up to {max(ranks)}, not {rank}"
            )
        together = given.get("max_loras", len(self._folders))
        if on_cpu:
            # vLLM 0.32's operators for CPUs give a row without adapter that of the last place, which has to stay
            # empty (vllm-project/vllm#48421): 3 of 3 answers of the base in a batch with adapters were wrong
            together = max(together, len(self._folders) + 1)
        return {
            "enable_lora": True,
            "max_lora_rank": given.get("max_lora_rank", min(one for one in ranks if one >= rank)),
            "max_loras": together,
        }

    async def request(self, llm: "AsyncLLM", adapter: Adapter | None) -> "LoRARequest | None":
        """Make vLLM's request for an adapter, which is loaded first: a failure within a step would end the engine.

        Args:
            llm: The engine.
            adapter: One of its adapters; None: the model alone.

        Raises:
            GenerationError: It can't be loaded.
        """
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        path = self._paths[adapter]
        # a number of its own: vLLM may have loaded it under that for a caller that is gone
        request = LoRARequest(path, list(self._paths).index(adapter) + 1, path)
        async with self._loading:
            if adapter not in self._loaded:
                try:
                    await llm.add_lora(request)
                except Exception as error:  # vLLM passes on what its worker raises as such
                    raise GenerationError(f"vLLM can't load the adapter {path}: {one_line(error)}") from error
                self._loaded.add(adapter)
        return request

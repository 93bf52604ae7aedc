"""A base LLM under vLLM's AsyncLLM, on one GPU or, by tensor and pipeline parallelism, several.

vLLM schedules and batches by itself, in a child process of the actor's that ends with it, as its Ray actors on
other nodes do. This module turns settings into its arguments, and its failures into ours.
"""

import importlib.util
import itertools
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import GENERATION_CONFIG_NAME

from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.engines import Completion, Piece, ReasoningDelta, chat
from llm_blender_ray.actors.engines.chat import ChatPrompt, ChatTokenizer
from llm_blender_ray.actors.engines.model_defaults import model_defaults
from llm_blender_ray.actors.engines.vllm_adapters import VLLMAdapters
from llm_blender_ray.actors.engines.vllm_arguments import installed_arguments
from llm_blender_ray.actors.engines.vllm_executor import over_nodes, parallel_arguments, weights_arguments
from llm_blender_ray.actors.engines.vllm_reasoning import load_parser, reasoning_config
from llm_blender_ray.actors.engines.vllm_sampling import beam_search, read_logprobs, sampling_params
from llm_blender_ray.actors.errors import BlendError, GenerationError, ModelLoadError, PromptError, one_line
from llm_blender_ray.actors.model_files import check_folder
from llm_blender_ray.actors.records import FinishReason, Message, TokenLogprob
from llm_blender_ray.actors.weights import locate
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.engine_args import argument_problem
from llm_blender_ray.configs.sampling import MAX_LOGPROBS
from llm_blender_ray.configs.schema import Sampling, VLLMModel

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

_CPU = torch.device("cpu")
# Read by vLLM when it is imported and by the processes it starts; what the user has set stays.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine on the machine takes the same first cores
}
_ONE_NODE = {"VLLM_HOST_IP": "127.0.0.1"}  # where all of an engine's processes are on its actor's node


class VLLMEngine:
    """See `actors.engines.Engine`."""

    def __init__(self, model: VLLMModel) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ModelLoadError(
                f"{model.name}: engine vllm isn't installed; pip install 'llm-blender-ray[vllm]', or use "
                "engine: transformers"
            )
        folder = locate(model.model, model.revision)
        check_folder(folder)
        self._adapters = VLLMAdapters(model, folder)
        self._chat = ChatTokenizer.load(folder, model)
        self._reasoning_parser = model.reasoning_parser

        for name, value in (_ENVIRONMENT | ({} if over_nodes(model) else _ONE_NODE)).items():
            os.environ.setdefault(name, value)
        try:
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:  # built for another torch or CUDA
            raise ModelLoadError(
                f"{model.name}: the installed vLLM can't be imported: {one_line(error)}"
            ) from error

        known = installed_arguments()["arguments"]
        if problem := argument_problem(model.engine_args, known):
            raise ModelLoadError(f"{model.name}: engine_args: {problem}")
        self._parser = None if model.keep_reasoning else load_parser(model.reasoning_parser, self._chat.tokenizer)
        bounding = reasoning_config(self._chat.reasoning_format(model.reasoning_parser), self._chat.tokenizer)
        self._bounds_reasoning = bounding is not None
        if model.sampling.thinking_token_budget is not None and not self._bounds_reasoning:
            raise ModelLoadError(
                f"{model.name}: sampling.thinking_token_budget: vLLM bounds reasoning between marks of one token, "
                "and none are known of this model; set reasoning_parser, or use engine: transformers"
            )
        on_cpu = current_platform.is_cpu()
        # seen with 0.32: its runner asserts tensors that only GPUs get
        if on_cpu and model.pipeline_parallel_size > 1:
            raise ModelLoadError(
                f"{model.name}: pipeline_parallel_size: vLLM's engine for CPUs dies at its first prompt; use "
                "tensor_parallel_size"
            )
        if on_cpu and (problem := _cache_problem(str(model.engine_args.get("kv_cache_dtype", "auto")))):
            raise ModelLoadError(f"{model.name}: engine_args: {problem}")
        options = {} if on_cpu else {"gpu_memory_utilization": model.gpu_memory_utilization}
        with TemporaryDirectory(prefix="blend-tokenizer-") as own:  # read while the engine starts
            given: dict[str, Any] = {
                "max_logprobs": max(MAX_LOGPROBS, 2 * model.sampling.num_beams),
                **model.engine_args,
                **weights_arguments(model, folder),
                **self._adapters.arguments(model.engine_args, known["max_lora_rank"]["enum"], on_cpu=on_cpu),
                "tokenizer": _decoding_tokenizer(self._chat.tokenizer, folder, Path(own)),
                "dtype": str(resolve_dtype(model.dtype, _CPU)).removeprefix("torch.") if on_cpu else model.dtype,
                "reasoning_config": bounding,
                "max_model_len": model.max_model_len,
                "max_num_seqs": model.max_num_seqs,
                "quantization": model.quantization,
                "enforce_eager": model.enforce_eager or on_cpu,  # no compiler needed on CPU
                "trust_remote_code": model.trust_remote_code,
                # for requests without one; vLLM's own 0 makes every engine draw alike
                "seed": secrets.randbelow(2**31),
                **parallel_arguments(model),
                "disable_log_stats": True,
                "use_tqdm_on_load": False,
                **options,
            }
            try:
                arguments = AsyncEngineArgs(**given)
                # sequences at once and tokens a step: vLLM takes small ones without a usage context
                config = arguments.create_engine_config(usage_context=UsageContext.LLM_CLASS)
                self._context: int = config.model_config.max_model_len
                chat.check_room(model.sampling, self._context)
                self._llm: AsyncLLM | None = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
            except ModelLoadError:
                raise
            except Exception as error:  # pydantic's, torch's, or the engine process's RuntimeError
                raise ModelLoadError(f"{model.name}: vLLM can't run {folder}: {one_line(error)}") from error
        self._defaults = _model_defaults(folder) if model.sampling.from_model else {}
        self._max_prompt_tokens = model.max_prompt_tokens
        self._stop = model.sampling.stop
        self._request_ids = map(str, itertools.count())

    async def generate(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """See `actors.engines.AdaptingEngine`."""
        prompt = self._prompt(messages, sampling)
        async with aclosing(self._outputs(prompt.ids, sampling, adapter, stream=False)) as outputs:
            answer, cached = await anext(outputs)
        logprobs = self._logprobs(answer, sampling) if sampling.logprobs is not None else None
        reasoning, text, thought = None, prompt.opened + answer.text, self._count(prompt, answer.token_ids)
        if self._parser:
            reasoning, text = self._parser.answer(prompt.ids).split(answer.text)
        return Completion(
            text,
            _reason(answer),
            len(prompt.ids),
            len(answer.token_ids),
            reasoning=reasoning,
            reasoning_tokens=thought,
            logprobs=logprobs,
            cached_prompt_tokens=cached,
        )

    async def stream(
        self, messages: list[Message], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.AdaptingEngine`. Pieces are what vLLM's own detokenizer lets go of."""
        prompt = self._prompt(messages, sampling)
        parsed = self._parser.answer(prompt.ids) if self._parser else None
        opened = "" if parsed else prompt.opened
        pieces: list[str | ReasoningDelta] = [opened]
        ids: list[int] = []
        logprobs: tuple[TokenLogprob, ...] | None = None if sampling.logprobs is None else ()
        cached: int | None = None
        if opened:
            yield opened
        async with aclosing(self._outputs(prompt.ids, sampling, adapter, stream=True)) as outputs:
            async for answer, found in outputs:
                cached = found
                ids += answer.token_ids
                if logprobs is not None:
                    logprobs += self._logprobs(answer, sampling)
                new = parsed.pieces(answer.text, answer.token_ids) if parsed else filter(None, [answer.text])
                for piece in new:
                    pieces.append(piece)
                    yield piece
        for piece in parsed.rest() if parsed else ():
            pieces.append(piece)
            yield piece
        yield Completion(
            "".join(piece for piece in pieces if isinstance(piece, str)),
            _reason(answer),
            len(prompt.ids),
            len(ids),
            reasoning="".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)) or None,
            reasoning_tokens=self._count(prompt, ids),
            logprobs=logprobs,
            cached_prompt_tokens=cached,
        )

    def _count(self, prompt: ChatPrompt, ids: Sequence[int]) -> int | None:
        """Tokens of reasoning in an answer."""
        return self._chat.reasoning_tokens(self._reasoning_parser, prompt.opened, None).count(ids)

    def _logprobs(self, answer: "CompletionOutput", sampling: Sampling) -> tuple[TokenLogprob, ...]:
        text = self._chat.token_text
        return tuple(read_logprobs(answer.token_ids, answer.logprobs or (), sampling.logprobs or 0, text))

    def _prompt(self, messages: list[Message], sampling: Sampling) -> ChatPrompt:
        prompt = self._chat.prompt(messages, sampling.template_variables)
        chat.check_fits(len(prompt.ids), sampling.max_tokens, self._context, self._max_prompt_tokens)
        return prompt

    async def _outputs(
        self, prompt_ids: list[int], sampling: Sampling, adapter: Adapter | None, *, stream: bool
    ) -> AsyncGenerator[tuple["CompletionOutput", int | None], None]:
        """Outputs of the answer, all of it at the end or what is new each time, with the prompt's cached tokens."""
        if self._llm is None:
            raise GenerationError("the engine is closed")
        from vllm.exceptions import VLLMError, VLLMValidationError
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        sampling = sampling.with_defaults(self._defaults)
        skip_special_tokens = not (self._chat.marks_reasoning or self._parser)
        request_id, lora = next(self._request_ids), await self._adapters.request(self._llm, adapter)
        try:
            if sampling.num_beams > 1:
                best = await beam_search(
                    self._llm, prompt_ids, sampling, request_id, lora, skip_special_tokens=skip_special_tokens
                )
                yield best, None
                return
            params = sampling_params(
                sampling,
                stop_token_ids=self._chat.token_ids({*self._stop, *sampling.stop}),
                skip_special_tokens=skip_special_tokens,
                thinking_token_budget=sampling.thinking_token_budget if self._bounds_reasoning else None,
                output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            )
            outputs = self._llm.generate(tokens_input(prompt_ids), params, request_id, lora_request=lora)
            async with aclosing(outputs):  # closed at once when cancelled: vLLM then aborts the request
                async for output in outputs:
                    yield output.outputs[0], output.num_cached_tokens
        except VLLMValidationError as error:
            raise PromptError(f"vLLM: {one_line(error)}") from error
        except VLLMError as error:
            raise GenerationError(f"vLLM: {one_line(error)}") from error

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        if self._llm is not None and self._llm.errored:
            raise BlendError("vLLM's engine process has died; its log above has the reason")

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()


def _cache_problem(dtype: str) -> str | None:
    """Reason why the engine for CPUs can't have a cache of this type.

    vLLM 0.32 takes any: with a bfloat16 cache under float32, 33 of 60 greedy answers were wrong (fp8: none).
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    able = CPUAttentionBackend.supported_kv_cache_dtypes
    return None if dtype in able else f"kv_cache_dtype: vLLM's engine for CPUs has {', '.join(able)}, not {dtype}"


def _model_defaults(folder: Path) -> dict[str, Any]:
    """The model's own sampling; none where it has no generation config."""
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return {}
    return model_defaults(GenerationConfig.from_pretrained(folder))


def _reason(last: "CompletionOutput") -> FinishReason:
    """Finish reason of the answer's last output.

    Raises:
        GenerationError: Something else ended it.
    """
    if last.finish_reason not in ("stop", "length"):
        raise GenerationError(f"vLLM ended the request: {last.finish_reason}")
    return last.finish_reason


def _decoding_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, own: Path) -> str:
    """Find a folder of the tokenizer for vLLM to decode with.

    vLLM would rebuild a published tokenizer.json by the class that its config names (see `load_tokenizer`). It gets
    the one that prompts are encoded with, saved so that nothing is rebuilt.

    Args:
        tokenizer: The one in use.
        folder: The model folder.
        own: An empty folder.

    Returns:
        The folder; the model's own for a tokenizer of the model's own code.
    """
    if type(tokenizer) is not PreTrainedTokenizerFast:
        return str(folder)
    tokenizer.save_pretrained(own)
    shutil.copy(folder / "config.json", own)  # vLLM looks for one, and reports an error where there is none
    return str(own)

"""A base LLM under transformers' `generate`, causal or seq2seq, on CPU or one GPU.

One thread decodes batch after batch; prompts that arrive meanwhile gather for the next one, so the model
never waits. An answer doesn't depend on the batch it was decoded in: padding is masked, sampling noise is
seeded per answer, and a prompt which breaks its batch is found by decoding that batch again one by one.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from actors.batches import padded, token_mask
from actors.engines import Completion, chat
from actors.errors import BlendError, GenerationError, one_line
from actors.records import FinishReason, Message
from actors.weights import load_config, load_model, load_tokenizer, locate, resolve_device, resolve_dtype
from configs.schema import Sampling, TransformersModel


@dataclass(eq=False, slots=True)
class _Request:
    messages: list[Message]
    sampling: Sampling  # without its seed: requests that differ in nothing else are decoded together
    seed: int | None
    future: Future[Completion] = field(default_factory=Future)
    abandoned: bool = False  # its caller is gone: stop decoding it


class TransformersEngine:
    """See `actors.engines.Engine`."""

    def __init__(self, model: TransformersModel) -> None:
        self._device = resolve_device(model.device)
        folder = locate(model.model, model.revision)
        trust = model.trust_remote_code
        config = load_config(folder, trust_remote_code=trust)
        self._seq2seq: bool = config.is_encoder_decoder
        self._context: int | None = model.max_model_len or getattr(
            config.get_text_config(), "max_position_embeddings", None
        )
        chat.check_room(model.sampling, self._context)
        self._tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        self._model = load_model(
            transformers.AutoModelForSeq2SeqLM if self._seq2seq else transformers.AutoModelForCausalLM,
            folder,
            device=self._device,
            dtype=resolve_dtype(model.dtype, self._device),
            trust_remote_code=trust,
        )
        self._vocabulary: int = self._model.get_input_embeddings().num_embeddings
        self._model.generation_config = _special_tokens(self._model.generation_config, self._tokenizer)

        self._max_batch_size = model.max_batch_size
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._closed = False
        self._broken: str | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"decode {model.name}", daemon=True)
        self._thread.start()

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        request = _Request(messages, sampling.model_copy(update={"seed": None}), sampling.seed)
        with self._changed:
            if self._closed:
                raise GenerationError("the engine is closed")
            self._waiting.append(request)
        # One turn of the loop later, so that prompts handed over together make one batch.
        asyncio.get_running_loop().call_soon(self._notify)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            request.abandoned = True
            raise

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        if self._broken:
            raise BlendError(f"the GPU fails in this process: {self._broken}")

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            for request in (*left, *self._running):
                request.abandoned = True
        for request in left:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(GenerationError("the engine was closed"))
        self._notify()
        await asyncio.to_thread(self._thread.join)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer([request for request in batch if request.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Request]:
        """Wait for prompts; take the first and those behind it with the same settings. Empty: closed."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: self._waiting or self._closed)
            alike = (r for r in self._waiting if r.sampling == self._waiting[0].sampling)
            self._running = list(islice(alike, self._max_batch_size))
            self._waiting = [r for r in self._waiting if r not in self._running]
            return self._running

    def _answer(self, batch: list[_Request]) -> None:
        """Give each request of a batch, which share their settings, its result or exception."""
        rows: list[list[int]] = []
        requests: list[_Request] = []
        for request in batch:
            try:
                rows.append(self._encode(request))
                requests.append(request)
            except Exception as error:  # a template is a program of the model's maker
                request.future.set_exception(_as_generation_error(error))
        try:
            completions = self._decode(rows, requests) if requests else []
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
                self._broken = one_line(error)
            if len(requests) == 1:
                requests[0].future.set_exception(_as_generation_error(error))
                return
            error.__traceback__ = None  # lets go of the batch's tensors
            for request in requests:
                self._answer([request])
            return
        for request, completion in zip(requests, completions, strict=True):
            request.future.set_result(completion)

    def _encode(self, request: _Request) -> list[int]:
        ids = chat.encode(self._tokenizer, request.messages)
        if max(ids, default=0) >= self._vocabulary:  # on a GPU such a row would end the process
            raise GenerationError("the prompt has a token that the model has no embedding for")
        chat.check_fits(len(ids), 0 if self._seq2seq else request.sampling.max_tokens, self._context)
        return ids

    @torch.inference_mode()
    def _decode(self, rows: list[list[int]], requests: list[_Request]) -> list[Completion]:
        """Answers of B prompts decoded together, in their order. rows: B lists of token ids."""
        sampling = requests[0].sampling
        side: Literal["left", "right"] = "right" if self._seq2seq else "left"
        pad = self._model.generation_config.pad_token_id
        ids_B_L = padded(rows, pad, device=self._device, side=side)
        output_B_T = self._model.generate(
            ids_B_L,
            attention_mask=token_mask(rows, device=self._device, side=side),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # where sampling is asked for, the last processor brings the randomness
            logits_processor=_processors(sampling, [request.seed for request in requests], self._device),
            stopping_criteria=StoppingCriteriaList([_Stop(self._tokenizer, requests, sampling.stop)]),
        )
        start = 1 if self._seq2seq else ids_B_L.shape[1]
        return [
            self._completion(answer, sampling, prompt_tokens=len(row))
            for row, answer in zip(rows, output_B_T[:, start:].tolist(), strict=True)
        ]

    def _completion(self, ids: list[int], sampling: Sampling, prompt_tokens: int) -> Completion:
        """The answer in `ids`, which may run on after its end. Token counts include the one that ended it."""
        ends = set(self._model.generation_config.eos_token_id)
        end = next((i + 1 for i, token in enumerate(ids) if token in ends), None)
        ids = ids[:end]
        text = _text(self._tokenizer, ids)
        if any(stop in text for stop in sampling.stop):
            low, high = 1, len(ids)  # the fewest tokens whose text holds a stop string
            while low < high:
                middle = (low + high) // 2
                found = any(stop in _text(self._tokenizer, ids[:middle]) for stop in sampling.stop)
                low, high = (low, middle) if found else (middle + 1, high)
            end, text = low, _text(self._tokenizer, ids[:low])
            text = text[: min(at for stop in sampling.stop if (at := text.find(stop)) >= 0)]
        reason: FinishReason = "stop" if end is not None else "length"
        return Completion(text, reason, prompt_tokens, len(ids) if end is None else end)


def _special_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The special tokens of a model's generation config, without its maker's beams and penalties.

    The tokenizer's end token counts too: chat models often leave it out of their generation config.
    """
    given = config.eos_token_id
    ends = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
    pads = (tokenizer.pad_token_id, config.pad_token_id, *sorted(ends), 0)  # any: padding is masked
    return GenerationConfig(
        eos_token_id=sorted(ends),
        pad_token_id=next(token for token in pads if token is not None),
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_bos_token_id=config.forced_bos_token_id,
        forced_eos_token_id=config.forced_eos_token_id,
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer. Half a character at its end is left out, as vLLM's detokenizer does."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def _as_generation_error(error: Exception) -> GenerationError:
    if isinstance(error, GenerationError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return GenerationError("the GPU's memory doesn't hold this prompt; lower max_model_len or max_tokens")
    return GenerationError(one_line(error))


def _processors(sampling: Sampling, seeds: Sequence[int | None], device: torch.device) -> LogitsProcessorList:
    """What turns logits into scores whose argmax is the next token: nothing for greedy decoding. seeds: B."""
    processors = LogitsProcessorList()
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(_GumbelNoise(seeds, device))
    return processors


class _GumbelNoise(LogitsProcessor):
    """Makes the argmax an exact sample of softmax(scores): the Gumbel-max trick.

    Step t of an answer with a seed gets the noise that this seed gives at step t, whatever the batch; answers
    without one (None) get each their own. seeds: B, one per answer.
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device) -> None:
        rows: dict[int | None, list[int]] = {}
        for row, seed in enumerate(seeds):
            rows.setdefault(seed, []).append(row)
        self._free = torch.tensor(rows.pop(None, []), dtype=torch.long, device=device)
        self._seeded = [
            (torch.Generator(device).manual_seed(seed), torch.tensor(of_seed, device=device))
            for seed, of_seed in rows.items()
            if seed is not None
        ]

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        noise_B_V = torch.empty_like(scores_B_V)
        noise_B_V[self._free] = torch.empty_like(scores_B_V[: len(self._free)]).exponential_()
        for generator, rows in self._seeded:
            noise_B_V[rows] = torch.empty_like(scores_B_V[0]).exponential_(generator=generator)
        return scores_B_V - noise_B_V.log()


class _Stop(StoppingCriteria):
    """Ends a row when its text holds a stop string, or when nobody waits for it any more.

    Only the newest tokens are looked at, enough to hold the longest stop string; the exact cut is made
    afterwards. transformers' own `stop_strings` also match across the end of the prompt, vLLM's don't.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, requests: Sequence[_Request], stop: tuple[str, ...]
    ) -> None:
        self._tokenizer, self._requests, self._stop = tokenizer, requests, stop
        # A token holds at least a byte; the window may begin within a character or behind special tokens.
        self._window = max((len(text.encode()) for text in stop), default=0) + 8
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self._steps += 1
        done = [request.abandoned for request in self._requests]
        if self._stop:
            newest = input_ids[:, -min(self._steps, self._window) :].tolist()
            for row, ids in enumerate(newest):
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                done[row] |= any(stop in text for stop in self._stop)
        return torch.tensor(done, device=input_ids.device)

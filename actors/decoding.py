"""Decoder of token ids under transformers' `generate`, causal or seq2seq, many requests at a time.

One thread decodes. Requests of a causal model join the running batch between two tokens, and leave it when their
answers end (`continuous`). Where that can't be, batch follows batch: encoder-decoders, beams, other caches.

An answer doesn't depend on what it was decoded with: padding is masked, sampling noise is seeded per answer, and a
request which breaks its batch is found by decoding that batch again one by one. An answer is returned when it ends,
not when its batch does; a stream gets it piece by piece.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_blender_ray.actors.batching import padded, token_mask
from llm_blender_ray.actors.continuous import PREFILL_TOKENS, CacheError, RunningBatch, can_join
from llm_blender_ray.actors.detokenization import Detokenizer, Transcript
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError, GenerationError, PromptError, RejectedError, one_line
from llm_blender_ray.actors.records import FinishReason
from llm_blender_ray.configs.schema import Sampling

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Request:
    """A request and its result queue: made in the caller's event loop, filled from the decoding thread."""

    ids: list[int]
    sampling: Sampling  # without its seed: a batch that none can join is of requests that differ in nothing else
    seed: int | None
    followed: bool
    abandoned: bool = False  # its caller is gone: stop decoding it
    done: bool = False  # the completion is in the queue
    sent: str = ""  # the pieces put so far
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _told: asyncio.Queue[str | Completion | Exception] = field(default_factory=asyncio.Queue)

    @property
    def over(self) -> bool:
        """Whether there is nothing more to decode."""
        return self.done or self.abandoned

    async def next(self) -> str | Completion:
        """The next piece, or the completion; an error that was put is raised."""
        item = await self._told.get()
        if isinstance(item, Exception):
            raise item
        return item

    def put(self, item: str | Completion | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._told.put_nowait, item)
        except RuntimeError:  # the loop is closed
            self.abandoned = True

    def put_text(self, text: str) -> None:
        """Send the new part of `text`, the answer so far. An answer decoded again continues where it was."""
        if piece := text[len(self.sent) :]:
            self.sent += piece
            self.put(piece)

    def finish(self, completion: Completion) -> None:
        if self.followed:
            self.put_text(completion.text)
            completion = replace(completion, text=self.sent)
        self.done = True
        self.put(completion)


class _Answer:
    """Answer to one request in one attempt to decode it. A `continuous.Row`."""

    def __init__(
        self,
        request: _Request,
        detokenizer: Detokenizer,
        ends: frozenset[int],
        processors: LogitsProcessorList | None = None,
    ) -> None:
        self.ids, self.processors = request.ids.copy(), processors or LogitsProcessorList()
        self.request, self._detokenizer, self._ends = request, detokenizer, ends
        self._stop = request.sampling.stop
        self._transcript = Transcript(detokenizer, self._stop) if request.followed or self._stop else None
        self._text = ""

    @property
    def over(self) -> bool:
        return self.request.over

    @property
    def tokens_left(self) -> int:
        return self.request.sampling.max_tokens - (len(self.ids) - len(self.request.ids))

    def push(self, token: int) -> None:
        """One more token."""
        if self.over:
            return
        self.ids.append(token)
        if self._transcript is not None:
            self._text += self._transcript.push(token)
            if self.request.followed:
                self.request.put_text(self._text)
        stopped = self._transcript is not None and self._transcript.stopped
        if token in self._ends or stopped or not self.tokens_left:
            self.finish(self.ids[len(self.request.ids) :])

    def finish(self, ids: list[int]) -> None:
        """Complete the request with the answer in `ids`, which may continue after its end. The end token counts."""
        end = next((i + 1 for i, token in enumerate(ids) if token in self._ends), None)
        ids = ids[:end]
        text, stopped = self._detokenizer.until(ids, self._stop)
        end = end if stopped is None else stopped
        reason: FinishReason = "length" if end is None else "stop"
        tokens = len(ids) if end is None else end
        self.request.finish(Completion(text, reason, len(self.request.ids), tokens))


class BatchDecoder:
    """A model, and the thread that decodes with it."""

    def __init__(
        self,
        model: PreTrainedModel,
        detokenizer: Detokenizer,
        *,
        name: str,
        pad_id: int,
        max_batch_size: int,
        smaller: str,
        num_beams: int = 1,
        continuous: bool = True,
    ) -> None:
        """Use the model's generation config, except for what a request's sampling sets.

        Args:
            model: A transformers model that generates.
            detokenizer: Makes text of tokens.
            name: Of the model, for messages.
            pad_id: Any token; padding is masked.
            max_batch_size: Most requests decoded together.
            smaller: The settings that bound the memory of a request, for messages.
            num_beams: More than one: beam search, whose answer is known only at its end.
            continuous: Whether requests join a running batch, where the model allows it.
        """
        self._model, self._detokenizer = model, detokenizer
        self._pad_id, self._max_batch_size, self._num_beams = pad_id, max_batch_size, num_beams
        self._name, self._smaller = name, smaller
        self._seq2seq: bool = model.config.is_encoder_decoder
        self._joins = continuous and num_beams == 1 and can_join(model)
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        given = model.generation_config.eos_token_id
        self._ends = frozenset(given if isinstance(given, list) else [] if given is None else [given])

        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._closed = False
        self._broken: str | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # only once it is needed: it keeps the model in memory

    async def complete(self, ids: list[int], sampling: Sampling) -> Completion:
        """Answer a prompt of token ids. Cancelling the call stops the work.

        Raises:
            GenerationError: There is no answer.
            PromptError: The model has no embedding for one of the ids.
        """
        request = self._submit(ids, sampling, sampling.seed, followed=False)
        try:
            completion = await request.next()
        finally:
            request.abandoned = True
        assert isinstance(completion, Completion)  # only streams get pieces
        return completion

    async def stream(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """Stream the same answer: non-empty pieces of its text as they are certain, then the completion.

        With beams there is one piece. Closing the iterator stops the work.

        Raises:
            GenerationError: See `complete`.
        """
        # A seed in any case: should its batch have to be decoded again, the answer continues as it began.
        seed = secrets.randbelow(2**63) if sampling.seed is None else sampling.seed
        request = self._submit(ids, sampling, seed, followed=True)
        try:
            item: str | Completion = ""
            while not isinstance(item, Completion):
                item = await request.next()
                yield item
        finally:
            request.abandoned = True

    def check(self) -> None:
        """Check that the model can still answer.

        Raises:
            BlendError: The accelerator has failed: no later request can be answered in this process.
        """
        if self._broken:
            raise BlendError(f"the GPU fails in this process: {self._broken}")

    async def close(self) -> None:
        """End the thread. Open requests fail."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            left += [request for request in self._running if not request.over]
            for request in left:
                request.abandoned = True
            self._changed.notify_all()
        for request in left:
            request.put(GenerationError("the model was closed"))
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _submit(self, ids: list[int], sampling: Sampling, seed: int | None, *, followed: bool) -> _Request:
        if max(ids, default=0) >= self._vocabulary:  # on a GPU such a row would end the process
            raise PromptError("the prompt has a token that the model has no embedding for")
        request = _Request(ids, sampling.model_copy(update={"seed": None}), seed, followed)
        with self._changed:
            if self._closed:
                raise GenerationError("the model is closed")
            self._waiting.append(request)
        # One turn of the loop later, so that requests made together share a batch.
        asyncio.get_running_loop().call_soon(self._begin)
        return request

    def _begin(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next_batch():
            if self._joins:
                self._answer_joining(batch)
            else:
                self._answer(batch)

    def _next_batch(self) -> list[_Request]:
        """Wait for requests, and take those of one batch. Empty: closed."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: self._open() or self._closed)
            return self._start()

    def _newcomers(self) -> list[_Request]:
        """Take some of those that wait, if the running batch has room."""
        with self._changed:
            self._running = [request for request in self._running if not request.over]
            return self._start() if self._open() else []

    def _open(self) -> bool:
        """Whether requests wait that still have a caller. The lock is held."""
        self._waiting = [request for request in self._waiting if not request.abandoned]
        return bool(self._waiting)

    def _start(self) -> list[_Request]:
        """Move the first request and those next in length from waiting to running. The lock is held.

        Where none can join later, all have the first one's settings; else as many as are prefilled quickly.
        """
        room = self._max_batch_size - len(self._running)
        if not self._waiting or not room:
            return []
        first, new, longest = self._waiting[0], list[_Request](), 0
        alike = [request for request in self._waiting if self._joins or request.sampling == first.sampling]
        for request in sorted(alike, key=lambda request: abs(len(request.ids) - len(first.ids)))[:room]:
            longest = max(longest, len(request.ids))
            if self._joins and new and longest * (len(new) + 1) > PREFILL_TOKENS:
                break
            new.append(request)
        self._running = [*self._running, *new]
        self._waiting = [request for request in self._waiting if request not in new]
        return new

    def _answer_joining(self, new: list[_Request]) -> None:
        """Decode requests, and those that arrive meanwhile, until all are answered."""
        batch = RunningBatch(self._model, self._pad_id)
        try:
            with torch.inference_mode():
                while new or batch.rows:
                    batch.join([self._row(request) for request in new])
                    batch.decode(lambda: bool(self._waiting) and len(batch.rows) < self._max_batch_size)
                    new = self._newcomers()
        except CacheError:
            with self._changed:
                self._joins = False
                self._waiting = [*self._running, *self._waiting]
        except Exception as error:
            del batch
            self._recover(self._running, error)

    def _row(self, request: _Request) -> _Answer:
        processors = _processors(request.sampling, [request.seed], self._model.device)
        return _Answer(request, self._detokenizer, self._ends, processors)

    def _answer(self, batch: list[_Request]) -> None:
        """Decode a batch of requests with the same settings, and put each one's answer or error."""
        try:
            self._decode(batch)
        except Exception as error:
            self._recover(batch, error)

    def _recover(self, batch: list[_Request], error: Exception) -> None:
        """After a failure, decode the requests of a batch one by one; one that was alone gets the error."""
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            self._broken = one_line(error)
        error.__traceback__ = None  # lets go of the batch's tensors
        if len(batch) > 1:
            _log.warning(
                "%s: %d answers failed together, so each is tried alone: %s",
                self._name,
                len(batch),
                one_line(error),
            )
        left = [request for request in batch if not request.over]
        for request in left:
            if len(batch) == 1:
                request.put(self._as_generation_error(error))
            else:
                self._answer([request])

    def _as_generation_error(self, error: Exception) -> GenerationError:
        if isinstance(error, torch.OutOfMemoryError):
            return RejectedError(f"the GPU's memory doesn't hold this prompt; lower {self._smaller}")
        return GenerationError(one_line(error))

    @torch.inference_mode()
    def _decode(self, batch: list[_Request]) -> None:
        """Decode B requests together, and put each answer into its queue."""
        rows = [request.ids for request in batch]
        answers = [_Answer(request, self._detokenizer, self._ends) for request in batch]
        sampling = batch[0].sampling
        side: Literal["left", "right"] = "right" if self._seq2seq else "left"
        ids_B_L = padded(rows, self._pad_id, device=self._model.device, side=side)
        listener = _Deserted(batch) if self._num_beams > 1 else _Reading(answers)
        output_B_T = self._model.generate(
            ids_B_L,
            attention_mask=token_mask(rows, device=self._model.device, side=side),
            max_new_tokens=sampling.max_tokens,
            num_beams=self._num_beams,
            do_sample=False,  # for sampling, the last processor adds the randomness
            logits_processor=_processors(sampling, [request.seed for request in batch], self._model.device),
            stopping_criteria=StoppingCriteriaList([listener]),
            return_dict_in_generate=False,
        )
        start = 1 if self._seq2seq else ids_B_L.shape[1]
        for answer, ids in zip(answers, output_B_T[:, start:].tolist(), strict=True):
            if not answer.over:
                answer.finish(ids)


class _Reading(StoppingCriteria):
    """Reads every step's tokens, and ends a row when its answer is over."""

    def __init__(self, answers: Sequence[_Answer]) -> None:
        self._answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        for answer, token in zip(self._answers, input_ids[:, -1].tolist(), strict=True):
            answer.push(token)
        return torch.tensor([answer.over for answer in self._answers], device=input_ids.device)


class _Deserted(StoppingCriteria):
    """Ends a search when the callers of all its answers are gone; one beam ended alone counts as an answer."""

    def __init__(self, batch: Sequence[_Request]) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        deserted = all(request.abandoned for request in self._batch)
        return torch.full((len(input_ids),), deserted, device=input_ids.device)


def _processors(sampling: Sampling, seeds: Sequence[int | None], device: torch.device) -> LogitsProcessorList:
    """Processors that turn logits into scores whose argmax is the next token; none if greedy. seeds: B."""
    processors = LogitsProcessorList()
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(sampling.local_temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(GumbelNoise(seeds, device))
    return processors


class GumbelNoise(LogitsProcessor):
    """Makes the argmax an exact sample of softmax(scores): the Gumbel-max trick.

    Step t of an answer with a seed gets the noise of this seed at step t, whatever the batch; answers without one
    (None) get random noise. `seeds` is B, one per answer.
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
        """Add the noise (transformers' hook)."""
        noise_B_V = torch.empty_like(scores_B_V)
        noise_B_V[self._free] = torch.empty_like(scores_B_V[: len(self._free)]).exponential_()
        for generator, rows in self._seeded:
            noise_B_V[rows] = torch.empty_like(scores_B_V[0]).exponential_(generator=generator)
        return scores_B_V - noise_B_V.log()

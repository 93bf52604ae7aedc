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
from typing import Literal

import torch
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from llm_blender_ray.actors.adapters import rows_adapters
from llm_blender_ray.actors.answers import DecodedAnswer, DecodingRequest
from llm_blender_ray.actors.batching import padded, token_mask
from llm_blender_ray.actors.continuous import PREFILL_TOKENS, RunningBatch, UnjoinableCacheError, can_join
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.reasoning_tokens import ReasoningTokens
from llm_blender_ray.actors.errors import BlendError, GenerationError, PromptError, RejectedError, one_line
from llm_blender_ray.actors.logits import ForcedTokens, LogprobRecorder, logits_processors
from llm_blender_ray.configs.sampling import BeamSampling, Sampling

_log = logging.getLogger(__name__)


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
            continuous: Whether requests join a running batch, where the model allows it.
        """
        self._model, self._detokenizer = model, detokenizer
        self._pad_id, self._max_batch_size = pad_id, max_batch_size
        self._name, self._smaller = name, smaller
        self._seq2seq: bool = model.config.is_encoder_decoder
        self._joins = continuous and can_join(model)
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        given = model.generation_config.eos_token_id
        self._ends = frozenset(given if isinstance(given, list) else [] if given is None else [given])

        self._waiting: list[DecodingRequest] = []
        self._running: list[DecodingRequest] = []
        self._closed = False
        self._broken: str | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # only once it is needed: it keeps the model in memory

    async def complete(
        self,
        ids: list[int],
        sampling: Sampling,
        reasoning: ReasoningTokens | None = None,
        adapter: int | None = None,
    ) -> Completion:
        """Answer a prompt of token ids. Cancelling the call stops the work.

        Args:
            ids: The prompt.
            sampling: The settings.
            reasoning: Reads and bounds the reasoning in the answer; None: there is none.
            adapter: Number of the adapter that answers (`adapters.with_adapters`); None: the model alone.

        Raises:
            GenerationError: There is no answer.
            PromptError: The model has no embedding for one of the ids, or no token for one of `logit_bias`.
        """
        request = self._submit(ids, sampling, sampling.seed, reasoning, adapter, followed=False)
        try:
            completion = await request.next()
        finally:
            request.abandoned = True
        assert isinstance(completion, Completion)  # only streams get pieces
        return completion

    async def stream(
        self,
        ids: list[int],
        sampling: Sampling,
        reasoning: ReasoningTokens | None = None,
        adapter: int | None = None,
    ) -> AsyncGenerator[str | Completion, None]:
        """Stream the same answer: non-empty pieces of its text as they are certain, then the completion.

        A beam search gives one piece. Closing the iterator stops the work.

        Raises:
            GenerationError: See `complete`.
        """
        # A seed in any case: should its batch have to be decoded again, the answer continues as it began.
        seed = secrets.randbelow(2**63) if sampling.seed is None else sampling.seed
        request = self._submit(ids, sampling, seed, reasoning, adapter, followed=True)
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

    def _submit(
        self,
        ids: list[int],
        sampling: Sampling,
        seed: int | None,
        reasoning: ReasoningTokens | None,
        adapter: int | None,
        *,
        followed: bool,
    ) -> DecodingRequest:
        if max(ids, default=0) >= self._vocabulary:  # on a GPU such a row would end the process
            raise PromptError("the prompt has a token that the model has no embedding for")
        if max(sampling.logit_bias, default=0) >= self._vocabulary:
            raise PromptError(
                f"logit_bias: the model has {self._vocabulary} tokens, so none {max(sampling.logit_bias)}"
            )
        beam = sampling.beam if isinstance(sampling, BeamSampling) else 0
        request = DecodingRequest(ids, sampling.shared(), seed, beam, reasoning, followed, adapter)
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
            if self._may_join(batch[0]):
                self._answer_joining(batch)
            else:
                self._answer(batch)

    def _next_batch(self) -> list[DecodingRequest]:
        """Wait for requests, and take those of one batch. Empty: closed."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: self._open() or self._closed)
            return self._start()

    def _newcomers(self) -> list[DecodingRequest]:
        """Take some of those that wait, if the next one can join and the running batch has room."""
        with self._changed:
            self._running = [request for request in self._running if not request.over]
            return self._start() if self._open() and self._may_join(self._waiting[0]) else []

    def _open(self) -> bool:
        """Whether requests wait that still have a caller. The lock is held."""
        self._waiting = [request for request in self._waiting if not request.abandoned]
        return bool(self._waiting)

    def _start(self) -> list[DecodingRequest]:
        """Move the first request and those next in length from waiting to running. The lock is held.

        Where none can join later, all have the first one's settings; else as many as are prefilled quickly.
        """
        room = self._max_batch_size - len(self._running)
        if not self._waiting or not room:
            return []
        first, new, longest = self._waiting[0], list[DecodingRequest](), 0
        joins = self._may_join(first)
        alike = [
            request
            for request in self._waiting
            if (self._may_join(request) if joins else request.sampling == first.sampling)
        ]
        for request in sorted(alike, key=lambda request: abs(len(request.ids) - len(first.ids)))[:room]:
            longest = max(longest, len(request.ids))
            if joins and new and longest * (len(new) + 1) > PREFILL_TOKENS:
                break
            new.append(request)
        self._running = [*self._running, *new]
        self._waiting = [request for request in self._waiting if request not in new]
        return new

    def _may_join(self, request: DecodingRequest) -> bool:
        """Whether a request can join a running batch: no beam search can."""
        return self._joins and request.sampling.num_beams == 1

    def _answer_joining(self, new: list[DecodingRequest]) -> None:
        """Decode requests, and those that arrive meanwhile, until all are answered."""
        batch = RunningBatch(self._model, self._pad_id)
        try:
            with torch.inference_mode():
                while new or batch.rows:
                    batch.join([self._row(request) for request in new])
                    batch.decode(lambda: self._has_newcomer(len(batch.rows)))
                    new = self._newcomers()
        except UnjoinableCacheError:
            with self._changed:
                self._joins = False
                self._waiting = [*self._running, *self._waiting]
        except Exception as error:
            del batch
            self._recover(self._running, error)

    def _has_newcomer(self, rows: int) -> bool:
        """Whether the next request can join a batch of this many rows."""
        waiting = self._waiting  # one read: callers replace the list
        return bool(waiting) and self._may_join(waiting[0]) and rows < self._max_batch_size

    def _row(self, request: DecodingRequest) -> DecodedAnswer:
        processors, recorder = self._processors([request], len(request.ids))
        answer = DecodedAnswer(request, self._detokenizer, self._ends, processors, recorder)
        if request.sampling.thinking_token_budget is not None:
            answer.processors.append(ForcedTokens(lambda: [answer.forced]))
        return answer

    def _processors(
        self, batch: Sequence[DecodingRequest], prompt_length: int
    ) -> tuple[LogitsProcessorList, LogprobRecorder | None]:
        """Processors of B requests with the same settings, and that of them which records log-probabilities."""
        sampling = batch[0].sampling
        processors = logits_processors(
            sampling,
            [request.seed for request in batch],
            prompt_length=prompt_length,
            ends=self._ends,
            device=self._model.device,
        )
        if sampling.logprobs is None:
            return processors, None
        recorder = LogprobRecorder(sampling.logprobs)
        processors.insert(0, recorder)
        return processors, recorder

    def _answer(self, batch: list[DecodingRequest]) -> None:
        """Decode a batch of requests with the same settings, and put each one's answer or error."""
        try:
            self._decode(batch)
        except Exception as error:
            self._recover(batch, error)

    def _recover(self, batch: list[DecodingRequest], error: Exception) -> None:
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
    def _decode(self, batch: list[DecodingRequest]) -> None:
        """Decode B requests together, and put each answer into its queue."""
        answers = [DecodedAnswer(request, self._detokenizer, self._ends) for request in batch]
        sampling = batch[0].sampling
        prompts, rows = [(request.ids, request.adapter) for request in batch], list(range(len(batch)))
        if sampling.num_beams > 1:  # one search of a prompt gives all its answers
            distinct = list({(tuple(ids), adapter): (ids, adapter) for ids, adapter in prompts}.values())
            prompts, rows = distinct, [distinct.index(prompt) for prompt in prompts]
        ids_B_L, mask_B_L = self._inputs([ids for ids, _ in prompts])
        start = 1 if self._seq2seq else ids_B_L.shape[1]
        processors, recorder = self._processors(batch, start)
        if sampling.thinking_token_budget is not None:
            processors.append(ForcedTokens(lambda: [answer.forced for answer in answers]))
        beams = max(request.beam for request in batch) + 1
        listener = _Deserted(batch) if sampling.num_beams > 1 else _Reading(answers, recorder)
        output_BxN_T = self._model.generate(
            input_ids=ids_B_L,
            attention_mask=mask_B_L,
            max_new_tokens=sampling.max_tokens,
            num_beams=sampling.num_beams,
            num_return_sequences=beams,
            do_sample=False,  # for sampling, the last processor adds the randomness
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([listener]),
            return_dict_in_generate=False,
            **rows_adapters(self._model, [adapter for _, adapter in prompts]),
        )
        found = output_BxN_T[:, start:].tolist()
        for at, answer in zip(rows, answers, strict=True):
            if not answer.over:
                answer.finish(found[at * beams + answer.request.beam])

    def _inputs(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of B prompts. A causal model's are padded with their own last token, for penalties."""
        side: Literal["left", "right"] = "right" if self._seq2seq else "left"
        ids_B_L = padded(rows, self._pad_id, device=self._model.device, side=side)
        mask_B_L = token_mask(rows, device=self._model.device, side=side)
        if not self._seq2seq:
            ids_B_L = torch.where(mask_B_L.bool(), ids_B_L, ids_B_L[:, -1:])
        return ids_B_L, mask_B_L


class _Reading(StoppingCriteria):
    """Reads every step's tokens, and ends a row when its answer is over."""

    def __init__(self, answers: Sequence[DecodedAnswer], recorder: LogprobRecorder | None) -> None:
        self._answers, self._recorder = answers, recorder

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        tokens = input_ids[:, -1].tolist()
        logprobs = self._recorder.read(tokens) if self._recorder else [()] * len(tokens)
        for answer, token, read in zip(self._answers, tokens, logprobs, strict=True):
            answer.push(token, read)
        return torch.tensor([answer.over for answer in self._answers], device=input_ids.device)


class _Deserted(StoppingCriteria):
    """Ends a search when the callers of all its answers are gone; one beam ended alone counts as an answer."""

    def __init__(self, batch: Sequence[DecodingRequest]) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        deserted = all(request.abandoned for request in self._batch)
        return torch.full((len(input_ids),), deserted, device=input_ids.device)

"""One request to a decoder, and its answer in one attempt to decode it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import LogitsProcessorList

from llm_blender_ray.actors.detokenization import Detokenizer, Transcript
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.reasoning_tokens import ReasoningTokens
from llm_blender_ray.actors.logits import LogprobRecorder
from llm_blender_ray.actors.records import FinishReason, TokenLogprob
from llm_blender_ray.configs.schema import Sampling


@dataclass(eq=False, slots=True)
class DecodingRequest:
    """A request and its result queue: made in the caller's event loop, filled from the decoding thread."""

    ids: list[int]
    # without seed and beam: a batch that none can join is of requests that differ in nothing else
    sampling: Sampling
    seed: int | None
    beam: int  # which of a beam search's answers, from 0, the best
    reasoning: ReasoningTokens | None  # reads the answer's reasoning
    followed: bool
    adapter: int | None = None  # number of its adapter; None: the model alone
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
        """Send a piece, the completion or an error."""
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
        """Send the completion, and what is left of a stream's text."""
        if self.followed:
            self.put_text(completion.text)
            completion = replace(completion, text=self.sent)
        self.done = True
        self.put(completion)


class DecodedAnswer:
    """Answer to one request in one attempt to decode it. A `continuous.Row`."""

    def __init__(
        self,
        request: DecodingRequest,
        detokenizer: Detokenizer,
        ends: frozenset[int],
        processors: LogitsProcessorList | None = None,
        recorder: LogprobRecorder | None = None,
    ) -> None:
        """Begin.

        Args:
            request: The request.
            detokenizer: Makes text of tokens.
            ends: Tokens that end an answer.
            processors: Of its logits alone, where rows have their own.
            recorder: The one among them that records log-probabilities.
        """
        self.ids, self.processors = request.ids.copy(), processors or LogitsProcessorList()
        self.adapter, self._recorder = request.adapter, recorder
        self.request, self._detokenizer, self._ends = request, detokenizer, ends
        self._stop, self._min_tokens = request.sampling.stop, request.sampling.min_tokens
        follows = request.followed or self._stop
        self._transcript = Transcript(detokenizer, self._stop, self._min_tokens) if follows else None
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._forced = self._to_force()

    @property
    def forced(self) -> int | None:
        """The next token where it is given: of the mark that ends reasoning whose budget is used up."""
        return self._forced[0] if self._forced else None

    @property
    def over(self) -> bool:
        """See `continuous.Row`."""
        return self.request.over

    @property
    def tokens_left(self) -> int:
        """See `continuous.Row`."""
        return self.request.sampling.max_tokens - (len(self.ids) - len(self.request.ids))

    def push(self, token: int, logprobs: Sequence[tuple[int, float]] = ()) -> None:
        """One more token.

        Args:
            token: The token.
            logprobs: As `LogprobRecorder` reads them; none: the answer's own recorder has them, if it has one.
        """
        if self.over:
            return
        self.ids.append(token)
        self._forced = self._to_force() if self._forced is None else self._forced[1:]
        if self._recorder:
            (logprobs,) = self._recorder.read([token])
        if logprobs:
            first, *top = (TokenLogprob(self._detokenizer.token(i), value) for i, value in logprobs)
            self._logprobs.append(replace(first, top_logprobs=tuple(top)))
        if self._transcript is not None:
            self._text += self._transcript.push(token)
            if self.request.followed:
                self.request.put_text(self._text)
        stopped = self._transcript is not None and self._transcript.stopped
        if token in self._ends or stopped or not self.tokens_left:
            self.finish(self.ids[len(self.request.ids) :])

    def _to_force(self) -> list[int] | None:
        reasoning = self.request.reasoning
        return reasoning.forced(self.ids[len(self.request.ids) :]) if reasoning else []

    def finish(self, ids: list[int]) -> None:
        """Complete the request with the answer in `ids`, which may continue after its end. The end token counts."""
        end = next((i + 1 for i, token in enumerate(ids) if token in self._ends), None)
        ids = ids[:end]
        text, stopped = self._detokenizer.until(ids, self._stop, self._min_tokens)
        end = end if stopped is None else stopped
        reason: FinishReason = "length" if end is None else "stop"
        tokens = len(ids) if end is None else end
        logprobs = tuple(self._logprobs[:tokens]) if self.request.sampling.logprobs is not None else None
        thought = self.request.reasoning.count(ids[:tokens]) if self.request.reasoning else None
        prompt = len(self.request.ids)
        self.request.finish(Completion(text, reason, prompt, tokens, reasoning_tokens=thought, logprobs=logprobs))

"""GenFuser: a seq2seq LLM reads the prompt and the best candidates and writes one better answer.

The input is the original's to the token where it fits (llm-blender 0.0.2 `GenFuserDataset`): separators are the
tokenizer's `</s>` and `<extra_id_i>`, and a text that spells one stays text.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from llm_blender_ray.actors.batching import padded, token_mask
from llm_blender_ray.actors.decoding import BatchDecoder
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.engines import Completion, Piece
from llm_blender_ray.actors.errors import ModelLoadError, PromptError
from llm_blender_ray.actors.fusers import require_text, skip_leading_blanks
from llm_blender_ray.actors.merged_adapters import load_merged
from llm_blender_ray.actors.quantization import bitsandbytes_config
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.tokens import LiteralTokenizer, load_tokenizer_backend
from llm_blender_ray.actors.truncation import keep_ends, keep_last_turn
from llm_blender_ray.actors.weights import load_config, load_tokenizer, locate, resolve_device
from llm_blender_ray.configs.schema import GenFuser, Sampling, SamplingOverrides

END_OF_SEQUENCE = "</s>"
REQUEST = "Summarize candidates into a better one for the given instruction:"


def candidate_marker(index: int) -> str:
    """The special token in front of candidate `index`."""
    return f"<extra_id_{index}>"


@dataclass(frozen=True, slots=True)
class FuserInput:
    """Input of a fuser.

    Attributes:
        ids: Token ids, at most the template's `max_length`.
        candidates: How many of the candidates are in it, the best ones; None: all.
    """

    ids: list[int]
    candidates: int | None = None


class FuserTemplate:
    """Turns a prompt and its best candidates into the fuser's input.

    What fits is the original's to the token. Of what doesn't fit, the original drops the end, which is the request
    and the candidates; here the prompt is shortened so that both stay. A shortened prompt is at most half of the
    input: the included fuser's answers follow its candidates in 100 tokens, hardly in 300, and not at all in 1,024.
    Where the candidates alone are too long, the last ones are left out; the prompt then has a quarter of the input.
    """

    def __init__(
        self,
        tokenizer: LiteralTokenizer,
        *,
        max_length: int,
        candidate_max_length: int,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        """Makes a template.

        Args:
            tokenizer: The fuser's tokenizer.
            max_length: Tokens of the whole input.
            candidate_max_length: Tokens of one candidate.
            clean: What the published tokenizer does to decoded text (`clean_up_tokenization_spaces`), if anything.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._candidate_max_length = candidate_max_length
        self._clean = clean or str

    def build(self, prompt: Prompt, candidates: Sequence[str]) -> FuserInput:
        """The input for a prompt and its candidates, best first.

        Raises:
            KeyError: The tokenizer has too few `<extra_id_i>` tokens for that many candidates.
        """
        texts = [self._cut(text, self._candidate_max_length) for text in candidates]
        ids = self._ids(*prompt.texts(), texts)
        if len(ids) <= self._max_length:
            return FuserInput(ids)
        prompt_tokens = len(ids) - len(self._ids("", "", texts))
        reserve = min(prompt_tokens, self._max_length // 4)
        while len(texts) > 1 and len(self._ids("", "", texts)) + reserve > self._max_length:
            texts.pop()
        excess = len(self._ids("", "", texts)) + reserve - self._max_length
        if excess > 0 and texts:
            texts = [self._cut(texts[0], max(1, len(self._tokenizer.encode(texts[0])) - excess - 1))]
        fixed = len(self._ids("", "", texts))
        room = min(self._max_length - fixed, fixed)
        while len(ids := self._ids(*self._shortened(prompt, room), texts)) > self._max_length and room > 0:
            room -= len(ids) - self._max_length
        return FuserInput(ids[: self._max_length], len(texts) if len(texts) < len(candidates) else None)

    def input_ids(self, instruction: str, input: str, candidates: Sequence[str]) -> list[int]:
        """The ids of `build` for an instruction and an input."""
        return self.build(Prompt("", instruction, input), candidates).ids

    def _ids(self, instruction: str, input: str, candidates: Sequence[str]) -> list[int]:
        end = self._tokenizer.mark(END_OF_SEQUENCE)
        numbered = (
            f"Candidate {i}: {self._tokenizer.mark(candidate_marker(i))}:{text}"
            for i, text in enumerate(candidates)
        )
        text = end.join([f"Instruction: {instruction}", f"Input: {input}", *numbered, REQUEST])
        return self._tokenizer.encode(text)

    def _cut(self, text: str, length: int) -> str:
        ids = self._tokenizer.encode(text)
        if len(ids) <= length:
            return text
        return self._clean(self._tokenizer.decode_marked(ids[:length])) + "..."

    def _shortened(self, prompt: Prompt, length: int) -> tuple[str, str]:
        """(instruction, input) of about `length` tokens: the end of a chat, or both ends of long texts."""
        length = max(length, 0)
        turns = prompt.turns()
        if len(turns) > 1:
            return self._tokenizer.decode_marked(keep_last_turn(self._tokenizer.encode_many(turns), length)), ""
        instruction, input = prompt.texts()
        first, second = (self._tokenizer.encode(text) for text in (instruction, input))
        share = min(len(first), max(length // 2, length - len(second)))
        return self._ends(instruction, first, share), self._ends(input, second, length - share)

    def _ends(self, text: str, ids: Sequence[int], length: int) -> str:
        head, tail = keep_ends(ids, length)
        if not tail and len(head) == len(ids):
            return text
        return " ... ".join(self._tokenizer.decode_marked(part) for part in (head, tail) if part)


class GenFuserModel:
    """One model, loaded and ready. See `actors.fusers.Fuser`."""

    def __init__(self, settings: GenFuser) -> None:
        """Load the model.

        Raises:
            ModelLoadError: The model can't be used.
        """
        self._settings = settings
        folder = locate(settings.model, settings.revision)
        device = resolve_device(settings.device)
        own = load_config(folder).dtype
        dtype = resolve_dtype(settings.dtype, device, own, without_bfloat16=torch.float32)  # T5 overflows float16
        quantization = bitsandbytes_config(settings.quantization, dtype)
        self._model = load_merged(
            AutoModelForSeq2SeqLM, folder, device=device, dtype=dtype, quantization=quantization
        )
        self._tokenizer = LiteralTokenizer(load_tokenizer_backend(folder))
        for token in (END_OF_SEQUENCE, candidate_marker(settings.top_k - 1)):
            if token not in self._tokenizer:
                raise ModelLoadError(
                    f"{folder}: its tokenizer has no {token}, which a fuser with top_k {settings.top_k} "
                    "reads; take a fuser based on T5, or a smaller top_k"
                )
        published = load_tokenizer(folder)
        self._pad_id = published.pad_token_id
        self._clean = published.clean_up_tokenization if published.clean_up_tokenization_spaces else None
        self.template = self._template(settings.candidate_max_length)
        self._longest = settings.max_new_tokens or settings.candidate_max_length
        self._detokenizer = Detokenizer(
            partial(self._tokenizer.decode, skip_special_tokens=True), published.get_vocab()
        )
        self._decoder = BatchDecoder(
            self._model,
            self._detokenizer,
            name="decode fuser",
            pad_id=self._pad_id,
            max_batch_size=settings.max_batch_size,
            smaller="max_length or max_new_tokens",
        )

    def _template(self, candidate_max_length: int) -> FuserTemplate:
        return FuserTemplate(
            self._tokenizer,
            max_length=self._settings.max_length,
            candidate_max_length=candidate_max_length,
            clean=self._clean,
        )

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        """See `actors.fusers.Fuser`. `change.max_tokens` can only shorten what the settings allow."""
        read = self._input(prompt, candidates)
        completion = require_text(await self._decoder.complete(read.ids, self._sampling(change)))
        return replace(completion, candidates_read=read.candidates)

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[Piece, None]:
        """See `actors.fusers.Fuser`."""
        read = self._input(prompt, candidates)
        async with aclosing(skip_leading_blanks(self._decoder.stream(read.ids, self._sampling(change)))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    piece = replace(piece, candidates_read=read.candidates)
                yield piece

    async def check_health(self) -> None:
        """See `actors.fusers.Fuser`."""
        self._decoder.check()

    async def close(self) -> None:
        """See `actors.fusers.Fuser`."""
        await self._decoder.close()

    def _input(self, prompt: Prompt, candidates: Sequence[str]) -> FuserInput:
        try:
            return self.template.build(prompt, candidates)
        except KeyError as error:
            raise PromptError(f"the fuser's tokenizer has no {error} to mark that many candidates with") from error

    def _sampling(self, change: SamplingOverrides | None) -> Sampling:
        own = Sampling(max_tokens=self._longest, num_beams=self._settings.num_beams)
        if change is None:
            return own
        shorter = min(change.max_tokens or self._longest, self._longest)
        return own.model_copy(update={"max_tokens": shorter, "stop": change.stop or ()})

    def fuse_all(
        self,
        items: Sequence[tuple[Prompt, Sequence[str]]],
        *,
        candidate_max_length: int | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> list[str]:
        """One answer per item, in order, in this thread.

        Inputs of like length are decoded together, so little is padded; padding is masked.

        Args:
            items: Prompts, with candidate texts, best first.
            candidate_max_length: Tokens of a candidate; None: the setting.
            max_batch_size: Inputs decoded together; None: the setting.
            **options: Of transformers' `generate`; override the settings.

        Raises:
            KeyError: There are more candidates than the tokenizer has `<extra_id_i>` tokens.
        """
        candidate_max_length = candidate_max_length or self._settings.candidate_max_length
        options = {
            "num_beams": self._settings.num_beams,
            "max_new_tokens": self._settings.max_new_tokens or candidate_max_length,
            "do_sample": False,
            **options,
            "return_dict_in_generate": False,
        }
        template = self._template(candidate_max_length)
        inputs = [template.build(prompt, texts).ids for prompt, texts in items]
        by_length = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
        fused = [""] * len(inputs)
        size = max_batch_size or self._settings.max_batch_size
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            for i, text in zip(batch, self._generate([inputs[i] for i in batch], options), strict=True):
                fused[i] = text
        return fused

    @torch.inference_mode()
    def _generate(self, inputs: list[list[int]], options: dict[str, Any]) -> list[str]:
        ids_B_L = padded(inputs, self._pad_id, device=self._model.device)
        mask_B_L = token_mask(inputs, device=self._model.device)
        output = self._model.generate(input_ids=ids_B_L, attention_mask=mask_B_L, **options)
        return [self._detokenizer.text(row) for row in output.tolist()]

"""Reward model as a scorer: it reads every answer by itself; a matchup's score is the difference of two rewards.

So a row of n answers costs n forwards under any strategy, and later rounds cost none. An answer's reward depends on
its prompt and itself alone.
"""

import asyncio
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Encoding
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from llm_blender_ray.actors.batching import length_batches, padded
from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.records import Matchup, Message, Prompt, digest
from llm_blender_ray.actors.scorers import Score, ScoringError, Traits
from llm_blender_ray.actors.weights import (
    load_config,
    load_model,
    load_tokenizer,
    locate,
    resolve_device,
    weights_digest,
)
from llm_blender_ray.configs.schema import RewardModel

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # as PairRanker's
REWARDS_KEPT = 65536  # for the next round of the same rows


class AnswerTokenizer:
    """Makes one sequence of a prompt and an answer, in the form that the checkpoint reads.

    With a chat template: the chat, with the answer as its last turn. Without: a pair of texts, as
    `tokenizer(prompt, answer)` makes it. No text can spell a special token (`prompt_tokens`).
    """

    def __init__(
        self, folder: Path, max_length: int | None = None, *, positions: int | None = None, trust_remote_code: bool
    ) -> None:
        """max_length: tokens of a sequence; None: the tokenizer's own, at most the model's `positions`.

        Raises:
            ModelLoadError: The model can't be used.
        """
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self._chat = ChatTokenizer(tokenizer)
        longest: int = tokenizer.model_max_length
        self.max_length = max_length or min(longest, positions or longest)
        self.backend = tokenizer.backend_tokenizer

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own."""
        return self._chat.tokenizer.chat_template

    @property
    def typed(self) -> bool:
        """Whether the tokenizer separates prompt and answer by token types."""
        return "token_type_ids" in self._chat.tokenizer.model_input_names

    def encode(self, prompt: Prompt, answer: str) -> Encoding:
        """Encode prompt and answer as at most `max_length` tokens.

        What is too much goes from the prompt's left end, turn by turn; an answer which is too long by itself loses
        its right end.

        Raises:
            ScoringError: That isn't enough.
            GenerationError: The template refuses the chat.
        """
        question = [Message(role="user", content="\n".join(text for text in prompt.texts() if text))]
        turns = [*(prompt.chat() if self.chat_template else question), Message(role="assistant", content=answer)]
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in turns]  # may be cut here
        encoding = self._chat.encode_whole(turns)
        for turn in turns:
            while (excess := len(encoding) - self.max_length) > 0 and turn["content"]:
                turn["content"] = self._cut(turn["content"], excess, left=turn is not turns[-1])
                encoding = self._chat.encode_whole(turns)
        if excess > 0:
            raise ScoringError(f"the chat template alone takes more than max_length ({self.max_length}) tokens")
        return encoding

    def _cut(self, text: str, tokens: int, *, left: bool) -> str:
        """The text without that many tokens at an end, and without one character at least."""
        spans = self._chat.offsets(text)
        if tokens >= len(spans):
            return ""
        return text[max(spans[tokens][0], 1) :] if left else text[: min(spans[-tokens - 1][1], len(text) - 1)]


class RewardScorer:
    """One reward model, loaded and ready. Forwards run one after the other, in a thread of their own."""

    def __init__(self, settings: RewardModel) -> None:
        """Load the model.

        Raises:
            ModelLoadError: The model can't be used.
        """
        folder = locate(settings.model, settings.revision)
        config = load_config(folder, trust_remote_code=settings.trust_remote_code)
        if config.num_labels != 1:
            raise ModelLoadError(
                f"{folder}: classifies into {config.num_labels} labels; a reward model has one, "
                "and so num_labels: 1 in its config.json"
            )
        self.tokenizer = AnswerTokenizer(
            folder,
            settings.max_length,
            positions=getattr(config.get_text_config(), "max_position_embeddings", None),
            trust_remote_code=settings.trust_remote_code,
        )
        self._device = resolve_device(settings.device)
        self._model = load_model(
            AutoModelForSequenceClassification,
            folder,
            device=self._device,
            dtype=resolve_dtype(settings.dtype, self._device, config.dtype),
            trust_remote_code=settings.trust_remote_code,
        )
        identity = _identity(self._model, self.tokenizer, settings.results_version) if settings.cache else None
        self.traits = Traits(pointwise=True, identity=identity)
        self._model.config.use_cache = False  # nothing is generated
        self._vocabulary: int = self._model.get_input_embeddings().num_embeddings
        self._typed = self.tokenizer.typed and (getattr(config, "type_vocab_size", None) or 0) > 1
        pad = config.get_text_config().pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < self._vocabulary else None
        self._batch_tokens = settings.batch_tokens or BATCH_TOKENS["cpu" if self._device.type == "cpu" else "cuda"]
        self._kept: OrderedDict[bytes, Score] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "reward")  # torch's own threads belong to one thread of Python

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.score_gaps, matchups)

    async def check_health(self) -> None:
        """A model in this process can score as long as the process lives."""

    async def close(self) -> None:
        """See `actors.scorers.Scorer`."""
        await asyncio.to_thread(self._thread.shutdown)

    def score_gaps(self, matchups: Sequence[Matchup]) -> list[Score]:
        """The same as `score`, in the calling thread."""
        answers = [(matchup.prompt, text) for matchup in matchups for text in (matchup.left, matchup.right)]
        keys = [digest(prompt, text) for prompt, text in answers]
        rewards = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in rewards}
        rewards.update(zip(new, self.rewards(list(new.values())), strict=True))
        for key, reward in rewards.items():
            self._kept[key] = reward
            self._kept.move_to_end(key)
        while len(self._kept) > REWARDS_KEPT:
            self._kept.popitem(last=False)
        return [
            _difference(rewards[left], rewards[right]) for left, right in zip(keys[::2], keys[1::2], strict=True)
        ]

    @torch.inference_mode()
    def rewards(self, answers: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """The model's own output for each answer to its prompt, one forward each."""
        encodings = [self._encode(prompt, text) for prompt, text in answers]
        readable = {i: encoding for i, encoding in enumerate(encodings) if isinstance(encoding, Encoding)}
        rewards: dict[int, Score] = {i: e for i, e in enumerate(encodings) if isinstance(e, ScoringError)}
        places = list(readable)
        for batch in length_batches([len(readable[i]) for i in places], self._batch_tokens):
            some = [places[j] for j in batch]
            for i, reward in zip(some, self._forward([readable[i] for i in some]), strict=True):
                finite = math.isfinite(reward)
                rewards[i] = reward if finite else ScoringError(f"the reward is {reward}; try dtype: float32")
        return [rewards[i] for i in range(len(answers))]

    def _encode(self, prompt: Prompt, text: str) -> Encoding | ScoringError:
        try:
            encoding = self.tokenizer.encode(prompt, text)
        except ScoringError as error:
            return error
        except Exception as error:  # a template is a program of the model's maker
            return ScoringError(one_line(error))
        if not encoding.ids:
            return ScoringError("prompt and answer have no tokens")
        if max(encoding.ids) >= self._vocabulary:  # on a GPU such a row would end the process
            return ScoringError("prompt or answer has a token that the model has no embedding for")
        return encoding

    def _forward(self, encodings: Sequence[Encoding]) -> list[float]:
        device = self._device
        inputs = {
            "input_ids": padded([encoding.ids for encoding in encodings], self._padding(encodings), device=device),
            "attention_mask": padded([encoding.attention_mask for encoding in encodings], 0, device=device),
        }
        if self._typed:
            inputs["token_type_ids"] = padded([encoding.type_ids for encoding in encodings], 0, device=device)
        return self._model(**inputs).logits.float().reshape(len(encodings)).tolist()

    def _padding(self, encodings: Sequence[Encoding]) -> int:
        """The token to pad with, on the right.

        Decoders give the reward at a row's last token that isn't the config's pad token, whatever the mask is
        (transformers' `GenericForSequenceClassification`), and take a single row where the config names none. There
        any token does that ends none of the rows.
        """
        if self._pad is not None:
            return self._pad
        ends = {encoding.ids[-1] for encoding in encodings}
        pad = next(token for token in itertools.count() if token not in ends)
        self._model.config.get_text_config().pad_token_id = pad
        return pad


def _difference(left: Score, right: Score) -> Score:
    """The first error of the two, where there is one."""
    if isinstance(left, ScoringError):
        return left
    return right if isinstance(right, ScoringError) else left - right


def _identity(model: PreTrainedModel, tokenizer: AnswerTokenizer, version: int) -> str:
    """Digest of what decides a reward: weights and their precision, architecture, tokenizer, length, code."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    text = (tokenizer.backend.to_str(), tokenizer.chat_template, tokenizer.max_length)
    return weights_digest(model, config, *text, version)

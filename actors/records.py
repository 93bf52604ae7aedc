"""The records that pass between stages, and their Arrow columns (rows contract: docs/rows.md).

A row enters as a mapping with one of `instruction` (+ `input`), `prompt` or `messages`, and leaves with
candidates, ranking and fused text added. Everything is plain data: a stage sees text and numbers only.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import pyarrow as pa

from llm_blender_ray.actors.answer_pairs import (
    CONVERSATIONS,
    PAIR,
    common_beginning,
    read_conversations,
)
from llm_blender_ray.actors.budget import Payer
from llm_blender_ray.actors.chats import Message as Message
from llm_blender_ray.actors.chats import is_list, is_missing, read_messages
from llm_blender_ray.actors.errors import FieldError, RowError
from llm_blender_ray.actors.judged_pairs import JudgedAnswers
from llm_blender_ray.actors.metric_scores import MetricScores
from llm_blender_ray.actors.usage import USAGE_FIELDS, TokenUsage

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode categories: controls, formats, separators
FinishReason = Literal["stop", "length"]
Refusal = Literal["too long", "other"]  # of a prompt by an LLM


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt of a row. `messages` is set for chats; otherwise `instruction` and the optional `input`."""

    id: str
    instruction: str = ""
    input: str = ""
    messages: tuple[Message, ...] | None = None
    payer: Payer | None = field(default=None, compare=False)  # whom calls for it are charged to; not in rows

    def chat(self, system_prompt: str | None = None) -> list[Message]:
        """The prompt as chat messages; `system_prompt` comes first unless the chat has its own."""
        if self.messages is not None:
            turns = list(self.messages)
        else:
            turns = [Message(role="user", content="\n".join(t for t in (self.instruction, self.input) if t))]
        if system_prompt and not any(turn["role"] == "system" for turn in turns):
            turns.insert(0, Message(role="system", content=system_prompt))
        return turns

    def texts(self) -> tuple[str, str]:
        """(instruction, input) as the ranker and the fuser read them; a chat is its `turns`, a line each."""
        if self.messages is None:
            return self.instruction, self.input
        return "\n".join(self.turns()), ""

    def turns(self) -> tuple[str, ...]:
        """The turns of a chat as texts; one text for a prompt that isn't a chat.

        A chat of one turn is that turn. The turns of a longer one carry their role ("USER: ...", "ASSISTANT: ..."),
        the form in which the original's `compare_conversations` shows turns to PairRM.
        """
        if self.messages is None:
            return (self.instruction + self.input,)
        if len(self.messages) == 1:
            return (self.messages[0]["content"],)
        return tuple(f"{turn['role'].upper()}: {turn['content']}" for turn in self.messages)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log-probability by the model alone: before penalties, bias, temperature and cuts.

    Attributes:
        token: Its text; a token that is no whole character has U+FFFD in it.
        top_logprobs: The likeliest tokens in its place, most likely first.
    """

    token: str
    logprob: float
    top_logprobs: tuple["TokenLogprob", ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The token as in rows, with OpenAI's names."""
        top = [{"token": one.token, "logprob": one.logprob} for one in self.top_logprobs]
        return {"token": self.token, "logprob": self.logprob, "top_logprobs": top}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One LLM's answer; exactly one of `text` and `error` is set."""

    model: str | None
    text: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    extra: str | None = None  # JSON object of the fields that came with a given candidate (scores, ...)
    refused: Refusal | None = None  # the error is the prompt's own: this LLM will never answer it; not in rows
    permanent: bool = False  # the error holds for any prompt (`PermanentError`); not in rows
    rejected: bool = False  # the error is this request's, not the LLM's (`RejectedError`); not in rows
    unpaid: bool = False  # a budget had no room for the call (`BudgetError`); not in rows
    reasoning: str | None = None  # what the LLM has reasoned before `text`; in rows only as a part of `extra`
    reasoning_tokens: int | None = None  # those of `completion_tokens` that are reasoning; as `reasoning`
    logprobs: tuple[TokenLogprob, ...] | None = None  # of the answer's tokens; as `reasoning`
    # of all calls made for it, thrown away ones too; None: given, or stored by a version without it; not in rows
    usage: TokenUsage | None = field(default=None, compare=False)

    @property
    def known_usage(self) -> TokenUsage:
        """`usage`; of an unknown one what the candidate itself has: its own call, if it was answered."""
        if self.usage is not None:
            return self.usage
        if self.text is None:
            return TokenUsage()
        return TokenUsage.of_call(self.prompt_tokens, self.completion_tokens, None, self.reasoning_tokens)

    def to_row(self) -> dict[str, Any]:
        """The candidate as a value of `CANDIDATE_TYPE`."""
        return {name: getattr(self, name) for name in CANDIDATE_TYPE.names}


@dataclass(frozen=True, slots=True)
class Matchup:
    """Two answers to one prompt, as a scorer reads them: `left` stands on the left."""

    prompt: Prompt
    left: str
    right: str


def is_blank(text: str) -> bool:
    """Whether the text shows nothing: it is empty, or all of it is white space and invisible characters."""
    return not any(unicodedata.category(character) not in _INVISIBLE for character in text)


def digest(prompt: Prompt, *texts: str) -> bytes:
    """Digest (16 bytes) of a prompt's contents, without its id, and of these texts."""
    parts = [prompt.instruction, prompt.input, prompt.messages, *texts]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement of a scorer: how much better candidate `left` is than `right`, `left` standing on the left."""

    left: int
    right: int
    logit: float

    def swap(self) -> Self:
        """The same comparison with the sides swapped, as if there were no position bias."""
        return replace(self, left=self.right, right=self.left, logit=-self.logit)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Order of n candidates.

    Attributes:
        order: Candidate indexes, best first; candidates without text are left out.
        scores: One per candidate, higher is better; None for no text.
        logits: n x n, `logits[i][j]` with i on the left; None where not compared.
        comparisons: Forwards made.
        complete: False while the strategy would compare more; not in rows.
        unreadable: Comparisons left out because the scorer had no answer; not in rows.
        unpaid: Those of them that a budget had no room for; not in rows.
        usage: Calls of a judge for it; not in rows.
    """

    order: tuple[int, ...]
    scores: tuple[float | None, ...]
    logits: tuple[tuple[float | None, ...], ...]
    comparisons: int
    complete: bool = True
    unreadable: int = 0
    unpaid: int = 0
    usage: TokenUsage = field(default=TokenUsage(), compare=False)


@dataclass(frozen=True, slots=True)
class Blend:
    """A prompt, its candidates, their ranking, and what was fused from the best of them.

    Attributes:
        ranking_usage: Calls of LLMs for the ranking, also one that failed; None: unknown, as of a candidate.
        fusing_usage: The same for the fused text.
        references: Texts that a metric compares the answers with (`blend score`).
        scored: What one metric found (`blend score`).
        judged: What one LLM judge found of pairs of its answers (`blend judge`).
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    ranking: Ranking | None = None
    fused: str | None = None
    fused_from: tuple[int, ...] = ()
    error: str | None = None
    ranking_usage: TokenUsage | None = field(default=TokenUsage(), compare=False)
    fusing_usage: TokenUsage | None = field(default=TokenUsage(), compare=False)
    judged: JudgedAnswers | None = None
    references: tuple[str, ...] = ()
    scored: MetricScores | None = None


CANDIDATE_TYPE = pa.struct(
    [
        ("model", pa.string()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("extra", pa.string()),
    ]
)
RAW = "raw"  # a key of `extra`: what could not be taken
# Keys of `extra` with what a base LLM gives beside its answer on demand (`BaseLLM.candidate_fields`).
_TOKEN = [("token", pa.string()), ("logprob", pa.float64())]
ON_DEMAND_TYPES: dict[str, pa.DataType] = {
    "reasoning_content": pa.string(),
    "reasoning_tokens": pa.int64(),
    "logprobs": pa.list_(pa.struct([*_TOKEN, ("top_logprobs", pa.list_(pa.struct(_TOKEN)))])),
}
CANDIDATE_FIELDS = tuple(name for name in CANDIDATE_TYPE.names if name != "extra")  # of the rows contract
USAGE_TYPE = pa.struct([(name, pa.int64()) for name in USAGE_FIELDS])
MESSAGE_TYPE = pa.struct([("role", pa.string()), ("content", pa.string())])

REFERENCE_COLUMN = "\0references"  # column of `Blend.references`; it is never written

# What a row is made of on its way; a column that is not here is the user's and passes through untouched.
PROMPT_COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "instruction": pa.string(),
    "input": pa.string(),
    "prompt": pa.string(),
    "messages": pa.list_(MESSAGE_TYPE),
    "output": pa.string(),
    "candidates": pa.list_(CANDIDATE_TYPE),
    "error": pa.string(),
}
RESULT_COLUMNS: dict[str, pa.DataType] = {
    "ranking": pa.list_(pa.int64()),
    "scores": pa.list_(pa.float64()),
    "comparisons": pa.int64(),
    "logits": pa.list_(pa.list_(pa.float64())),
    "fused": pa.string(),
    "fused_from": pa.list_(pa.int64()),
}


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise FieldError(name, f"expected text, got {type(value).__name__}")
    return value


def prompt_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that the row's prompt is read from; others may hold anything.

    `messages` go first, then `instruction` with `input`, then `prompt`, which may be a list of messages (TRL's
    conversational form), then the common beginning of `chosen` and `rejected` (TRL's implicit prompt) or of
    `conversation_a` and `conversation_b`.
    """
    messages = row.get("messages")
    if not is_missing(messages) and (not is_list(messages) or len(messages)):
        return ("messages",)
    if not is_missing(row.get("instruction")):
        return ("instruction", "input")
    if not is_missing(row.get("prompt")):
        return ("prompt",)
    if not is_missing(row.get("input")):
        return ("input",)
    if "messages" in row and not is_missing(messages):
        return ("messages",)
    if common_beginning(row):
        return PAIR
    return CONVERSATIONS if read_conversations(row)[0] else ()


def read_prompt(row: Mapping[str, Any], most: int | None = None) -> Prompt:
    """The row's prompt. An id is made from the content when the row has none.

    Args:
        row: A row, as given or as it travels.
        most: Largest number of messages and content parts; None for no limit.

    Raises:
        FieldError: A field is of the wrong type, or can't be blended.
        RowError: The row has no prompt.
    """
    fields = prompt_fields(row)
    if fields == ("messages",):
        prompt = Prompt("", messages=read_messages(row["messages"], most=most))
    elif fields == ("prompt",) and is_list(row["prompt"]):
        prompt = Prompt("", messages=read_messages(row["prompt"], "prompt", most))
    elif fields == PAIR:
        prompt = Prompt("", messages=read_messages(common_beginning(row), "chosen", most))
    elif fields == CONVERSATIONS:
        prompt = Prompt("", messages=tuple(read_conversations(row)[0]))
    elif fields:
        instruction = _text(row, "prompt" if fields == ("prompt",) else "instruction")
        given_input = _text(row, "input") if "input" in fields else None
        prompt = Prompt("", instruction=instruction or "", input=given_input or "")
    else:
        raise RowError("no prompt: expected instruction, prompt or messages")
    if not any(turn["content"].strip() for turn in prompt.chat()):
        raise RowError("the prompt is empty")
    return replace(prompt, id=read_id(row))


def read_id(row: Mapping[str, Any]) -> str:
    """The row's own id as text, or one made from everything the row holds, so the same row gets the same id."""
    given = row.get("id")
    if not is_missing(given) and not isinstance(given, Mapping | list | tuple):
        return str(given)
    content = json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

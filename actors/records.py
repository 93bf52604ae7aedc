"""The records that pass between stages, and their Arrow columns (rows contract: README, "Rows").

A row enters as a mapping with one of `instruction` (+ `input`), `prompt` or `messages`, and leaves with
candidates, ranking and fused text added. Everything is plain data: a stage sees text and numbers only.
"""

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypedDict

import pyarrow as pa

from actors.errors import RowError

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode categories: controls, formats, separators
FinishReason = Literal["stop", "length"]
Refusal = Literal["too long", "other"]  # of a prompt by an LLM


class Message(TypedDict):
    """One turn of a chat, as OpenAI's API has it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked. `messages` is set for chats; otherwise `instruction` and the optional `input`."""

    id: str
    instruction: str = ""
    input: str = ""
    messages: tuple[Message, ...] | None = None

    def chat(self, system_prompt: str | None = None) -> list[Message]:
        """The prompt as chat messages; `system_prompt` goes first unless the chat brings its own."""
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
    permanent: bool = False  # the error is the LLM's own, whatever the prompt (`PermanentError`); not in rows
    rejected: bool = False  # the error is this request's, not the LLM's (`RejectedError`); not in rows

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
    """16 bytes that tell what is asked, whatever its id, and these texts apart from any others."""
    parts = [prompt.instruction, prompt.input, prompt.messages, *texts]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement of a scorer: how much better candidate `left` is than `right`, `left` standing on the left."""

    left: int
    right: int
    logit: float

    def swap(self) -> Self:
        """The same judgement told from the other side, as if there were no position bias."""
        return replace(self, left=self.right, right=self.left, logit=-self.logit)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of n candidates.

    order: candidate indexes, best first; candidates without text are left out.
    scores: one per candidate, higher is better; None where there was no text.
    logits: n x n, `logits[i][j]` with i on the left; None where not compared.
    comparisons: forwards made.
    complete: False while the strategy would compare more; not in rows.
    unreadable: comparisons left out because the scorer had no answer; not in rows.
    """

    order: tuple[int, ...]
    scores: tuple[float | None, ...]
    logits: tuple[tuple[float | None, ...], ...]
    comparisons: int
    complete: bool = True
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Blend:
    """A prompt, its candidates, their ranking, and what was fused from the best of them."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    ranking: Ranking | None = None
    fused: str | None = None
    fused_from: tuple[int, ...] = ()
    error: str | None = None


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
CANDIDATE_FIELDS = tuple(name for name in CANDIDATE_TYPE.names if name != "extra")  # of the rows contract
MESSAGE_TYPE = pa.struct([("role", pa.string()), ("content", pa.string())])

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
    if value is not None and not isinstance(value, str):
        raise RowError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _message(index: int, value: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(value, Mapping):
        raise RowError(f"{where}: expected an object with role and content, got {type(value).__name__}")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise RowError(f"{where}.role: expected text, got {type(role).__name__}")
    if isinstance(content, Sequence) and not isinstance(content, str):  # OpenAI's list of content parts
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise RowError(f"{where}.content: only text parts can be blended")
        content = "".join(texts)
    if not isinstance(content, str):
        raise RowError(f"{where}.content: expected text, got {type(content).__name__}")
    return Message(role=role, content=content)


def _candidate(index: int, value: Any) -> Candidate:
    where = f"candidates[{index}]"
    if not isinstance(value, Mapping):
        raise RowError(f"{where}: expected an object with model and text, got {type(value).__name__}")
    fields: dict[str, Any] = {name: value.get(name) for name in CANDIDATE_FIELDS}
    for name in ("model", "text", "error", "finish_reason"):
        if fields[name] is not None and not isinstance(fields[name], str):
            raise RowError(f"{where}.{name}: expected text, got {type(fields[name]).__name__}")
    for name in ("prompt_tokens", "completion_tokens"):
        if isinstance(fields[name], bool) or not isinstance(fields[name], int | None):
            raise RowError(f"{where}.{name}: expected a whole number, got {type(fields[name]).__name__}")
    if fields["text"] is None and fields["error"] is None:
        fields["error"] = "no text given"
    if fields["error"] is not None:
        fields["text"] = None
    extra = {name: item for name, item in value.items() if name not in CANDIDATE_FIELDS}
    return Candidate(**fields, extra=json.dumps(extra, default=plain) if extra else None)


def plain(value: Any) -> Any:
    """What JSON has no type for, as text: bytes in base64, dates and times in ISO 8601."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def read_prompt(row: Mapping[str, Any]) -> Prompt:
    """The row's prompt. An id is made from the content when the row has none.

    Raises RowError when there is nothing to ask, or a field is of the wrong type.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not len(messages):
            raise RowError("messages: expected a list of at least one message")
        turns = tuple(_message(i, value) for i, value in enumerate(messages))
        prompt = Prompt("", messages=turns)
    else:
        name = "instruction" if row.get("instruction") is not None else "prompt"
        instruction = _text(row, name)
        given_input = _text(row, "input") if name == "instruction" or row.get("prompt") is None else ""
        if instruction is None and given_input is None:
            raise RowError("no prompt: expected instruction, prompt or messages")
        prompt = Prompt("", instruction=instruction or "", input=given_input or "")
    if not any(turn["content"].strip() for turn in prompt.chat()):
        raise RowError("the prompt is empty")
    return replace(prompt, id=read_id(row))


def read_id(row: Mapping[str, Any]) -> str:
    """The row's own id as text, or one made from everything the row holds, so the same row gets the same id."""
    given = row.get("id")
    if given is not None and not isinstance(given, Mapping | list | tuple):
        return str(given)
    content = json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_candidates(row: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """The row's given candidates (none when it has no such column). Raises RowError on a malformed one."""
    given = row.get("candidates")
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise RowError(f"candidates: expected a list, got {type(given).__name__}")
    return tuple(_candidate(i, value) for i, value in enumerate(given))

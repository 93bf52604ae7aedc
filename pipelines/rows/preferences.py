"""Preference pairs of ranked rows, in the layout of TRL's DPOTrainer: conversational, explicit prompt.

https://huggingface.co/docs/trl/dataset_formats#preference; the other columns are for selecting pairs.
A row's pairs depend on the row alone: not on its block, the process, or the rest of the dataset.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple, TypedDict, assert_never

import pyarrow as pa

from llm_blender_ray.actors.records import MESSAGE_TYPE, Message, Prompt, digest, read_prompt
from llm_blender_ray.configs.preferences import Preferences

PREFERENCE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.list_(MESSAGE_TYPE),
        "chosen": pa.list_(MESSAGE_TYPE),
        "rejected": pa.list_(MESSAGE_TYPE),
        "score_chosen": pa.float64(),
        "score_rejected": pa.float64(),
        "chosen_model": pa.string(),
        "rejected_model": pa.string(),
    }
)
ANSWERED_ROLES = ("user", "tool", "assistant")  # of a prompt's last turn; TRL's apply_chat_template rejects others


class Preference(TypedDict):
    """A row of `PREFERENCE_SCHEMA`; `id` is that of its source row, which several may share."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    score_chosen: float
    score_rejected: float
    chosen_model: str | None
    rejected_model: str | None


class _Answer(NamedTuple):
    model: str | None
    text: str
    score: float


_Pair = tuple[_Answer, _Answer]  # chosen, rejected


def preference_table(rows: Iterable[Mapping[str, Any]], settings: Preferences) -> pa.Table:
    """Pairs of many rows, in the rows' order. See `preferences`."""
    return pa.Table.from_pylist(
        [pair for row in rows for pair in preferences(row, settings)], schema=PREFERENCE_SCHEMA
    )


def preferences(row: Mapping[str, Any], settings: Preferences) -> list[Preference]:
    """Pairs of one output row (of `rows.write_row`, or of a stage), those of the best answer first.

    The two scores of a pair differ, by at least `margin`, in the unit of the row's `scores`: usually their
    difference is an estimate of logit(chosen, rejected) - logit(rejected, chosen), twice the margin of `blend
    compare`. A row that has an error or is not ranked gives none. Blank answers take no part: they teach nothing.
    Of answers that differ only in outer white space, which many chat templates drop, the best counts for all.

    The prompt is the chat as the user gave it, without an LLM's own system prompt.
    """
    answers = _answers(row)
    if len(answers) < 2:
        return []
    prompt = read_prompt(row)
    chat = prompt.chat()
    if chat[-1]["role"] not in ANSWERED_ROLES:
        return []
    return [
        Preference(
            id=prompt.id,
            prompt=chat,
            chosen=[Message(role="assistant", content=chosen.text)],
            rejected=[Message(role="assistant", content=rejected.text)],
            score_chosen=chosen.score,
            score_rejected=rejected.score,
            chosen_model=chosen.model,
            rejected_model=rejected.model,
        )
        for chosen, rejected in _pairs(prompt, answers, settings)
    ]


def _answers(row: Mapping[str, Any]) -> list[_Answer]:
    """Answers that can be paired, best first."""
    candidates, scores = row.get("candidates"), row.get("scores")
    if row.get("error") is not None or not candidates or not scores:
        return []
    answers: dict[str, _Answer] = {}
    for index in row.get("ranking") or ():
        text, score = candidates[index]["text"], scores[index]
        if text and text.strip() and score is not None:
            answers.setdefault(text.strip(), _Answer(candidates[index]["model"], text, score))
    return list(answers.values())


def _pairs(prompt: Prompt, answers: list[_Answer], settings: Preferences) -> list[_Pair]:
    best, *others = answers
    limit = settings.max_pairs
    match settings.pairs:
        case "best-worst":
            proposed = [(best, others[-1])]
        case "best-random":
            proposed, limit = [(best, other) for other in others], 1
        case "all":
            proposed = list(combinations(answers, 2))
        case _:
            assert_never(settings.pairs)
    apart = [pair for pair in proposed if _differ(pair, settings.margin)]
    return apart if limit is None or len(apart) <= limit else _drawn(prompt, apart, limit, settings.seed)


def _differ(pair: _Pair, margin: float) -> bool:
    chosen, rejected = pair
    return chosen.score > rejected.score and chosen.score - rejected.score >= margin


def _drawn(prompt: Prompt, pairs: list[_Pair], count: int, seed: int) -> list[_Pair]:
    """`count` of the pairs at random, in their order: those of the smallest hashes.

    A pair's hash depends only on the seed and its texts, so that a candidate added later leaves most of the draw
    unchanged.
    """
    hashes = [digest(prompt, str(seed), chosen.text, rejected.text) for chosen, rejected in pairs]
    drawn = sorted(range(len(pairs)), key=hashes.__getitem__)[:count]
    return [pairs[i] for i in sorted(drawn)]

"""Preference data sets as rows: TRL's, RewardBench's, and MT-bench's conversations."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.records import Candidate, read_prompt
from llm_blender_ray.pipelines.llm_blender.blender.blender import Blender
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import read_row


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def judgment(turn: object = 1, **columns: Any) -> dict[str, Any]:
    """A row of MT-bench's human judgments."""
    return {
        "question_id": 81,
        "model_a": "alpaca-13b",
        "model_b": "gpt-3.5-turbo",
        "winner": "model_b",
        "judge": "author_2",
        "conversation_a": conversation("q1", "a1", "q2", "a2"),
        "conversation_b": conversation("q1", "b1", "q2", "b2"),
        "turn": turn,
        **columns,
    }


def test_the_first_turn_of_mt_bench() -> None:
    row = judgment()
    assert read_prompt(row).texts() == ("q1", "")
    assert read_candidates(row) == (Candidate("alpaca-13b", "a1"), Candidate("gpt-3.5-turbo", "b1"))


@pytest.mark.parametrize("turn", [2, 2.0, 9, None, "two"])
def test_a_later_turn_shows_all_answers(turn: object) -> None:
    row = judgment(turn)
    assert read_prompt(row).turns() == ("USER: q1", "ASSISTANT: <Response 1>", "USER: q2")
    assert [one.text for one in read_candidates(row)] == [
        "<Response 1>: a1\n<Response 2>: a2",
        "<Response 1>: b1\n<Response 2>: b2",
    ]


def test_answers_are_those_of_compare_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compare(_: Blender, inputs: Any, left: Any, right: Any, *rest: Any, **options: Any) -> None:
        seen.update(left=left, right=right)

    monkeypatch.setattr(Blender, "compare", compare)
    row = judgment(2)
    pair = [[{**one, "role": one["role"].upper()} for one in row[f"conversation_{side}"]] for side in "ab"]
    Blender.compare_conversations(Blender.__new__(Blender), [pair[0]], [pair[1]])
    assert [one.text for one in read_candidates(row)] == [*seen["left"], *seen["right"]]


def test_equal_turns_before_the_last_are_the_prompt() -> None:
    row = judgment(2, conversation_b=conversation("q1", "a1", "q2", "b2"))
    assert read_prompt(row).turns() == ("USER: q1", "ASSISTANT: a1", "USER: q2")
    assert [one.text for one in read_candidates(row)] == ["a2", "b2"]


@pytest.mark.parametrize(
    "columns",
    [
        {"conversation_b": conversation("another", "b1")},
        {"conversation_b": conversation("q1")},
        {"conversation_b": []},
        {"conversation_b": "a text"},
        {"conversation_b": [{"role": "nobody", "content": "x"}]},
    ],
)
def test_conversations_of_different_prompts_are_no_pair(columns: dict[str, Any]) -> None:
    row = read_row(judgment(**columns), "test")
    assert row["candidates"] is None
    assert row["error"] == "test: no prompt: expected instruction, prompt or messages"


def test_columns_with_a_prompt_of_their_own_come_first() -> None:
    row = judgment(instruction="p", candidates=["x", "y"])
    assert read_prompt(row).instruction == "p"
    assert [one.text for one in read_candidates(row)] == ["x", "y"]


def test_mt_bench_and_rewardbench_are_read_from_parquet(tmp_path: Path) -> None:
    """Types and columns stay, and the rows have prompts and candidates."""
    rewardbench = {
        "prompt": "p",
        "chosen": "good",
        "rejected": "bad",
        "chosen_model": "gpt-4",
        "rejected_model": "alpaca-7b",
        "subset": "alpacaeval-easy",
        "id": 0,
    }
    for name, row in (("mt", judgment(2)), ("rb", rewardbench)):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    (mt,) = read_rows(str(tmp_path / "mt.parquet"))
    assert (mt["error"], mt["turn"], mt["winner"]) == (None, 2, "model_b")
    assert [one["text"] for one in mt["candidates"]] == [one.text for one in read_candidates(judgment(2))]
    assert [one["content"] for one in mt["messages"]] == ["q1", "<Response 1>", "q2"]
    (rb,) = read_rows(str(tmp_path / "rb.parquet"))
    assert (rb["error"], rb["subset"], rb["prompt"]) == (None, "alpacaeval-easy", "p")
    assert [(one["model"], one["text"]) for one in rb["candidates"]] == [("gpt-4", "good"), ("alpaca-7b", "bad")]

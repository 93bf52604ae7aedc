"""Leaderboards of rows, their numbers by hand, and what a person is shown."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.contest import REFERENCE, Contest, LeaderboardOptions
from llm_blender_ray.pipelines.quality.leaderboard import leaderboard, leaderboard_of
from llm_blender_ray.pipelines.quality.leaderboard_tables import render_leaderboard
from llm_blender_ray.pipelines.quality.metrics import read_metric
from llm_blender_ray.pipelines.rows.schema import read_row


def row(id, texts, **columns):
    """A row with an answer of each model."""
    candidates = [{"model": name, "text": text} for name, text in texts.items()]
    return read_row({"id": id, "instruction": f"p {id}", "candidates": candidates, **columns}, "test")


def scored(id, values, **columns):
    candidates = [{"model": name, "text": "t", "scores": {"x": value}} for name, value in values.items()]
    return read_row({"id": id, "instruction": f"p {id}", "candidates": candidates, **columns}, "test")


def report(rows, **options):
    contest = Contest(LeaderboardOptions(resamples=30, **options))
    for one in rows:
        contest.add(one)
    found = leaderboard(contest)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def means(table, column):
    return {
        name: system["means"][column]["mean"]
        for name, system in table["systems"].items()
        if column in system["means"]
    }


def judged(id, left, right, preferred, judge="j", **columns):
    texts = {"a": "A", "b": "B", "c": "C"}
    sides = [name if name == "fused" else list(texts).index(name) for name in (left, right)]
    one = {"judge": judge, "left": sides[0], "right": sides[1], "preferred": preferred}
    return row(id, texts, judgements=[one], **columns)


def test_every_column_of_a_judged_row() -> None:
    comparisons = {"a,b": "A is better", "a,c": "Same good", "b,c": "B is better"}
    verdicts = [{"judge": "j", "left": "fused", "right": side, "preferred": "left"} for side in range(3)]
    columns = {"cmp_results": comparisons, "judgements": verdicts, "fused": "F", "ranking": [2, 0, 1]}
    found = report(
        [row(id, {"a": "A", "b": "B", "c": "C"}, **columns) for id in "rs"], baseline="c", at_least=("a",), top_k=2
    )
    table = found["table"]
    assert found["judges"] == {"j": 6, "cmp_results": 6}
    # points: blend 3, a 1 + 0 - 1 = 0, c 0 + 1 - 1 = 0, b -1 - 1 - 1 = -3; the ranker chose c
    assert means(table, "gpt_rank") == {"blend": 1, "a": 2, "c": 2, "ranker": 2, "b": 4}
    assert means(table, "top_2") == {"blend": 1, "a": 1, "c": 1, "ranker": 1, "b": 0}
    assert means(table, "win_rate") == {"blend": 1, "a": 0.5, "ranker": 0.5, "b": 0}
    assert means(table, "at_least a") == {"blend": 1, "c": 0.5, "ranker": 0.5, "b": 0}
    # the blend only won and b only lost: c and a tie, which is a strength of 0 for both
    assert table["without_strength"] == ["blend", "b"]
    assert [table["systems"][name]["strength"]["elo"] for name in "ac"] == pytest.approx([1000, 1000])


def test_a_probability_against_the_reference_is_a_win_rate() -> None:
    """AlpacaEval's figures: the mean, and the sample's standard deviation over the root of the number of rows."""
    rows = [scored(str(at), {"a": value, "b": 0.5}, output="r") for at, value in enumerate((0.1, 0.5, 0.9, 0.9))]
    table = report(rows, score="x", baseline=REFERENCE)["table"]
    a = table["systems"]["a"]["means"]["win_rate"]
    assert a["mean"] == pytest.approx(0.6)
    deviation = math.sqrt((0.25 + 0.01 + 0.09 + 0.09) / 3)
    assert a["standard_error"] == pytest.approx(deviation / 2)
    assert a["ci95_half_width"] == pytest.approx(1.96 * deviation / 2)
    lead = table["systems"]["a"]["strength"]["log_odds"] - table["systems"][REFERENCE]["strength"]["log_odds"]
    assert lead == pytest.approx(math.log(0.6 / 0.4), abs=1e-4)
    with pytest.raises(BlendError, match=r"expected the score 'x' to be a probability, got 1.5 in row 'r'"):
        report([scored("r", {"a": 1.5}, output="r")], score="x", baseline=REFERENCE)


def test_better_is_what_holds_after_correction() -> None:
    """a leads b by 1 on 20 rows, b and c lead each other in turn."""
    rows = [scored(str(at), {"a": 3, "b": 2 + at % 2, "c": 3 - at % 2}) for at in range(20)]
    table = report(rows, score="x")["table"]
    assert {(one["first"], one["second"]): one["better"] for one in table["differences"]} == {
        ("a", "b"): "a",
        ("a", "c"): "a",
        ("b", "c"): None,
    }
    assert {name: system["place"] for name, system in table["systems"].items()} == {"a": 1, "b": 2, "c": 2}
    few = report(rows[:4], score="x")["table"]
    assert all(one["better"] is None for one in few["differences"])
    assert {system["place"] for system in few["systems"].values()} == {1}


def test_each_value_of_a_column_has_its_table_and_counts_in_the_correction() -> None:
    rows = [
        scored(str(at), {"a": 1, "b": 0} if at % 2 else {"a": 0, "b": 1}, kind="code" if at % 2 else "math")
        for at in range(20)
    ]
    found = report(rows, score="x", slice_by=("kind",))
    assert list(found["slices"]) == ["kind=code", "kind=math"]
    code, math_ = found["slices"].values()
    assert (means(code, "x"), means(math_, "x")) == ({"a": 1, "b": 0}, {"b": 1, "a": 0})
    # alone, ten rows with one sign have p = 2 / 2^10; with three comparisons, three times that
    p = code["differences"][0]["p"]
    assert p == pytest.approx(2 / 1024, abs=1e-3)
    assert code["differences"][0]["p_holm"] == pytest.approx(3 * min(p, math_["differences"][0]["p"]))
    assert found["table"]["differences"][0]["better"] is None


def test_the_papers_table_has_random_choice_and_an_oracle_for_each_metric() -> None:
    one = {
        "output": "one two three four",
        "candidates": [
            {"model": "a", "text": "one two three four", "scores": {"x": 0.25}},
            {"model": "b", "text": "none", "scores": {"x": 0.75}},
        ],
        "fused": "one two three four",
        "ranking": [0, 1],
        "cmp_results": {"a,b": "A is better"},
    }
    rows = [read_row({"id": id, "instruction": f"p {id}", **one}, "test") for id in "rs"]
    table = report(rows, columns=(read_metric("rouge_l"),), paper=True, at_least=("b",))["table"]
    assert table["columns"] == ["rouge_l", "x", "win_rate", "gpt_rank", "at_least b", "top_3"]
    everyone = {"a": 1, "b": 0, "ranker": 1, "blend": 1, "random choice": 0.5}
    assert means(table, "rouge_l") == everyone | {"oracle by rouge_l": 1, "oracle by x": 0}
    assert means(table, "x") == {
        "a": 0.25,
        "b": 0.75,
        "ranker": 0.25,
        "random choice": 0.5,
        "oracle by rouge_l": 0.25,
        "oracle by x": 0.75,
    }
    assert means(table, "gpt_rank") == {
        "a": 1,
        "b": 2,
        "ranker": 1,
        "random choice": 1.5,
        "oracle by rouge_l": 1,
        "oracle by x": 2,
    }


def test_a_metric_of_which_lower_is_better_ranks_the_other_way(monkeypatch) -> None:
    metric = read_metric("exact")
    monkeypatch.setattr(type(metric), "higher_is_better", False)
    rows = [row(str(at), {"a": "yes", "b": "no"}, output="no") for at in range(2)]
    table = report(rows, metric=metric)["table"]
    assert list(table["systems"]) == ["a", "b"]
    assert means(table, "gpt_rank") == {"a": 1, "b": 2}
    assert table["differences"][0]["value"] == 1


def test_rows_of_one_prompt_are_one_prompt() -> None:
    """Two judges give the same figures in a file each and in one; other answers to a prompt are more rows of it."""
    sides = [("a", "b"), ("b", "a"), ("a", "b"), ("b", "c"), ("a", "c"), ("c", "a")]
    one = [judged(str(at), *pair, "left", judge="one") for at, pair in enumerate(sides)]
    two = [judged(str(at), *pair, "right", judge="two") for at, pair in enumerate(reversed(sides))]
    given = [(json.loads(row["extra"])["judgements"], row) for row in one]
    both = [
        {**row, "extra": json.dumps({"judgements": [*of_one, *json.loads(other["extra"])["judgements"]]})}
        for (of_one, row), other in zip(given, two, strict=True)
    ]
    apart, together = report(one + two), report(both)
    assert (apart["rows"], apart["table"]["rows"], apart["table"]["prompts"]) == (12, 12, 6)
    assert apart["table"]["systems"] == together["table"]["systems"]
    assert apart["table"]["differences"] == together["table"]["differences"]
    twice, once = report(one + one)["table"], report(one)["table"]
    assert twice["systems"]["a"]["means"] == once["systems"]["a"]["means"]

    answered = [row(str(at), {"a": "right" if at % 2 else "wrong"}, output="right") for at in range(6)]
    others = [
        {**row(str(at), {"b": "right", "c": "wrong"}, output="right"), "id": f"other {at}"} for at in range(6)
    ]
    table = report(answered + others, metric=read_metric("exact"))["table"]
    assert (table["prompts"], means(table, "exact")) == (6, {"a": 0.5, "b": 1, "c": 0})
    assert [(one["first"], one["second"], one["value"]) for one in table["differences"]] == [
        ("a", "b", -0.5), ("a", "c", 0.5), ("b", "c", 1)]  # fmt: skip


def test_a_judge_without_judgements_is_named(tmp_path) -> None:
    one = {"prompt": "p", "candidates": [{"model": name, "text": name} for name in "ab"]}
    judgement = {"judge": "j", "left": 0, "right": 1, "preferred": "left"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**one, "judgements": [judgement], "cmp_results": {"a,b": "Same bad"}}))
    with pytest.raises(BlendError, match=r"^--judge who: expected one of j, cmp_results$"):
        leaderboard_of([str(file)], LeaderboardOptions(judges=("j", "who")))


def test_judges_are_chosen_by_name() -> None:
    rows = [judged("1", "a", "b", "left"), judged("2", "a", "b", "right", judge="other")]
    found = report([*rows, judged("3", "a", "b", "left", error="failed")], judges=("other",))
    assert (found["judges"], found["rows"], found["errors"]) == ({"other": 1}, 1, 1)
    assert means(found["table"], "gpt_rank") == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"judges": ("who",)},
            r"of 1 rows, 0 with an error, none has judgements of who; candidates have no scores",
        ),
        ({"score": "x"}, r"none has the score 'x'"),
        ({"metric": read_metric("exact")}, r"none has a reference \(`output`\)"),
        ({"baseline": "d"}, r"--baseline d: expected one of a, b, c"),
        ({"slice_by": ("kind",)}, r"--by kind: no row has a value in this column"),
        ({"at_least": ("b", "e")}, r"--at-least e: expected one of a, b, c"),
    ],
)
def test_what_is_not_there_is_named(options: dict, message: str) -> None:
    with pytest.raises(BlendError, match=message) as caught:
        report([judged("1", "a", "b", "left")], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    names = ["a-model", "b", "c"]
    rows = [scored(str(at), {name: at % (3 + i) for i, name in enumerate(names)}) for at in range(12)]
    found = report(rows, score="x", at_least=("b",))
    shown = io.StringIO()
    Console(file=shown, width=width).print(render_leaderboard(found))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in shown.getvalue()
    for system in found["table"]["systems"].values():
        mean = system["means"]["x"]
        assert f"{mean['mean']:.3f} ± {mean['ci95_half_width']:.3f}" in shown.getvalue()
    assert len(re.findall("a-model", shown.getvalue())) == sum("┏" in line for line in lines)

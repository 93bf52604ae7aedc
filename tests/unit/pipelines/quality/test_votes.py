"""What votes tell, against figures worked out by hand."""

import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_blender_ray.actors.records import RESULT_COLUMNS
from llm_blender_ray.pipelines.quality.votes import Verdict, Votes, interval, read_vote, table
from llm_blender_ray.pipelines.rows.columns import inspect_columns
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.readers import input_files, native_schema, read_rows, read_tables
from llm_blender_ray.pipelines.rows.schema import read_row
from llm_blender_ray.pipelines.rows.writers import BlendShape

SCORES = [3.0, 1.0, 2.0]  # of alder, birch, cedar: alder is the ranker's first


def columns(left, right, preferred, **changed):
    """A row as the service keeps it."""
    return {
        "id": "r",
        "instruction": "p",
        "candidates": [{"model": name, "text": name[0]} for name in ("alder", "birch", "cedar")],
        "ranking": [0, 2, 1],
        "scores": SCORES,
        "comparisons": 6,
        "fused": "f",
        "fused_from": [0, 2],
        "vote": {"left": left, "right": right, "preferred": preferred, "at": "2026-11-22T12:00:00+00:00"},
        **changed,
    }


def row(left, right, preferred, **changed):
    return read_row(columns(left, right, preferred, **changed), "test")


def report(*rows):
    votes = Votes()
    for one in rows:
        votes.add(one)
    return votes.report()


def record(wins, ties, losses):
    return {"wins": wins, "ties": ties, "losses": losses}


def test_the_ranker_against_people():
    told = report(
        row(0, 1, "left"),  # as the ranker
        row(1, 0, "right"),  # as the ranker
        row(1, 2, "left"),  # not
        row(0, 2, "tie"),
        row(0, 1, "left", scores=[1.0, 1.0, 0.0]),  # it has no view
    )
    assert (told["votes"], told["ties"]) == (5, 1)
    ranker = told["ranker"]
    assert (ranker["agrees"], ranker["of"], ranker["undecided"]) == (2, 3, 1)
    assert ranker["share"] == pytest.approx(2 / 3)
    assert ranker["interval"] == pytest.approx([0.2077, 0.9385], abs=1e-4)  # Wilson's
    assert told["models"] == {
        "alder": record(3, 1, 0),
        "birch": record(1, 0, 3),
        "cedar": record(0, 1, 1),
    }
    assert told["blend"] == {"over_first": record(0, 0, 0), "over_others": record(0, 0, 0)}


def test_the_ranker_is_judged_by_both_orders_where_there_are_logits():
    logits = [[None, -1.0, None], [-3.0, None, None], [None, None, None]]
    assert report(row(0, 1, "left", logits=logits))["ranker"]["agrees"] == 1  # (-1 + 3) / 2 > 0
    assert report(row(0, 1, "right", logits=logits))["ranker"]["agrees"] == 0


def test_an_order_without_comparisons_is_not_the_rankers():
    ranker = report(row(0, 1, "left", logits=[[None] * 3] * 3, comparisons=0))["ranker"]
    assert ranker == {"agrees": 0, "of": 0, "undecided": 1, "share": None, "interval": None}


def test_the_blend_against_the_rankers_first_and_others():
    told = report(
        row("fused", 0, "left"),
        row(0, "fused", "left"),
        row("fused", 1, "tie"),
        row(2, "fused", "right"),
    )
    assert told["blend"] == {"over_first": record(1, 0, 1), "over_others": record(1, 1, 0)}
    assert told["models"] == {}
    assert told["ranker"]["of"] == 0


def test_two_samples_of_one_model_say_nothing_of_models():
    candidates = [{"model": "alder", "text": text} for text in ("a", "b", "c")]
    told = report(row(0, 1, "left", candidates=candidates))
    assert told["models"] == {}
    assert told["ranker"]["agrees"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"error": "it failed"},
        {"fused": "a"},  # as candidate 0: nobody can tell them apart
        {"vote": None},
        {"vote": "upvoted"},
        {"vote": {"left": 0, "right": 0, "preferred": "tie", "at": "now"}},
        {"vote": {"left": 0, "right": 3, "preferred": "tie", "at": "now"}},
        {"vote": {"left": 0, "right": -1, "preferred": "tie", "at": "now"}},
        {"vote": {"left": True, "right": 0, "preferred": "tie", "at": "now"}},
        {"vote": {"left": 0, "right": "the blend", "preferred": "tie", "at": "now"}},
        {"candidates": None, "ranking": None, "scores": None, "fused_from": None},
    ],
)
def test_rows_that_say_nothing(changed):
    assert report(row(0, "fused", "left", **changed))["votes"] == 0


def test_a_vote_outlives_parquet(tmp_path):
    """There, indexes and `fused` share a column, which is then JSON text."""
    cast = [(0, "fused", "left"), (1, 0, "tie")]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(columns(*one)) + "\n" for one in cast))
    (rows,) = read_tables(*input_files(str(tmp_path / "votes.jsonl")), native_schema([]), 10)
    shape = BlendShape(Layout.of(inspect_columns(rows), dict(RESULT_COLUMNS), ()))
    written = shape.table(rows)
    assert written.schema.field("vote").type.field("left").type == pa.int64()
    assert written.schema.field("vote").type.field("right").type == pa.string()
    pa.parquet.write_table(written, tmp_path / "votes.parquet")
    read = [read_vote(one) for one in read_rows(str(tmp_path / "votes.parquet"))]
    assert [(one.left, one.right, one.preferred) for one in read] == cast


@given(st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_its_share_and_narrows(hits_of):
    hits, count = hits_of
    low, high = interval(hits, count)
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= hits / count <= high + 1e-9
    closer = interval(10 * hits, 10 * count)
    assert closer[1] - closer[0] < high - low
    mirrored = interval(count - hits, count)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_of_many_votes_an_interval_is_the_normal_distributions():
    low, high = interval(4000, 10_000)
    assert (low, high) == pytest.approx((0.4 - 1.96 * (0.24 / 10_000) ** 0.5, 0.4 + 1.96 * 0.0049), abs=2e-4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, "fused"]),
            st.sampled_from([0, 1, 2, "fused"]),
            st.sampled_from(["left", "right", "tie"]),
        ).filter(lambda vote: vote[0] != vote[1])
    )
)
def test_which_side_an_answer_stood_on_changes_nothing(cast):
    other = {"left": "right", "right": "left", "tie": "tie"}
    told = report(*(row(*one) for one in cast))
    assert told == report(*(row(right, left, other[preferred]) for left, right, preferred in cast))
    records = [*told["blend"].values(), *told["models"].values()]
    assert told["votes"] == len(cast)
    of_models = [sum(one.values()) for one in told["models"].values()]
    assert sum(of_models) == 2 * sum("fused" not in one[:2] for one in cast)
    assert sum(sum(one.values()) for one in records) == sum(1 if "fused" in one[:2] else 2 for one in cast)


def test_a_verdict_has_two_sides():
    with pytest.raises(ValueError, match="left and right are the same answer"):
        Verdict(left="fused", right="fused", preferred="tie")


def shown(told):
    out = io.StringIO()
    Console(file=out, width=200).print(table(told))
    return [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]


def test_what_people_are_shown():
    lines = shown(report(row(0, 1, "left"), row(0, 1, "tie"), row("fused", 0, "right")))
    assert lines[0] == "By people (3 votes)"
    assert "alder against other models 1 1 0" in lines
    assert "birch against other models 0 1 1" in lines
    assert "blend against the ranker's choice 0 0 1" in lines
    assert not any("blend against other answers" in line for line in lines)
    assert any("agrees with 100.0% of 1 choice between" in line for line in lines)
    assert any("(95% interval 20.7% to 100.0%)" in line for line in lines)

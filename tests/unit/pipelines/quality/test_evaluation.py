"""Quality figures against ones worked out by hand, and what a person is shown."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.evaluation import (
    bleu,
    evaluate,
    evaluate_uri,
    exact,
    main,
    numbered_parts,
    parts,
    render,
    rouge_l,
)
from llm_blender_ray.pipelines.rows.schema import read_row, write_row


def row(*texts, output="1) a 2) b", **columns):
    """A row with one candidate for each text (None: it failed), by models m0, m1, ..."""
    candidates = [
        {"model": f"m{i}", "text": text, "error": None if text is not None else "timeout"}
        for i, text in enumerate(texts)
    ]
    return read_row({"instruction": "p", "output": output, "candidates": candidates, **columns}, "test")


def scored(*scores, **columns):
    """A row with one candidate for each value of the metric x."""
    candidates = [{"model": f"m{i}", "text": "t", "scores": {"x": value}} for i, value in enumerate(scores)]
    return read_row({"prompt": "p", "candidates": candidates, **columns}, "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1) Paris 2) fox goat lamp 3) went", ["Paris", "fox goat lamp", "went"]),
        (" 1) Paris\n2)fox ", ["Paris", "fox"]),
        ("1) 2) b", ["", "b"]),
        ("2) b 1) a", None),
        ("1) a 3) b", None),
        ("So: 1) a", None),
        ("f(1) a", None),
        ("", None),
    ],
)
def test_numbered_parts(text, expected):
    assert numbered_parts(text) == expected


@given(st.lists(st.from_regex(r"[a-z]+( [a-z]+)?", fullmatch=True), min_size=1, max_size=12))
def test_numbered_parts_are_found_again(items):
    text = " ".join(f"{i}) {item}" for i, item in enumerate(items, 1))
    assert numbered_parts(text) == items
    assert parts(text, text) == 1


def test_metrics():
    assert parts("1) a 2) b 3) c 4) d", "1) a 2) x 3) c") == 0.5
    assert parts("1) a", "a") == parts("a", "a") == 0
    assert (exact(" a b\n", "a b"), exact("a b", "a B")) == (1, 0)
    assert bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    assert bleu("the cat", "a dog") == 0
    assert rouge_l("a b c d", "a c") == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert bleu("the cat", "") == rouge_l("the cat", "") == 0


def test_every_system_against_references():
    rows = [
        row("1) a 2) b", "1) a 2) x", ranking=[0, 1], scores=[2, 1], comparisons=2, fused="1) a 2) b"),
        row("1) x 2) x", "1) a 2) x", ranking=[0, 1], scores=[2, 1], comparisons=2, fused="1) a 2) b"),
        row("1) a 2) b", None, ranking=[0], scores=[0, None], fused="1) a 2) x"),
        row("1) a 2) b", output="1) a 2) b", error="all LLMs failed"),
    ]
    report = evaluate(rows)
    assert json.loads(json.dumps(report)) == report
    assert (report["rows"], report["errors"], report["error_rate"], report["comparisons"]) == (4, 1, 0.25, 4)
    assert list(report["references"]) == ["parts", "exact", "bleu", "rouge_l"]
    table = report["references"]["parts"]
    assert table["rows"] == 3
    assert table["models"]["m0"] == {
        "mean": pytest.approx(2 / 3),
        "rank": pytest.approx(4 / 3),
        "best_share": 2 / 3,
    }
    assert table["models"]["m1"]["mean"] == pytest.approx(1 / 3)  # its failure is worth 0
    assert table["random"] == {"mean": 0.5, "rank": 1.5}
    assert table["oracle"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert table["ranker"] == {"mean": pytest.approx(2 / 3), "rank": pytest.approx(4 / 3), "is_best": 2 / 3}
    assert table["blend"] == {"mean": pytest.approx((1 + 1 + 0.5) / 3)}
    assert table["pairwise"] == 0.5  # right on the first row, wrong on the second, nothing said on the third
    assert report["references"]["exact"]["oracle"]["mean"] == pytest.approx(2 / 3)


def test_parts_are_for_runs_whose_references_all_have_them():
    assert "parts" not in evaluate([row("1) a 2) b"), row("a", output="free text")])["references"]


def test_given_scores_with_ties():
    rows = [scored(0.5, 1, 1, ranking=[1, 0, 2]), scored(3, 2, 1, ranking=[2, 1, 0])]
    report = evaluate(rows)
    assert report["references"] == {}
    table = report["scores"]["x"]
    assert {name: model["best_share"] for name, model in table["models"].items()} == {
        "m0": 0.5,
        "m1": 0.25,
        "m2": 0.25,
    }
    assert table["models"]["m1"] == {"mean": 1.5, "rank": 1.75, "best_share": 0.25}
    assert table["ranker"] == {"mean": 1, "rank": (1.5 + 3) / 2, "is_best": 0.5}
    assert table["random"]["rank"] == 2
    assert table["oracle"]["mean"] == 2
    assert "blend" not in table
    assert table["pairwise"] is None  # no scores of the ranker


def test_a_candidate_without_a_given_score_is_left_out():
    table = evaluate([scored(1, None, float("nan"), True, "2", 3, ranking=[1, 5])])["scores"]["x"]
    assert set(table["models"]) == {"m0", "m5"}
    assert table["random"]["mean"] == 2
    assert "ranker" not in table


def test_the_ranker_is_judged_by_its_logits_where_pairs_were_compared():
    logits = [[None, 1.0, None], [3.0, None, None], [None, -1.0, None]]
    table = evaluate([scored(0, 1, 2, ranking=[0, 1, 2], scores=[3, 2, 1], logits=logits)])["scores"]["x"]
    # 1 beats 0 by (3 - 1) / 2: right. 2 loses to 1 by 1: wrong. 0 and 2 were not compared, by scores 0 wins: wrong.
    assert table["pairwise"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [read_row({"prompt": "p"}, "test")],
        [row("a", output=None)],
        [row("a", error="failed")],
        [read_row({"prompt": "p", "output": "a reference and nothing to judge"}, "test")],
    ],
)
def test_nothing_to_evaluate_is_one_line(rows):
    with pytest.raises(BlendError, match=f"nothing to evaluate: of {len(rows)} rows, . with an error") as caught:
        evaluate(rows)
    assert "\n" not in str(caught.value)


VOTE = {"left": 1, "right": 0, "preferred": "left", "at": "2026-11-22T12:00:00+00:00"}


def test_votes_stand_beside_references_and_scores():
    voted = row("1) a 2) x", "1) a 2) b", ranking=[0, 1], scores=[2, 1], vote=VOTE)
    report = evaluate([voted, row("1) a 2) b"), scored(1, 2)])
    assert json.loads(json.dumps(report)) == report
    assert report["references"]["parts"]["rows"] == 2
    assert report["scores"]["x"]["rows"] == 1
    assert (report["votes"]["votes"], report["votes"]["ranker"]["agrees"]) == (1, 0)
    assert evaluate([row("1) a 2) b")])["votes"] is None


def test_votes_alone_are_enough_to_evaluate(tmp_path, capsys):
    voted = {
        "prompt": "p",
        "candidates": [{"model": f"m{i}", "text": str(i)} for i in range(2)],
        "ranking": [1, 0],
        "scores": [1, 2],
        "vote": VOTE,
    }
    (tmp_path / "votes.jsonl").write_text(json.dumps(voted) + "\n")
    main(str(tmp_path / "votes.jsonl"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "By people (1 vote)" in shown
    assert "Against references" not in shown


def test_a_file_is_evaluated_and_shown(tmp_path):
    lines = [
        {
            "prompt": "p",
            "output": "1) a",
            "candidates": [{"model": "tiny", "text": "1) a", "scores": {"bleurt": 0.25}}],
        },
        {
            "prompt": "p",
            "output": "1) a",
            "candidates": [{"text": "1) b", "scores": {"bleurt": 0.75}}],
            "fused": "1) a",
        },
    ]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{bad\n")
    report = evaluate_uri(str(tmp_path / "run.jsonl"))
    assert report["references"]["parts"]["models"].keys() == {"tiny", "candidate 1"}
    assert evaluate_uri(str(tmp_path / "run.jsonl"), limit=1)["rows"] == 1
    shown = io.StringIO()
    Console(file=shown, width=100).print(render(report))
    lines = shown.getvalue().splitlines()
    assert lines[0] == "3 rows, 1 with an error, 0 comparisons"
    for start, cells in {
        "tiny": "1.000",
        "best candidate (oracle)": "0.500",
        "random choice": "0.500",
        "blend": "1.000",
    }.items():
        line = next(line for line in lines if line.startswith(f"│ {start} "))
        assert " ".join(line.replace("│", " ").split()).startswith(f"{start} {cells}")
    assert any("By given score: bleurt (2 rows)" in line for line in lines)


def test_what_the_command_prints(tmp_path, capsys):
    shown = row(
        "1) a 2) b", None, "[red]1) x", id="7", input="now", ranking=[2, 0], fused="1) a 2) b", fused_from=[2, 0]
    )
    (tmp_path / "run.jsonl").write_text(json.dumps(write_row(shown, ["ranking", "fused", "fused_from"])) + "\n")
    main(str(tmp_path / "run.jsonl"), examples=3)
    assert capsys.readouterr().out.endswith(
        """
Prompt 7: p
  now
  1. m2: [red]1) x
  2. m0: 1) a 2) b
  -. m1: no answer: timeout
  Blend of m2, m0: 1) a 2) b
  Reference: 1) a 2) b
"""
    )
    main(str(tmp_path / "run.jsonl"), as_json=True)
    assert json.loads(capsys.readouterr().out) == evaluate_uri(str(tmp_path / "run.jsonl"))

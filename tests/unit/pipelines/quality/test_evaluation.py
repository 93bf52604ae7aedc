"""Quality figures against ones worked out by hand, and what a person is shown."""

import io
import json
from typing import ClassVar

import pytest
from rich.console import Console

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality import evaluation
from llm_blender_ray.pipelines.quality.evaluation import Quality, evaluate, evaluate_uri, main, render
from llm_blender_ray.pipelines.quality.metrics import METRICS, Metric, read_metric
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


class WordErrors(Metric):
    """Words of the text that no reference has; lower is better. Records its batches."""

    name = "word_errors"
    label = "wrong words"
    higher_is_better = False
    upper_bound = 9.0
    batches: ClassVar[list[int]] = []

    def score(self, references, texts):
        self.batches.append(len(texts))
        known = [{word for one in several for word in one.split()} for several in references]
        return [float(len(set(text.split()) - words)) for text, words in zip(texts, known, strict=True)]


def test_a_registered_metric_scores_batches_and_may_be_better_when_lower(monkeypatch):
    monkeypatch.setattr(METRICS, "_added", {"word_errors": WordErrors})
    monkeypatch.setattr(WordErrors, "batches", [])
    one = row("a b", "a x", None, output="a b", ranking=[1, 0], scores=[0, 1, None], fused="y z")
    report = evaluate([one] * 70)
    assert WordErrors.batches == [64 * 3, 6 * 3]
    table = report["references"]["word_errors"]
    assert [table["models"][f"m{i}"]["mean"] for i in range(3)] == [0, 1, 9]
    assert [table["models"][f"m{i}"]["rank"] for i in range(3)] == [1, 2, 3]
    assert (table["oracle"]["mean"], table["ranker"]["is_best"], table["blend"]["mean"]) == (0, 0, 2)
    assert table["pairwise"] == 0  # the ranker puts the worse of the two first
    quality = Quality()
    quality.add(one)
    assert quality.references["word_errors"].gains["blend"]["m0"].value == -2
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(report))
    assert "wrong words" in shown.getvalue()


def test_a_metric_that_cannot_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr(METRICS, "_added", {"broken": object})
    with pytest.raises(BlendError, match="metric 'broken': expected a subclass of Metric with that name, got"):
        evaluate([row("a", output="a")])


def test_named_metrics_are_computed_alone_and_the_first_ranks():
    first = row("running fast", "he ran", output="runs fast", ranking=[0, 1], scores=[1, 0])
    report = evaluate([first], [read_metric("rouge_l:stemmer=true"), read_metric("rouge_l")])
    assert list(report["references"]) == ["rouge_l:stemmer=true", "rouge_l"]
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(report))
    assert "ROUGE-L (stemmer=true)" in shown.getvalue()
    assert [one["models"]["m0"]["mean"] for one in report["references"].values()] == [1, 0.5]


def test_a_metric_not_by_default_is_computed_when_named(monkeypatch):
    monkeypatch.setattr(WordErrors, "by_default", False)
    monkeypatch.setattr(METRICS, "_added", {"word_errors": WordErrors})
    one = row("a b", output="a b")
    assert "word_errors" not in evaluate([one])["references"]
    assert list(evaluate([one], [read_metric("word_errors")])["references"]) == ["word_errors"]


def test_intervals_and_what_is_better_after_correction() -> None:
    """The blend leads m0 by 1 on all rows and m1 on two of them; 12 rows are enough for the first only."""
    rows = [row("a", "b", output="b" if at % 6 else "c", fused="b" if at % 6 else "c") for at in range(12)]
    table = evaluate(rows, [read_metric("exact")])["references"]["exact"]
    assert table["ci95_half_widths"]["models"]["m0"]["mean"] == 0
    half = 1.96 * (2 / 12 * 10 / 12 / 11) ** 0.5  # of ten ones and two zeros
    assert table["ci95_half_widths"]["models"]["m1"]["mean"] == pytest.approx(half)
    assert {(one["first"], one["second"]): one["better"] for one in table["differences"]} == {
        ("blend", "m0"): "blend",
        ("blend", "m1"): None,
    }
    lead = table["differences"][0]
    assert (lead["value"], lead["p"], lead["p_holm"]) == (1, 2 / 2**12, pytest.approx(4 / 2**12))


def test_judgements_get_their_leaderboard(tmp_path, capsys) -> None:
    judged = row("a", "b", output=None, cmp_results={"m0,m1": "A is better"})
    report = evaluate([judged] * 3)
    assert report["judgements"]["table"]["systems"]["m0"]["means"]["gpt_rank"]["mean"] == 1
    assert "judgements" not in evaluate([row("a", output="a")])
    (tmp_path / "rows.jsonl").write_text(json.dumps(write_row(judged, [])) + "\n")
    main(str(tmp_path / "rows.jsonl"))
    assert "1 judgements (cmp_results 1)" in capsys.readouterr().out


def test_judgements_without_the_extra_name_it(monkeypatch) -> None:
    def missing(*modules):
        raise ModuleNotFoundError("scipy", name="scipy")

    monkeypatch.setattr(evaluation, "require", missing)
    report = evaluate([row("a", "b", cmp_results={"m0,m1": "A is better"})])
    assert report["judgements"] is None
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(report))
    assert "judgements: scipy is not installed: pip install 'llm-blender-ray[evaluation]'" in shown.getvalue()


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
    main(str(tmp_path / "run.jsonl"), as_json=True, output=str(tmp_path / "made" / "quality.json"))
    printed = capsys.readouterr().out
    assert json.loads(printed) == evaluate_uri(str(tmp_path / "run.jsonl"))
    assert (tmp_path / "made" / "quality.json").read_text() == printed


def test_an_exact_match_that_is_0_for_all_orders_nothing() -> None:
    """Long answers: the table's ranks were all equal here, and those of `blend report` were not."""
    rows = [row("the cat sat", "a dog", "the cat", output="the cat sat down", ranking=[0, 2, 1])] * 2
    report = evaluate(rows)
    assert list(report["references"]) == ["exact", "bleu", "rouge_l"]
    assert report["order_by"] == "rouge_l"
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(report))
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.getvalue().splitlines()]
    assert [line.split()[0] for line in lines if line.startswith("m")][:3] == ["m0", "m2", "m1"]
    assert any(line.startswith("m0 ") and line.endswith("1.00 ± 0.00 100.0 ± 0.0%") for line in lines)
    assert "mean rank and best are by ROUGE-L" in " ".join(lines)


def test_the_metric_that_orders_can_be_named() -> None:
    rows = [row("the cat sat", "cat the sat down", output="the cat sat down")]
    report = evaluate(rows, [read_metric("exact"), read_metric("rouge_l")], read_metric("rouge_1"))
    assert (list(report["references"]), report["order_by"]) == (["exact", "rouge_l", "rouge_1"], "rouge_1")
    assert evaluate(rows, [read_metric("exact"), read_metric("rouge_l")])["order_by"] == "rouge_l"
    assert evaluate(rows, [read_metric("exact")])["order_by"] == "exact"
    assert evaluate(rows, order_by=read_metric("exact"))["order_by"] == "exact"


def test_one_row_that_varies_is_enough_to_order_by() -> None:
    short = [row("a", "b", output="a"), row("a", "a", output="a")]
    assert evaluate(short, [read_metric("exact"), read_metric("bleu")])["order_by"] == "exact"

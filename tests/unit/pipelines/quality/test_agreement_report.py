"""`blend agreement`: what it reports of rows, whole and by slice, and what it prints."""

import json

import pytest
from rich.console import Console

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.quality.agreement_report import (
    MOST_PEOPLE,
    agreement_tables,
    measure_agreement,
    print_agreement,
)
from llm_blender_ray.pipelines.rows.schema import read_row


def preference(number, subset, margin):
    """A row of a preference set in RewardBench's shape after `blend compare`."""
    given = {
        "id": number,
        "prompt": f"p{number}",
        "chosen": "good",
        "rejected": "bad",
        "chosen_model": "alder",
        "rejected_model": "birch",
        "subset": subset,
        "margin": margin,
        "preference": int(margin < 0) if margin else None,
    }
    return read_row(given, "test")


CHAT = [preference(number, "chat", 1.0) for number in range(6)]
HARD = [preference(10 + number, "hard", margin) for number, margin in enumerate((-1.0, 1.0, 0.0, -2.0))]


def judged(number, judges, *, person=False):
    judgements = [
        {"judge": name, "left": 0, "right": 1, "preferred": verdict, "person": person}
        for name, verdict in judges.items()
    ]
    texts = [{"model": name, "text": name} for name in ("alder", "birch")]
    return read_row(
        {"id": number, "instruction": f"p{number}", "candidates": texts, "judgements": judgements}, "test"
    )


def printed(report, width=300):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(agreement_tables(report))
    return capture.get()


def test_accuracy_of_a_ranker_on_a_preference_set() -> None:
    """A tie of the ranker is half right, or left out; in the chat subset all is right, in the other 1.5 of 4."""
    report = measure_agreement(CHAT + HARD, slice_by=["subset"])
    (pair,) = report["pairs"]
    assert (pair["rater"], pair["other"]) == ("ranker", "chosen")
    assert pair["agreement"]["value"] == pytest.approx(7 / 9)
    assert pair["agreement_half_ties"]["value"] == pytest.approx(7.5 / 10)
    assert pair["agreement_half_ties"]["n"] == 10
    slices = {one["values"][0]: one["pairs"][0]["agreement_half_ties"] for one in report["slices"]}
    assert {name: (one["value"], one["n"]) for name, one in slices.items()} == {
        "chat": (1, 6),
        "hard": (1.5 / 4, 4),
    }
    (means,) = report["means"]
    assert means["agreement_half_ties"]["equal"]["value"] == pytest.approx((1 + 1.5 / 4) / 2)
    assert means["agreement_half_ties"]["weighted"]["value"] == pytest.approx(7.5 / 10)
    low, high = means["agreement_half_ties"]["equal"]["interval"]
    assert low < (1 + 1.5 / 4) / 2 < high
    text = printed(report)
    assert "ranker and chosen by subset" in text
    assert all(
        line in text for line in ("chat", "hard", "all rows", "mean of slices, by n", "mean of slices, equal")
    )


def test_two_raters_are_one_table_and_more_a_matrix_for_each_statistic() -> None:
    two = printed(measure_agreement(CHAT + HARD))
    assert "ranker and chosen" in two and "0.778" in two and "Krippendorff's alpha" in two
    verdicts = {"j": "left", "k": "right", "l": "tie"}
    report = measure_agreement([judged(number, verdicts) for number in range(3)])
    assert report["raters"] == {"judge:j": 3, "judge:k": 3, "judge:l": 3}
    assert [(one["rater"], one["other"]) for one in report["pairs"]] == [
        ("judge:j", "judge:k"),
        ("judge:j", "judge:l"),
        ("judge:k", "judge:l"),
    ]
    (judges, together) = report["groups"]
    assert (judges["group"], judges["raters"], judges["agreement_with_ties"]["value"]) == ("judges", 3, 0)
    assert together["group"] == "all"
    text = printed(report)
    assert text.count("1 judge:j") == 9 and "Every two of several raters" in text


def test_people_are_listed_and_together_and_of_many_only_some() -> None:
    names = {f"a{number:02}": "left" for number in range(MOST_PEOPLE + 2)}
    rows = [judged(number, names, person=True) for number in range(2)]
    report = measure_agreement([*rows, judged(2, {"a11": "left"}, person=True)])
    assert list(report["raters"]) == [*(f"person:a{n:02}" for n in (*range(9), 11)), "people"]
    assert [(one["group"], one["raters"]) for one in report["groups"]] == [("people", 12), ("all", 10)]
    chosen = measure_agreement(rows, raters=["person:a10", "people"])
    assert [(one["rater"], one["other"]) for one in chosen["pairs"]] == [("person:a10", "people")]
    with pytest.raises(BlendError, match="no rater 'ranker' in these rows; there are person:a00"):
        measure_agreement(rows, raters=["ranker"])


def test_fewer_than_two_raters_are_one_clear_line() -> None:
    with pytest.raises(
        BlendError, match=r"no two raters of the same answers in 1 rows \(0 with an error\)"
    ) as caught:
        measure_agreement([judged(0, {"j": "left"})])
    assert str(caught.value).endswith("raters: judge:j")


def test_a_column_that_no_row_has_is_one_clear_line() -> None:
    with pytest.raises(BlendError, match=r"^--by topic: no row has a value in this column$"):
        measure_agreement(CHAT, slice_by=["subset", "topic"])


def test_json_is_the_report_of_all_files(tmp_path, capsys) -> None:
    """Two judges of one run, in a file each."""
    for judge, verdict in (("j", "left"), ("k", "right")):
        one = {
            "instruction": "p",
            "candidates": [{"model": "a", "text": "a"}, {"model": "b", "text": "b"}],
            "judgements": [{"judge": judge, "left": 0, "right": 1, "preferred": verdict}],
        }
        (tmp_path / f"{judge}.jsonl").write_text(json.dumps(one) + "\n")
    uris = [str(tmp_path / f"{judge}.jsonl") for judge in "jk"]
    print_agreement(uris, as_json=True)
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["rater"], pair["other"], pair["agreement"]) == (
        "judge:j",
        "judge:k",
        {"value": 0.0, "interval": None, "n": 1},
    )
    print_agreement(uris)
    assert "judge:j and judge:k" in capsys.readouterr().out

"""`blend leaderboard` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_blender_ray.pipelines.cli.commands import app
from llm_blender_ray.pipelines.cli.options import UsageError


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [
        {
            "instruction": f"p{at}",
            "candidates": [{"model": name, "text": name, "scores": {"x": at % 2}} for name in ("a", "b")],
            "cmp_results": {"a,b": "B is better" if at % 3 else "A is better"},
        }
        for at in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "rows.jsonl")


def test_tables_and_json_have_the_same_numbers(rows: str) -> None:
    shown = CliRunner().invoke(app, ["leaderboard", rows, rows, "--baseline", "a"])
    assert shown.exit_code == 0, shown.output
    assert "12 rows, 0 with an error, 12 judgements (cmp_results 12)" in shown.stdout
    assert "All rows (12 rows, 6 prompts)" in shown.stdout
    assert "66.7 ± 41.3%" in shown.stdout  # two thirds; 1.96 x sqrt((2/9) / 5) x 100: a prompt counts once
    printed = CliRunner().invoke(app, ["leaderboard", rows, rows, "--baseline", "a", "--json"])
    win_rate = json.loads(printed.stdout)["table"]["systems"]["b"]["means"]["win_rate"]
    assert (win_rate["mean"], win_rate["count"]) == (pytest.approx(2 / 3), 6)
    assert win_rate["ci95_half_width"] == pytest.approx(1.96 * (2 / 9 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--control", "tone"), "--control tone: expected one of length, style"),
        (("--judge", "j", "--score", "x"), "--judge, --score, --metric: give one of them"),
        (("--metric", "bleu", "--metric", "exact"), "--metric: give one, or --paper"),
        (("--baseline", "reference"), "--baseline reference needs --score, a probability"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_use(rows: str, options: tuple[str, ...], message: str) -> None:
    refused = CliRunner().invoke(app, ["leaderboard", rows, *options], standalone_mode=False)
    assert isinstance(refused.exception, UsageError)
    assert refused.exception.format_message() == message

"""`blend submit`: which command a line means, and what the job's line is."""

from pathlib import Path
from typing import Any

import pytest
import typer

from llm_blender_ray.cluster.job_paths import CONFIG, JobPaths
from llm_blender_ray.configs.loading import PRESETS, ConfigError
from llm_blender_ray.pipelines.cli.commands import app
from llm_blender_ray.pipelines.cli.options import UsageError
from llm_blender_ray.pipelines.cli.prepared import CLUSTER_COMMANDS
from llm_blender_ray.pipelines.cli.submit import (
    METRIC_OPTIONS,
    MODEL_OPTIONS,
    URI_OPTIONS,
    job_arguments,
    read_variables,
)

PROGRAM: Any = typer.main.get_command(app)
ADDRESS = ["--address", "http://127.0.0.1:1"]
ROWS = ["--input", "s3://rows/in/", "--output", "s3://rows/out/"]
MINE = str(PRESETS / "demo.yaml")
RANKER = str(PRESETS / "miniature" / "ranker")
UPLOADED = "llm_blender_ray/configs/miniature/ranker"


def parsed(*line: str) -> Any:
    """Context of a command line, the program's name left out; commands in groups are entered."""
    context = PROGRAM.make_context("blend", list(line))
    while isinstance(context.command, typer.core.TyperGroup):
        _, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(command.name, rest, parent=context)
    return context


def submitted(*line: str) -> list[str]:
    """Arguments of the job that a `blend submit` line makes, on a cluster of other machines."""
    return job_arguments(parsed("submit", *ADDRESS, *line), JobPaths(here=False))


@pytest.mark.parametrize(
    "line",
    [
        ["rank", "--ranker", "M", *ROWS, *ADDRESS, "--wait", "--env", "A", "--env", "B"],
        [*ADDRESS, "--wait", "--env", "A", "--env", "B", "rank", "--ranker", "M", *ROWS],
        ["--env=A", "--wait", *ADDRESS, "--env", "B", "--", "rank", "--ranker", "M", *ROWS],
    ],
    ids=["after", "before", "behind --"],
)
def test_the_options_of_submit_stand_anywhere(line: list[str]) -> None:
    found = parsed("submit", *line)
    assert found.params["address"] == ADDRESS[1] and found.params["wait"] and found.params["env"] == ["A", "B"]
    assert job_arguments(found, JobPaths(here=False)) == ["--ranker", "M", *ROWS]


def test_a_config_alone_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*ROWS, "--limit", "3", "--update", "--set", "ranker.cache=null"]
    expected = [CONFIG, *ROWS, "--limit", "3", "--update"]  # the uploaded config has what --set sets
    assert submitted(MINE, *options) == submitted("run", MINE, *options) == submitted(*options, MINE) == expected
    Path("serve").touch()
    assert submitted("serve") == [CONFIG]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["rank", "--ranker", MINE, *ROWS, "--matrix"], ["--ranker", CONFIG, *ROWS, "--matrix"]),
        (
            ["rank", "--ranker", RANKER, *ROWS, "--cache", "/c.db"],
            ["--ranker", UPLOADED, *ROWS, "--cache", "/c.db"],
        ),
        (["fuse", "--fuser", "google/flan-t5-xl", *ROWS], ["--fuser", "google/flan-t5-xl", *ROWS]),
        (["compare", "--ranker", "M", *ROWS, "--dtype", "float32"], ["--ranker", "M", *ROWS, "--dtype", "float32"]),
        (["score", *ROWS, "--metric", "bleu", "--metric", "chrf"], [*ROWS, "--metric", "bleu", "--metric", "chrf"]),
        (["judge", MINE, *ROWS, "--json"], [CONFIG, *ROWS, "--json"]),
        (["evaluate", "s3://rows/out/", "--output", "s3://e.json"], ["s3://rows/out/", "--output", "s3://e.json"]),
        (["report", "s3://rows/out/", "--order-by", "bleu"], ["s3://rows/out/", "--order-by", "bleu"]),
        (["train", "ranker", MINE, "--set", "seed=1"], [CONFIG]),
        (["train", "fuser", MINE], [CONFIG]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_job_s_line_is_the_given_one_with_the_cluster_s_paths(line: list[str], expected: list[str]) -> None:
    assert submitted(*line) == expected
    words = line[: 2 if line[0] == "train" else 1]
    assert parsed(*words, *expected)  # the command takes it


def test_every_command_s_options_that_name_files_are_known() -> None:
    """An option of a new command whose metavar is one of these needs a place in `cli.submit`."""
    known = {*URI_OPTIONS, *MODEL_OPTIONS, *METRIC_OPTIONS, "config"}
    for words in CLUSTER_COMMANDS:
        command = PROGRAM
        for word in words.split():
            command = command.commands[word]
        named = {one.name for one in command.params if one.metavar in ("CONFIG", "URI", "URI...", "FILE", "M")}
        assert named and named <= known, words


@pytest.mark.parametrize("command", ["serve", "deploy", "campaign", "plan", "key", "submit"])
def test_what_is_no_job_is_refused_with_what_is(command: str) -> None:
    with pytest.raises(UsageError, match=rf"blend {command} doesn't run as a job; these do: .*judge.* train$"):
        submitted(command, MINE)


def test_a_relative_path_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match=r"^uri: out/: the cluster's machines can't see"):
        submitted("report", "out/")


def test_variables_are_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLEND_TEST_KEY", "sk-1")
    monkeypatch.delenv("BLEND_TEST_MISSING", raising=False)
    assert read_variables(["BLEND_TEST_KEY"]) == {"BLEND_TEST_KEY": "sk-1"}
    for given, message in (
        ("BLEND_TEST_MISSING", "--env BLEND_TEST_MISSING: not set in this environment"),
        ("BLEND_TEST_KEY=sk-2", "--env BLEND_TEST_KEY: expected the name of an environment variable alone"),
        ("RAY_ADDRESS", "--env RAY_ADDRESS: the cluster has its own"),
    ):
        with pytest.raises(UsageError) as caught:
            read_variables([given])
        assert caught.value.format_message() == message

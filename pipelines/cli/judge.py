"""`blend judge`."""

import json
from pathlib import Path

import typer
import yaml

from llm_blender_ray.configs.loading import load
from llm_blender_ray.pipelines.cli.options import (
    AsJson,
    Config,
    Debug,
    Limit,
    Overwrite,
    RetryFailed,
    RunInput,
    RunOutput,
    Set,
    Update,
    UsageError,
    rows_settings,
)
from llm_blender_ray.pipelines.cli.prepared import Prepared, works_on_cluster
from llm_blender_ray.pipelines.cli.printing import print_summary


@works_on_cluster("judge")
def judge_command(
    config: Config,
    input: RunInput = None,
    output: RunOutput = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
    set_: Set = [],  # noqa: B006 (typer copies it)
    debug: Debug = False,
) -> Prepared:
    """LLM judges compare the answers of rows pairwise. Resumes where it was stopped; prints each judge's biases."""
    from llm_blender_ray.configs.judges import JudgeConfig

    existing = {"overwrite": overwrite, "update": update, "retry_failed": retry_failed}
    settings = rows_settings(config, JudgeConfig, set_, input, output, limit, **existing)

    def start() -> None:
        from rich.console import Console

        from llm_blender_ray.pipelines.bulk.judge import run_judge
        from llm_blender_ray.pipelines.quality.judge_bias import bias_table

        summary = run_judge(settings, **existing)
        reports = summary.manifest.judges
        if as_json:
            typer.echo(json.dumps(reports, indent=2))
        elif reports:
            Console().print(bias_table(reports))
        print_summary(summary)

    return Prepared(start, settings)


def plan_judging(
    config: str, gpus: int | None, measured: str | None, answer_tokens: int | None, overrides: list[str]
) -> None:
    """Do `blend plan` for a config of judges."""
    if measured is not None:
        raise UsageError("--measured is of a blend's run; --answer-tokens sets the length of a judge's reply")
    from llm_blender_ray.configs.judges import JudgeConfig
    from llm_blender_ray.pipelines.bulk.judge_estimate import show_judging_plan

    show_judging_plan(load(config, JudgeConfig, overrides), gpus, answer_tokens=answer_tokens)


def names_judges(config: str) -> bool:
    """Whether a config file is one of `blend judge`; one that cannot be read is reported when it is loaded."""
    try:
        data = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and "judges" in data

"""Section about judgements: the leaderboard of models, ranker and blend, and the biases of LLM judges."""

from llm_blender_ray.configs.extras import missing_extra, require
from llm_blender_ray.pipelines.quality.judge_bias import BIAS_CAPTION, BIAS_COLUMNS, bias_lines, judge_bias
from llm_blender_ray.pipelines.quality.leaderboard import LEADERBOARD_NEEDS, leaderboard
from llm_blender_ray.pipelines.quality.leaderboard_tables import findings_of, leaderboard_columns
from llm_blender_ray.pipelines.report.numbers import Numbers
from llm_blender_ray.pipelines.report.parts import Section, Table


def judgement_section(numbers: Numbers) -> Section | None:
    """The leaderboard of a run with judgements or votes, and its judges' biases; None without any."""
    if not numbers.contest.judges:
        return None
    title = "Who is better, by judgements"
    biases = bias_lines(judge_bias(numbers.by_llms))
    judge_tables = [Table(f"LLM judges. {BIAS_CAPTION}.", ("", *BIAS_COLUMNS), tuple(biases))] if biases else []
    try:
        require(*LEADERBOARD_NEEDS)
    except ModuleNotFoundError as error:
        return Section(title, (f"Not computed: {missing_extra(error)}",), tables=tuple(judge_tables))
    report = leaderboard(numbers.contest)
    columns = leaderboard_columns(report["table"], report["baseline"])
    judges = ", ".join(f"{name} ({count:,})" for name, count in report["judges"].items())
    compared = len(report["table"]["differences"])
    table = Table(
        caption=f"{report['comparisons']:,} judgements of {report['rows']:,} rows, by {judges}. ± and [ ] are 95% "
        "intervals over prompts. Place: 1 + the number of systems that are better after Holm's correction for all "
        f"{compared:,} comparisons.",
        head=("", *columns),
        lines=tuple(zip(report["table"]["systems"], *columns.values(), strict=True)),
    )
    return Section(title, tuple(findings_of(report["table"])), tables=(table, *judge_tables))

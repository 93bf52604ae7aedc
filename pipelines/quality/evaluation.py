"""Quality of a run: each base LLM, random choice, the best candidate, the ranker's choice, the blend.

Against references (the column `output`): the registered metrics (`quality.metrics`). Against the candidates' given
scores: those, higher is better. Every row is compared by itself, so that random choice is an expectation, not a
draw, and the oracle takes the best of each row. Users' votes: `quality.votes`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.text import Text

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import read_prompt
from llm_blender_ray.configs.extras import missing_extra, require
from llm_blender_ray.pipelines.quality.answer_scores import given_fused_scores, given_scores, score_answers
from llm_blender_ray.pipelines.quality.contest import Contest
from llm_blender_ray.pipelines.quality.judge_bias import bias_table, judge_bias
from llm_blender_ray.pipelines.quality.judgements import Outcome, read_llm_judgements, read_outcomes
from llm_blender_ray.pipelines.quality.leaderboard import LEADERBOARD_NEEDS, leaderboard
from llm_blender_ray.pipelines.quality.leaderboard_tables import (
    WideTable,
    better_lines,
    mean_text,
    render_leaderboard,
)
from llm_blender_ray.pipelines.quality.metrics import Metric, default_metrics, metric_label
from llm_blender_ray.pipelines.quality.paired import Difference
from llm_blender_ray.pipelines.quality.row_progress import with_progress
from llm_blender_ray.pipelines.quality.run_cost import RunCost
from llm_blender_ray.pipelines.quality.tally import Tally, corrected_differences
from llm_blender_ray.pipelines.quality.votes import Votes, name_of
from llm_blender_ray.pipelines.quality.votes import table as table_of_votes
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.storage import put
from llm_blender_ray.pipelines.rows.user_columns import references_of

LINES = {
    "random": "random choice",
    "oracle": "best candidate (oracle)",
    "ranker": "ranker's choice",
    "blend": "blend",
}
_BATCH = 64  # rows whose texts metrics score at once


class Quality:
    """Quality of a stream of rows by several metrics. Rows with an error are left out.

    Attributes:
        scores: A tally for each metric in the candidates' given scores.
    """

    def __init__(self, metrics: Sequence[Metric] | None = None, order_by: Metric | None = None) -> None:
        """Start without rows.

        Args:
            metrics: Metrics against references; None: `quality.metrics.default_metrics`.
            order_by: The metric that orders systems, which is computed too; None: the first that tells candidates
                apart, of given metrics in their order, of the default ones by `Metric.report_order`.
        """
        self.scores: dict[str, Tally] = defaultdict(Tally)
        self._named = order_by.key if order_by else None
        self._by_report_order = metrics is None
        self._metrics = {metric.key: metric for metric in default_metrics() if metrics is None}
        self._metrics |= {metric.key: metric for metric in (*(metrics or ()), *([order_by] if order_by else ()))}
        self._tallies = {
            key: Tally(sign=1 if metric.higher_is_better else -1) for key, metric in self._metrics.items()
        }
        self._pending: list[tuple[Mapping[str, Any], list[str]]] = []

    @property
    def references(self) -> dict[str, Tally]:
        """A tally for each metric against references; a metric that does not apply to some row is absent."""
        self._score_pending()
        return {key: self._tallies[key] for key in self._metrics if self._tallies[key].systems}

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of `references` by their keys."""
        return {key: self._metrics[key] for key in self.references}

    @property
    def order_by(self) -> str | None:
        """Key of the metric against references that orders systems: mean rank, best and pairs are by it."""
        tallies = self.references
        if self._named in tallies:
            return self._named
        keys = [*tallies]
        if self._by_report_order:
            keys.sort(key=lambda key: self._metrics[key].report_order)
        return next((key for key in keys if tallies[key].varies), next(iter(keys), None))

    def differences(self) -> dict[tuple[str, str], list[Difference]]:
        """Leads of the blend and the ranker's choice, corrected for all of them.

        Returns:
            The leads by ("references", metric) and ("scores", name).
        """
        tallies = {("references", name): tally for name, tally in self.references.items()}
        tallies |= {("scores", name): tally for name, tally in self.scores.items()}
        return corrected_differences(tallies)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `rows.readers.read_rows`."""
        if row["error"] is not None:
            return
        candidates, references = row["candidates"] or (), references_of(row)
        if references and (candidates or row["fused"] is not None):
            self._pending.append((row, references))
            if len(self._pending) == _BATCH:
                self._score_pending()
        fused = given_fused_scores(row)
        for name, given in given_scores(candidates).items():
            self.scores[name].add(row, given, fused.get(name))

    def merge(self, other: Self) -> None:
        """Add the rows of another."""
        for one in (self, other):
            one._score_pending()
        self._metrics = {key: metric for key, metric in self._metrics.items() if key in other._metrics}
        for key, tally in other._tallies.items():
            self._tallies[key].merge(tally)
        for name, tally in other.scores.items():
            self.scores[name].merge(tally)

    def _score_pending(self) -> None:
        rows, self._pending = self._pending, []
        if not rows:
            return
        self._metrics = {
            key: metric
            for key, metric in self._metrics.items()
            if all(metric.applies(references) for _, references in rows)
        }
        for (row, _), scores in zip(rows, score_answers([row for row, _ in rows], self._metrics), strict=True):
            for key, one in scores.items():
                self._tallies[key].add(row, one.candidates, one.fused)


def evaluate(
    rows: Iterable[Mapping[str, Any]], metrics: Sequence[Metric] | None = None, order_by: Metric | None = None
) -> dict[str, Any]:
    """Evaluate rows.

    Args:
        rows: Rows of `rows.readers.read_rows`. Those with an error are counted and left out.
        metrics: See `Quality`.
        order_by: See `Quality`.

    Returns:
        Plain data, ready for JSON: {"rows", "errors", "error_rate", "comparisons", "references": {metric:
        table}, "order_by": the metric of `references` that orders systems, "scores": {metric: table},
        "votes"}. A table is {"rows", "models": {name: {"mean", "rank", "best_share"}}, "random", "oracle",
        "ranker", "blend", "pairwise", "ci95_half_widths": the same for intervals, "differences": leads of
        the blend and the ranker's choice, row by row (`Difference`), with "better" where one holds after
        correction for all of them}. Rank 1 is the best, ties take the mean of their ranks; models that tie
        for a row's best share it. "pairwise" is the share of pairs of different quality that the ranker
        orders right. "votes" is `Votes.report`, None without votes. Rows with judgements, votes included,
        also have "judgements", which is `leaderboard.leaderboard`, and rows of `blend judge` "judges"
        (`judge_bias`). A candidate without text has the metric's worst score.

    Raises:
        BlendError: No row can be evaluated.
    """
    count, errors, comparisons = 0, 0, 0
    quality, votes, contest = Quality(metrics, order_by), Votes(), Contest()
    by_llms: list[Outcome] = []
    for row in rows:
        count += 1
        comparisons += row["comparisons"] or 0
        errors += row["error"] is not None
        quality.add(row)
        votes.add(row)
        contest.add(row)
        by_llms += read_outcomes([row], read=read_llm_judgements)
    contest.finish()
    if not quality.references and not quality.scores and not contest.judges:
        raise BlendError(
            f"nothing to evaluate: of {count} rows, {errors} with an error, none has candidates and a reference "
            "(`output`), candidates with `scores`, a person's `vote`, or judgements"
        )
    references, scores = quality.references, dict(sorted(quality.scores.items()))
    differences = quality.differences()
    return {
        "rows": count,
        "errors": errors,
        "error_rate": errors / count,
        "comparisons": comparisons,
        "references": {name: one.report(differences["references", name]) for name, one in references.items()},
        "order_by": quality.order_by,
        "scores": {name: one.report(differences["scores", name]) for name, one in scores.items()},
        "votes": votes.report() if votes.count else None,
        **_judged(contest),
        **({"judges": judge_bias(by_llms)} if by_llms else {}),
    }


def _judged(contest: Contest) -> dict[str, Any]:
    """The leaderboard of rows with judgements."""
    if not contest.judges:
        return {}
    try:
        require(*LEADERBOARD_NEEDS)
    except ModuleNotFoundError as error:  # the rest of the report needs no extra
        return {"judgements": None, "judgements_missing": missing_extra(error)}
    return {"judgements": leaderboard(contest)}


def evaluate_uri(
    uri: str,
    limit: int | None = None,
    metrics: Sequence[Metric] | None = None,
    order_by: Metric | None = None,
) -> dict[str, Any]:
    """`evaluate` the rows of a file, folder or glob, and show progress."""
    return evaluate(with_progress(read_rows(uri, limit), "evaluate"), metrics, order_by)


def main(
    uri: str,
    *,
    as_json: bool = False,
    examples: int = 0,
    metrics: Sequence[Metric] | None = None,
    order_by: Metric | None = None,
    cost_of: Callable[[str], RunCost | None] = lambda _: None,
    output: str | None = None,
) -> None:
    """Print the report of a URI's rows.

    Args:
        uri: The rows.
        as_json: As JSON in place of tables.
        examples: Rows to print as prose, after the tables.
        metrics: See `Quality`.
        order_by: See `Quality`.
        cost_of: Cost of the run that wrote the rows of a URI; None: unknown, or nothing is billed.
        output: File for the report as JSON, too; local or in S3.

    Raises:
        BlendError: The rows can't be read, or the file can't be written.
    """
    report = evaluate_uri(uri, metrics=metrics, order_by=order_by)
    cost = cost_of(uri)
    report |= {"cost": asdict(cost)} if cost else {}
    text = json.dumps(report, indent=2)
    if output is not None:
        put(output, f"{text}\n".encode())
    if as_json:
        print(text)
        return
    console = Console()
    console.print(render(report))
    if cost:
        console.print(Text(" ".join(cost.sentences())), soft_wrap=True)
    for row in islice((row for row in read_rows(uri) if row["error"] is None), examples):
        console.print(Text(f"\n{describe(row)}"), soft_wrap=True)


def describe(row: Mapping[str, Any]) -> str:
    """One row as prose: the prompt, every answer with its rank, the fused answer."""
    instruction, given_input = read_prompt(row).texts()
    lines = [f"Prompt {row['id']}: {instruction}", *([f"  {given_input}"] if given_input else [])]
    candidates, ranking = row["candidates"] or [], row["ranking"] or []
    unranked = [index for index in range(len(candidates)) if index not in ranking]
    for place, index in [*enumerate(ranking, 1), *((None, index) for index in unranked)]:
        one = candidates[index]
        answer = f"no answer: {one['error']}" if one["text"] is None else one["text"]
        lines.append(f"  {place or '-'}. {name_of(one, index)}: {answer}")
    if row["fused"] is not None:
        taken = ", ".join(name_of(candidates[index], index) for index in row["fused_from"] or ())
        lines.append(f"  Blend{f' of {taken}' if taken else ''}: {row['fused']}")
    lines += [f"  Reference: {reference}" for reference in references_of(row)]
    return "\n".join(lines)


def render(report: Mapping[str, Any]) -> Group:
    """The report as tables to print with rich: for references, for each given score, and for votes."""
    head = f"{report['rows']} rows, {report['errors']} with an error, {report['comparisons']} comparisons"
    tables: list[RenderableType] = []
    if report["references"]:
        tables.append(_table("Against references", report["references"], report["order_by"]))
    tables += [_table(f"By given score: {name}", {name: table}, name) for name, table in report["scores"].items()]
    tables += [table_of_votes(report["votes"])] if report["votes"] else []
    tables += [render_leaderboard(report["judgements"])] if report.get("judgements") else []
    tables += [bias_table(report["judges"])] if "judges" in report else []
    tables += [Text(f"judgements: {report['judgements_missing']}")] if report.get("judgements_missing") else []
    return Group(Text(head), *tables)


def _table(title: str, metrics: Mapping[str, Mapping[str, Any]], order_by: str) -> Group:
    """A line per system, a column per metric; rank, best and the order of models are by one of them."""
    leading = metrics[order_by]
    models = sorted(leading["models"], key=lambda name: (leading["models"][name]["rank"], name))
    lines: list[tuple[str, tuple[str, ...]]] = [(name, ("models", name)) for name in models]
    lines += [(label, (key,)) for key, label in LINES.items() if leading.get(key)]
    columns = [
        (metric_label(name), [_cell(one, path, ("mean",)) for _, path in lines]) for name, one in metrics.items()
    ]
    columns.append(("mean rank", [_cell(leading, path, ("rank",), digits=2) for _, path in lines]))
    columns.append(("best", [_cell(leading, path, ("best_share", "is_best"), share=True) for _, path in lines]))
    notes = ["± is half a 95% interval"]
    if len(metrics) > 1:
        notes.append(f"mean rank and best are by {metric_label(order_by)}")
    if leading["pairwise"] is not None:
        notes.append(f"the ranker orders {leading['pairwise']:.1%} of pairs of different quality right")
    order = ["blend", "ranker", *models]
    return Group(
        WideTable(f"{title} ({leading['rows']} rows)", [label for label, _ in lines], columns),
        Text("; ".join(notes), style="italic"),
        *map(Text, better_lines(leading["differences"], order, f" by {metric_label(order_by)}")),
    )


def _cell(
    table: Mapping[str, Any], path: Sequence[str], keys: Sequence[str], *, digits: int = 3, share: bool = False
) -> str:
    """The first of these means that a system has, and half its interval."""
    values, halves = table, table["ci95_half_widths"]
    for name in path:
        values, halves = values.get(name, {}), halves.get(name, {})
    key = next((key for key in keys if key in values), None)
    return "" if key is None else mean_text(values[key], halves[key], digits=digits, share=share)

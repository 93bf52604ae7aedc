"""Sections of a report: numbers in; texts, figures and tables for `page.html` out.

Every text is plain and gets escaped by the template; only figures are markup. A section without numbers is left
out, and `missing` gives the reason.
"""

from collections.abc import Sequence

from markupsafe import Markup

from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.report import plots
from llm_blender_ray.pipelines.report.costs import cost_section
from llm_blender_ray.pipelines.report.judgements import judgement_section
from llm_blender_ray.pipelines.report.numbers import Numbers, by_standing, errors_of_models
from llm_blender_ray.pipelines.report.parts import (
    MAX_MODELS,
    Figure,
    Section,
    Table,
    percent_plus_minus,
    plus_minus,
    share,
    value_of,
)
from llm_blender_ray.pipelines.report.quality import quality_sections


def sections(numbers: Numbers, manifest: Manifest | None) -> list[Section]:
    """All sections that there are numbers for, in the page's order."""
    names = by_standing(numbers)
    if len(names) > MAX_MODELS:
        often = sorted(names, key=lambda name: -numbers.models[name].answers)[:MAX_MODELS]
        names = [name for name in names if name in often]
    found = [
        *quality_sections(numbers, names),
        judgement_section(numbers),
        _standing(numbers, names),
        _comparisons(numbers, manifest),
        _lengths(numbers, names),
        _errors(numbers, names),
        _stages(manifest),
        cost_section(numbers, manifest),
    ]
    return [section for section in found if section is not None]


def missing(numbers: Numbers, manifest: Manifest | None) -> list[str]:
    """What the page lacks, and what would provide it."""
    quality, notes = numbers.sample.quality, []
    if not numbers.rows:
        notes.append("There are no rows.")
    elif not numbers.with_candidates:
        notes.append("No LLMs: no row has candidates.")
    elif not quality.references and not quality.scores and not numbers.contest.judges:
        notes.append("No quality: no row without an error has a reference (output), and no candidate has scores.")
    if numbers.with_candidates and not numbers.ranked:
        notes.append("No ranking: no row is ranked.")
    elif numbers.ranked and not numbers.orders.pairs and not _rankers(manifest):
        notes.append("No agreement of both orders: rows have no logits (matrix: true, or blend rank --matrix).")
    if manifest is None:
        notes.append("No times, versions and settings: these rows have no manifest of a finished run.")
    elif manifest.output.rows != numbers.rows:
        notes.append(
            f"The manifest counts {manifest.output.rows:,} rows, {numbers.rows:,} were read: "
            "these aren't the rows that the run wrote."
        )
    if len(numbers.models) > MAX_MODELS:
        notes.append(f"Of {len(numbers.models):,} LLMs the {MAX_MODELS} with the most answers are shown.")
    return notes


# ---- ranking


def _standing(numbers: Numbers, names: Sequence[str]) -> Section | None:
    names = [name for name in names if numbers.models[name].first.count]
    if not names:
        return None
    models = [numbers.models[name] for name in names]
    first = [model.first.value or 0.0 for model in models]
    fused = [model.fused.value for model in models]
    above = [[numbers.share_above(one, other) if one != other else None for other in names] for one in names]
    figures = [
        Figure(
            "Who is chosen",
            Markup(plots.chosen(names, first, fused, "chosen")),
            "How often each LLM is ranked first: "
            + ", ".join(f"{name} {100 * value:.0f}%" for name, value in zip(names, first, strict=True)),
            "Of the rows that rank an answer of the LLM; answers that tie for the first place share it."
            + (" Of the fused rows: those in which the fuser got it." if any(v is not None for v in fused) else ""),
        )
    ]
    if len(names) > 1:
        figures.append(
            Figure(
                "Who beats whom",
                Markup(plots.matrix(names, above, "wins")),
                "Win matrix: " + _wins(names, above),
                "% of rows in which the LLM of the line is ranked above that of the column. What is missing to 100 "
                "with the opposite cell are ties: equal answers or equal scores.",
                plots.is_wide(len(names)),
            )
        )
    table = Table(
        caption=f"{numbers.ranked:,} ranked rows; ± is half a 95% interval. The best mean rank is on top.",
        head=("", "mean rank", "ranked first", "among those fused", "rows"),
        lines=tuple(
            (
                name,
                plus_minus(model.rank, digits=2),
                percent_plus_minus(model.first),
                percent_plus_minus(model.fused),
                f"{model.first.count:,}",
            )
            for name, model in zip(names, models, strict=True)
        ),
    )
    return Section("Who wins", figures=tuple(figures), tables=(table,))


def _wins(names: Sequence[str], above: Sequence[Sequence[float | None]]) -> str:
    means = []
    for name, line in zip(names, above, strict=True):
        known = [value for value in line if value is not None]
        if known:
            means.append(f"{name} is above the others in {100 * sum(known) / len(known):.0f}%")
    return ", ".join(means)


def _rankers(manifest: Manifest | None) -> list[StageRecord]:
    return [stage for stage in manifest.stages if stage.kind == "rank" and stage.both_orders] if manifest else []


def _comparisons(numbers: Numbers, manifest: Manifest | None) -> Section | None:
    orders, lines = numbers.orders, []
    if numbers.compared:
        lines += [
            ("forwards made", f"{numbers.forwards:,}"),
            ("forwards a row", f"{numbers.forwards / numbers.compared:.1f}"),
            ("all pairs of different answers in both orders", f"{numbers.full:,}"),
        ]
        if numbers.full:
            lines.append(("saved", share(numbers.full - numbers.forwards, numbers.full)))
    if orders.pairs:
        lines.append(("pairs with both orders", f"{orders.pairs:,}"))
        if orders.mirrored < orders.pairs:
            lines += [
                ("both orders prefer the same answer", share(orders.agreeing, orders.pairs)),
                ("worth of standing on the left (mean logit)", value_of(orders.bias, sign=True)),
                ("difference of two answers (mean size, logit)", value_of(orders.margin)),
            ]
    for stage in [] if orders.pairs else _rankers(manifest):
        lines += [
            (f"pairs with both orders ({stage.name})", f"{stage.both_orders:,}"),
            (f"both orders prefer the same answer ({stage.name})", share(stage.agreeing, stage.both_orders)),
        ]
    if not lines:
        return None
    texts = []
    if numbers.compared and numbers.forwards > numbers.full:
        texts.append("More forwards were made than all pairs need: their rows have candidates that came later.")
    if orders.pairs and orders.mirrored == orders.pairs:
        texts.append(
            "One forward gave both orders of every pair (the scorer looks at one answer at a time), so they agree."
        )
    table = Table(
        caption="Counted are the forwards that a ranking took, none for what a cache knew. The worth of "
        "standing on the left is half of logit(i, j) + logit(j, i), the difference of two answers half of "
        "|logit(i, j) - logit(j, i)|.",
        head=("", ""),
        lines=tuple(lines),
    )
    return Section("Comparisons", tuple(texts), tables=(table,))


# ---- answers


def _lengths(numbers: Numbers, names: Sequence[str]) -> Section | None:
    sample = numbers.sample
    names = [name for name in names if numbers.models[name].answers]
    drawn: list[tuple[str, list[int]]] = [
        (name, sample.lengths[name]) for name in names if sample.lengths.get(name)
    ]
    if sample.lengths.get(None):
        drawn.append(("fused", sample.lengths[None]))
    if not drawn:
        return None
    texts = []
    if numbers.longest_first.count and numbers.longer_above.value is not None:
        first, chance = numbers.longest_first, numbers.by_chance.value or 0.0
        texts.append(
            f"The longest answer is ranked first in {percent_plus_minus(first)} of the rows; if length didn't "
            f"matter, it would be in {100 * chance:.1f}%. Of two answers the longer one is ranked above in "
            f"{100 * numbers.longer_above.value:.1f}% of the pairs; chance is 50%. That tells what the ranker "
            "likes, not whether it is wrong: longer answers may be better."
        )
    sampled = (
        f" Of a random sample of {sample.rows:,} of {numbers.rows:,} rows." if sample.rows < numbers.rows else ""
    )
    medians = ", ".join(f"{name} {sorted(values)[len(values) // 2]:,}" for name, values in drawn)
    figure = Figure(
        "Lengths in characters",
        Markup(plots.spread([name for name, _ in drawn], [values for _, values in drawn], "lengths")),
        f"Median length in characters: {medians}",
        f"Box: median (named) and quartiles; whiskers: 5% to 95%.{sampled}",
    )
    lines = [
        (
            name,
            f"{model.answers:,}",
            plus_minus(model.characters, digits=0),
            plus_minus(model.tokens, digits=1),
        )
        for name, model in ((name, numbers.models[name]) for name in names)
    ]
    if numbers.fused:
        lines.append(("fused", f"{numbers.fused:,}", plus_minus(numbers.fused_characters, digits=0), ""))
    columns = 4 if any(line[3] for line in lines) else 3  # without tokens if no row has them
    table = Table(
        "Mean length ± half its 95% interval.",
        ("", "answers", "characters", "completion tokens")[:columns],
        tuple(line[:columns] for line in lines),
    )
    return Section("Length of the answers", tuple(texts), (figure,), (table,))


def _errors(numbers: Numbers, names: Sequence[str]) -> Section | None:
    tables = []
    if numbers.errors.total:
        tables.append(
            Table(
                f"Rows with an error: {numbers.errors.total:,} of {numbers.rows:,}. What differs from row to row "
                "is cut out: N is a number.",
                ("kind", "rows", "of all rows", "for example"),
                tuple(
                    (kind, f"{n:,}", share(n, numbers.rows), numbers.errors.examples.get(kind, ""))
                    for kind, n in numbers.errors.most(20)
                ),
                (3,),
            )
        )
    failures = list(errors_of_models(numbers))
    if failures:
        rest = sum(n for _, _, n in failures[20:])
        tables.append(
            Table(
                f"Answers with an error: {sum(n for _, _, n in failures):,}.",
                ("LLM", "kind", "answers", "of its rows"),
                tuple(
                    (name, kind, f"{n:,}", share(n, numbers.models[name].answers + numbers.models[name].failed))
                    for name, kind, n in failures[:20]
                )
                + ((("others", "", f"{rest:,}", ""),) if rest else ()),
                (1,),
            )
        )
    if names:
        reasons = sorted({reason for name in names for reason in numbers.models[name].finish if reason})
        reasons = sorted(
            reasons, key=lambda reason: ("stop", "length").index(reason) if reason in ("stop", "length") else 2
        )[:6]
        tables.append(
            Table(
                "How answers ended, in % of the LLM's rows. An answer that reached its longest length is cut off.",
                (
                    "",
                    "rows",
                    *({"length": "cut off (length)"}.get(reason, reason) for reason in reasons),
                    "unknown",
                    "failed",
                ),
                tuple(
                    (
                        name,
                        f"{all_of:,}",
                        *(share(model.finish[reason], all_of) for reason in reasons),
                        share(model.finish[""], all_of),
                        share(model.failed, all_of),
                    )
                    for name, model, all_of in (
                        (name, numbers.models[name], numbers.models[name].answers + numbers.models[name].failed)
                        for name in names
                    )
                ),
            )
        )
    texts = () if numbers.errors.total or failures or not numbers.rows else ("No row and no answer has an error.",)
    return Section("Errors and ends", texts, tables=tuple(tables)) if tables or texts else None


# ---- time


def _stages(manifest: Manifest | None) -> Section | None:
    if manifest is None or not manifest.stages:
        return None
    timed = [stage for stage in manifest.stages if stage.seconds > 0]
    writers = [stage for stage in timed if stage.completion_tokens]
    figures = []
    if timed:
        figures.append(
            Figure(
                "Seconds at work",
                Markup(
                    plots.bars([s.name for s in timed], [s.seconds for s in timed], "seconds of actors", "work")
                ),
                "Seconds at work: " + ", ".join(f"{stage.name} {stage.seconds:,.0f}" for stage in timed),
                "Summed over the stage's actors.",
            )
        )
    if writers:
        rates = [stage.completion_tokens / stage.seconds for stage in writers]
        figures.append(
            Figure(
                "Tokens written a second",
                Markup(plots.bars([s.name for s in writers], rates, "completion tokens/s of an actor", "rates")),
                "Tokens written a second by one actor: "
                + ", ".join(f"{stage.name} {rate:,.0f}" for stage, rate in zip(writers, rates, strict=True)),
                "Of one actor, while it is at work.",
            )
        )
    table = Table(
        "Rates are of one actor while at work. A stage without seconds took all results from an earlier run.",
        (
            "",
            "does",
            "model",
            "wave",
            "actors",
            "rows",
            "failed",
            "seconds",
            "rows/s",
            "LLM calls",
            "tokens read",
            "cached",
            "tokens written",
            "reasoning",
            "written/s",
        ),
        tuple(
            (
                stage.name,
                stage.kind,
                plots.short(stage.runs, 44),
                f"{stage.wave:,}",
                f"{stage.replicas:,}",
                f"{stage.rows:,}",
                f"{stage.failed:,}",
                f"{stage.seconds:,.1f}",
                f"{stage.rows / stage.seconds:,.1f}" if stage.seconds else "",
                *(
                    f"{count:,}" if count else ""
                    for count in (
                        stage.calls,
                        stage.prompt_tokens,
                        stage.cached_prompt_tokens,
                        stage.completion_tokens,
                        stage.reasoning_tokens,
                    )
                ),
                f"{stage.completion_tokens / stage.seconds:,.1f}"
                if stage.seconds and stage.completion_tokens
                else "",
            )
            for stage in manifest.stages
        ),
        (2,),
    )
    return Section("Time and tokens", _uncounted(manifest.stages), tuple(figures), (table,))


def _uncounted(stages: Sequence[StageRecord]) -> tuple[str, ...]:
    """What the tokens lack."""
    unreported, uncounted = (sum(getattr(s, name) for s in stages) for name in ("unreported_calls", "uncounted"))
    texts = []
    if unreported:
        texts.append(f"{unreported:,} calls came without token counts, so that the tokens are a lower bound.")
    if uncounted:
        texts.append(f"{uncounted:,} results of an earlier version have the tokens of base LLMs' answers alone.")
    return tuple(texts)

"""What a leaderboard is made of: the judgements and scores of rows, and the options that choose among them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import digest, read_prompt
from llm_blender_ray.pipelines.quality.answer_scores import given_fused_scores, given_scores, score_answers
from llm_blender_ray.pipelines.quality.bradley_terry import STRENGTH_RESAMPLES, Control
from llm_blender_ray.pipelines.quality.judgements import Outcome, Preferred, read_judgements, read_outcomes
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.quality.outcome_table import OutcomeRecorder, OutcomeTable
from llm_blender_ray.pipelines.quality.rankings import JudgedRow, answers_of, implied_judgements, systems_of
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, side_text
from llm_blender_ray.pipelines.rows.user_columns import column, references_of

REFERENCE = "reference"  # contestant of a score that is the probability to beat the row's `output`
MOST_SLICES = 50
_BATCH = 64  # rows whose texts metrics score at once


@dataclass(frozen=True, slots=True)
class LeaderboardOptions:
    """What a leaderboard shows, and of what.

    Attributes:
        judges: Names of judges; none: all.
        score: Given score that stands in for judgements.
        metric: Metric that does.
        baseline: Contestant that win rates are against, or `REFERENCE`; None: against all others.
        at_least: Models of the columns ">= model".
        top_k: Places that count in the column Top-k.
        controls: What strengths hold fixed in further columns.
        slice_by: Columns of the rows, for whose values there is a table each.
        columns: Metrics whose means are further columns.
        paper: Whether the means of all given scores are columns, too, and random choice and oracles have lines.
        resamples: Draws of the bootstrap.
        seed: Of resamples and permutations.
    """

    judges: tuple[str, ...] = ()
    score: str | None = None
    metric: Metric | None = None
    baseline: str | None = None
    at_least: tuple[str, ...] = ()
    top_k: int = 3
    controls: tuple[Control, ...] = ()
    slice_by: tuple[str, ...] = ()
    columns: tuple[Metric, ...] = ()
    paper: bool = False
    resamples: int = STRENGTH_RESAMPLES
    seed: int = 0


class Contest:
    """Judgements and scores of rows, as a leaderboard needs them.

    Rows with the same prompt and the same values of the sliced columns are one prompt, whatever their ids, as in
    `quality.raters`: two judges may have a file each, and votes a row each. Rows of one prompt with the same
    answers and ranking are one row.

    Attributes:
        judges: Number of judgements that count, by judge.
        all_judges: The judges of all rows, also those that the options leave out.
    """

    def __init__(self, options: LeaderboardOptions = LeaderboardOptions()) -> None:
        self.options = options
        self.rows: list[JudgedRow] = []
        self.judges: Counter[str] = Counter()
        self.all_judges: dict[str, None] = {}
        self.found = self.errors = 0
        self.signs: dict[str, int] = {}
        self._prompts: dict[tuple[tuple[str, ...], bytes], int] = {}
        self._known: dict[tuple[int, Side | None, bytes], int] = {}  # rows by prompt, ranking and answers
        self._outcomes = OutcomeRecorder(with_style=bool(options.controls))
        self._given: set[str] = set()
        metrics = options.columns if options.metric is None else (*options.columns, options.metric)
        self._metrics = {one.key: one for one in metrics}
        self._dropped: set[str] = set()
        self._unknown = list(options.slice_by)  # columns without a value so far
        self._pending: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `rows.readers.read_rows`."""
        self.found += 1
        self.errors += row["error"] is not None
        if row["error"] is not None:
            return
        self._pending.append(row)
        if len(self._pending) == _BATCH:
            self.finish()

    def finish(self) -> None:
        """Take in the rows that wait for a batch."""
        rows, self._pending = self._pending, []
        scored = [row for row in rows if references_of(row) and self._metrics]
        for key, one in list(self._metrics.items()):
            if not all(one.applies(references_of(row)) for row in scored):
                del self._metrics[key]
                self._dropped.add(key)
        by_metric = iter(score_answers(scored, self._metrics))
        for row in rows:
            scores: dict[str, dict[Side, float]] = {}
            if references_of(row) and self._metrics:
                for key, found in next(by_metric).items():
                    fused: dict[Side, float] = {} if found.fused is None else {FUSED: found.fused}
                    scores[key] = {**dict(enumerate(found.candidates)), **fused}
                    self.signs[key] = 1 if self._metrics[key].higher_is_better else -1
            # Without an option for them, scores are only looked at to be named in an error.
            looks = self.options.paper or self.options.score is not None or self.found <= _BATCH
            given = given_scores(row["candidates"] or ()) if looks else {}
            of_fused = given_fused_scores(row) if given else {}
            self._given |= set(given)
            for name in given if self.options.paper else [self.options.score or ""]:
                if name in given and name not in scores:
                    scores[name] = {at: value for at, value in enumerate(given[name]) if value is not None}
                    scores[name] |= {FUSED: of_fused[name]} if name in of_fused else {}
            self._take(row, scores)

    def _take(self, row: Mapping[str, Any], scores: dict[str, dict[Side, float]]) -> None:
        options, source = self.options, self.source
        if source is None:
            judgements = read_judgements(row)
            self.all_judges |= dict.fromkeys(one.judge for one in judgements)
            judgements = [one for one in judgements if not options.judges or one.judge in options.judges]
        else:
            judgements = implied_judgements(source, scores.get(source, {}), self.signs.get(source, 1))
        if not judgements and not scores.get(source or "") and not (options.paper and scores):
            return
        self.judges.update(one.judge for one in judgements)
        given = {name: column(row, name) for name in options.slice_by}
        self._unknown = [name for name in self._unknown if given[name] is None]
        values = tuple(map(str, given.values()))
        given_prompt = read_prompt(row)
        prompt = self._prompts.setdefault((values, digest(given_prompt)), len(self._prompts))
        chosen = row["ranking"][0] if row["ranking"] else None
        judged = JudgedRow(answers_of(row), judgements, chosen, scores, values, prompt)
        if options.baseline == REFERENCE:
            outcomes = self._against_reference(row, judged, source)
        else:
            outcomes = read_outcomes([row], read=lambda _: judgements)
        for one in outcomes:
            self._outcomes.add(prompt, one)
        texts = (side_text(row, side) or "" for side in judged.names)
        sides = map(str, judged.names)
        answers = digest(given_prompt, *sides, *judged.names.values(), *texts)  # not the texts, for memory
        at = self._known.setdefault((prompt, chosen, answers), len(self.rows))
        if at == len(self.rows):
            self.rows.append(judged)
        else:
            known = self.rows[at]
            self.rows[at] = replace(
                known,
                judgements=[*known.judgements, *judgements],
                scores={**known.scores, **scores},
                count=known.count + 1,
            )

    def _against_reference(self, row: Mapping[str, Any], judged: JudgedRow, score: str | None) -> Iterator[Outcome]:
        references = references_of(row)
        for side, value in judged.scores.get(score or "", {}).items():
            if not 0 <= value <= 1:
                raise BlendError(
                    f"--baseline {REFERENCE}: expected the score {score!r} to be a probability, got {value!r} "
                    f"in row {row['id']!r}"
                )
            text = row["candidates"][side]["text"] or ""
            preferred: Preferred = "left" if value > 0.5 else "right" if value < 0.5 else "tie"
            yield Outcome(
                str(row["id"]),
                str(score),
                judged.names[side],
                REFERENCE,
                preferred,
                text,
                references[0] if references else "",
                probability=value,
            )

    @property
    def source(self) -> str | None:
        """Name of the score or metric that stands in for judgements; None: judgements."""
        return self.options.metric.key if self.options.metric else self.options.score

    def outcomes(self) -> OutcomeTable:
        """Outcomes of all rows, in the order of `rows`."""
        return self._outcomes.table()

    def check(self) -> None:
        """Check that there is something to compare.

        Raises:
            BlendError: No row has what the options ask for, or a named contestant is not in it.
        """
        self.finish()
        options = self.options
        if self.source in self._dropped:
            raise BlendError(f"--metric {self.source}: it has no meaning for some of the rows")
        self.rows = [
            replace(row, scores={key: one for key, one in row.scores.items() if key not in self._dropped})
            for row in self.rows
        ]
        if not any(row.judgements or row.scores for row in self.rows):
            given = f"scores ({', '.join(sorted(self._given))})" if self._given else "no scores"
            wanted = f"judgements of {', '.join(options.judges)}" if options.judges else "judgements"
            if options.score or options.metric:
                wanted = f"the score {options.score!r}" if options.score else "a reference (`output`)"
            raise BlendError(
                f"no leaderboard: of {self.found} rows, {self.errors} with an error, none has {wanted}; candidates "
                f"have {given}: see --judge, --score and --metric"
            )
        names = systems_of(self.rows)
        for option, name in (("--baseline", options.baseline), *(("--at-least", one) for one in options.at_least)):
            if name not in (None, REFERENCE, *names):
                raise BlendError(f"{option} {name}: expected one of {', '.join(names)}")
        if self._unknown:
            raise BlendError(f"--by {self._unknown[0]}: no row has a value in this column")
        slices = {row.slice for row in self.rows}
        if len(slices) > MOST_SLICES:
            raise BlendError(f"--by: expected at most {MOST_SLICES} values, got {len(slices)}")

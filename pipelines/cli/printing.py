"""What the commands print on stderr when a run has ended."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from llm_blender_ray.pipelines.bulk.summary import Summary


def print_summary(summary: "Summary") -> None:
    """Print the summary of a run that counts as done."""
    print_lines([*summary.details(), summary.line()])


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stderr."""
    for line in lines:
        typer.echo(line, err=True)

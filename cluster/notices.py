"""Lines about a command's progress, on stderr; stdout is for its results."""

import sys


def report_line(line: str) -> None:
    """Print a line on stderr."""
    print(f"blend: {line}", file=sys.stderr, flush=True)

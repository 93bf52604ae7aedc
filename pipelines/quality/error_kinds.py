"""Errors by kind: a thousand rows with the same cause are one line with a count.

Rows keep only an error's text. What differs from row to row (its place in a file, numbers, ids, addresses, quoted
text) is cut out; the rest is the kind. An HTTP status stays: 400, 429, 503 are three kinds. A rejection by a
circuit breaker has the kind of the failure that opened it. Only reports depend on kinds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_KINDS = 1000  # kinds held at a time; texts of other programs' rows may differ in unknown ways
MAX_ERROR_LENGTH = 160  # characters of a kind
OTHER_ERRORS = "others"

_STATUS = r"[1-5]\d\d(?![\w,.]*\d)"
_KEPT = re.compile(  # an HTTP status, recognised by its place in the text
    rf"(?i:\b(?:http(?:/[\d.]+)?|status(?:[ _]code)?|code|error|answered)[ :=]+)(?P<named>{_STATUS})"
    r"|(?:^|(?<=: )|(?<=[(\[]))(?P<alone>[345]\d\d)(?=$|[)}:;,\]]|(?: [A-Z]))"
)
_CUTS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^\S.*? (?:line|row|item) \d+: "), ""),  # parsing: the place in a file
    (re.compile(r"\bnot asked: (?:(?:\d+ failures in a row, the last|1 failure): )?"), ""),  # by a circuit breaker
    (re.compile(r"^https?://\S+: ", re.I), ""),  # of an endpoint: its model is named beside
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)]*[^\s'\"<>).,:;]", re.I), "URL"),
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"), "…"),
    (re.compile(r"\[[^\[\]]*\]"), lambda match: match[0] if match[0].strip("[]").isalpha() else "[…]"),
    (re.compile(r"(?<![\w.])(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}"), "PATH"),
    (
        re.compile(r"\b(?:0x[0-9a-f]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=\w*\d)[0-9a-f]{12,})\b", re.I),
        "ID",
    ),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"), "HOST"),
    (re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.I), "N"),
)


def kind_of(error: str) -> str:
    """The error without what differs between rows, in one line of at most `MAX_ERROR_LENGTH` characters."""
    text = " ".join(error.split())
    for pattern, put in _CUTS[:-1]:
        text = pattern.sub(put, text)
    numbers, number = _CUTS[-1]
    kept = {at for match in _KEPT.finditer(text) for at in (match.start("named"), match.start("alone"))}
    text = numbers.sub(lambda match: match[0] if match.start() in kept else str(number), text)
    return text if len(text) <= MAX_ERROR_LENGTH else text[: MAX_ERROR_LENGTH - 1] + "…"


@dataclass
class ErrorKinds:
    """Errors counted by kind, with the first text of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, error: str) -> None:
        """Add one error."""
        kind = kind_of(error)
        if kind not in self.counts and len(self.counts) >= MAX_KINDS:
            kind = OTHER_ERRORS
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind != OTHER_ERRORS:
            self.examples.setdefault(kind, error)

    @property
    def total(self) -> int:
        """Number of all errors."""
        return sum(self.counts.values())

    def most(self, n: int) -> list[tuple[str, int]]:
        """The n most frequent kinds, most frequent first; the rest together as `OTHER_ERRORS`, last."""
        kinds = sorted(
            ((kind, count) for kind, count in self.counts.items() if kind != OTHER_ERRORS), key=_by_count
        )
        rest = self.total - sum(count for _, count in kinds[:n])
        return kinds[:n] + ([(OTHER_ERRORS, rest)] if rest else [])


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]

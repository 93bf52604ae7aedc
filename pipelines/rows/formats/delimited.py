"""CSV and TSV, whose cells are text.

Not pyarrow's reader (see `json_text`). After a quote that is never closed, a CSV reader takes the rest of the file
for one cell. Here nothing of it is lost: the lines swallowed by a broken record are read again from its second line
on, if they look like rows, and are kept as text under `raw` otherwise.
"""

import contextlib
import csv
import io
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.formats.base import Join, Origin, Shape, TextFormat, reject_duplicate_columns
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, bad_row, read_row

_JSON = ("messages", "candidates", "ranking", "scores", "comparisons", "logits", "fused_from")
# Up to the quote that closes a text of an earlier line.
_BEFORE_QUOTE = re.compile(r'(?:[^"]|"")*(?="(?!"))')
_LOOKED_AT = 20  # lines after a broken record that decide whether they look like rows


class Csv(TextFormat):
    """Comma-separated values. Columns outside the row schema stay text; ours that are not text are JSON."""

    delimiter = ","

    def native(self, source: IO[bytes], origin: Origin) -> pa.Schema:
        """See base class."""
        _Records(source, self.delimiter, origin)
        return pa.schema([])

    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        """See base class."""
        records = _Records(source, self.delimiter, origin)
        for where, raw, cells, why in records:
            if why is not None:
                yield bad_row(raw.encode("utf-8", "surrogateescape"), f"{where}: {why}")
            elif not _is_utf8(raw):
                yield bad_row(raw.encode("utf-8", "surrogateescape"), f"{where}: not UTF-8")
            else:
                given = dict(zip(records.header, cells, strict=True))
                for name in records.nameless:
                    if not given[name]:
                        del given[name]
                yield read_row(dict(origin.keys) | _values(given), where)

    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """See base class."""
        cells = list(shape.cells(rows))
        return len(cells), self._text(cells).encode(errors="replace")

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """See base class."""
        file.write(self._text([schema.names]).encode())
        with super().joining(file, schema) as join:
            yield join

    def _text(self, rows: Any) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerows(rows)
        return text.getvalue()


class Tsv(Csv):
    """Tab-separated values, quoted like CSV."""

    delimiter = "\t"


_Record = tuple[str, str, list[str], str | None]  # place, text, cells, error


class _Records:
    """Records of a file: (place, text, cells, None), or an error in place of None."""

    def __init__(self, source: IO[bytes], delimiter: str, origin: Origin) -> None:
        """Read the header.

        Raises:
            BlendError: It is malformed.
        """
        csv.field_size_limit(sys.maxsize)  # 128 KiB by default: less than a row's candidates can be
        self._lines = iter(io.TextIOWrapper(source, "utf-8-sig", errors="surrogateescape", newline=""))
        self._again: deque[str] = deque()  # lines swallowed by a broken record
        self._number = 0  # of the last line taken
        self._delimiter, self._origin = delimiter, origin
        cells, lines, why = self._record()
        while lines and cells is not None and not any(cells):  # blank lines before the header
            cells, lines, why = self._record()
        if why is not None:
            raise BlendError(f"{origin.file}: no CSV header: {why}")
        self.header, self.nameless = _named(cells if cells is not None else [])
        reject_duplicate_columns(self.header, origin.file)

    def __iter__(self) -> Iterator[_Record]:
        while True:
            first = self._number + 1
            cells, lines, why = self._record()
            last = first + len(lines) - 1
            where = f"{self._origin.name} line {first}"
            if cells is None and not lines:
                return
            if cells is not None and not any(cells):  # a blank line, or Excel's commas alone
                continue
            if why is None and cells is not None:
                if len(cells) == len(self.header):
                    yield where, "".join(lines), cells, None
                    continue
                why = f"{len(cells)} cells, expected {len(self.header)}"
            else:
                why = f"not CSV: {why}"
            if len(lines) > 1 and self._goes_on(lines, closed=self._more()):
                self._again.extendleft(reversed(lines[1:]))
                self._number = first
                why += f"; the quote on line {first} counts as a stray one: reading continues at the next line"
                lines = lines[:1]
            elif len(lines) > 1:
                rest = " are not read as rows" if self._more() else ", the rest of the file, are not read as rows"
                why += f"; lines {first} to {last}{rest}, their text is under raw"
            yield where, "".join(lines).rstrip("\r\n"), [], why

    def _record(self) -> tuple[list[str] | None, list[str], str | None]:
        """Cells of the next record (None at the end, or when it is broken), its lines, and its error."""
        lines: list[str] = []

        def taken() -> Iterator[str]:
            while (line := self._take()) is not None:
                lines.append(line)
                yield line

        try:
            return next(csv.reader(taken(), delimiter=self._delimiter, strict=True), None), lines, None
        except csv.Error as error:
            why = str(error)
            return None, lines, "a quote isn't closed" if why == "unexpected end of data" else why

    def _take(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines, None)
        self._number += line is not None
        return line

    def _more(self) -> bool:
        line = self._take()
        if line is not None:
            self._again.appendleft(line)
            self._number -= 1
        return line is not None

    def _goes_on(self, lines: list[str], *, closed: bool) -> bool:
        """Whether the lines of a broken record from the second on are rows of their own: its quote was a stray one.

        They are if at least half of them have as many cells as the header. The line on which a quote closed the
        record is no evidence; if it is the only line, the quote's place decides: at the beginning of a cell it
        opens a text.
        """
        looked = [line for line in islice(lines[1 : -1 if closed else None], _LOOKED_AT) if line.strip("\r\n")]
        if closed and (not looked or len(self.header) == 1):
            before = _BEFORE_QUOTE.match(lines[-1])
            return before is not None and (not before[0] or before[0].endswith(self._delimiter))
        return 2 * sum(self._cells(line) == len(self.header) for line in looked) >= len(looked)

    def _cells(self, line: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=self._delimiter, strict=True), []))
        except csv.Error:
            return 0


def _named(header: list[str]) -> tuple[list[str], list[str]]:
    """The header with names for nameless columns, like pandas', and the set of these."""
    names, nameless = list(header), []
    for i, name in enumerate(header):
        if not name:
            names[i] = f"Unnamed: {i}"
            while names[i] in header:
                names[i] += ".1"
            nameless.append(names[i])
    return names, nameless


def _values(cells: dict[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell or name not in ROW_SCHEMA.names:
            given[name] = cell
        if cell and name in _JSON:
            with contextlib.suppress(ValueError, RecursionError):  # stays text, which read_row rejects
                given[name] = json.loads(cell)
    return given


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

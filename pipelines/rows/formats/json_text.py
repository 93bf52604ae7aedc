"""JSON: a row a line (`.jsonl`), or all in one list (`.json`).

Not pyarrow's reader: it stops at the first malformed row, does not give its line, and requires one type for a key
in all rows.
"""

import codecs
import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from llm_blender_ray.pipelines.rows.formats.base import Join, Origin, Shape, TextFormat
from llm_blender_ray.pipelines.rows.schema import (
    bad_row,
    not_json,
    parse_json,
    read_json_row,
    read_json_value,
    to_json,
)

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonLines(TextFormat):
    """One JSON object a line."""

    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        """See base class."""
        yield from _lines(source, origin)

    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """See base class."""
        lines = [to_json(row).encode() for row in shape.objects(rows)]
        return len(lines), b"".join(line + b"\n" for line in lines)


class JsonList(TextFormat):
    """A `.json` file: a list of objects, one object, or JSON lines under the wrong name."""

    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        """See base class."""
        data = source.read().removeprefix(codecs.BOM_UTF8)
        if data.lstrip()[:1] == b"[":
            yield from _items(data.decode("utf-8", "surrogateescape"), origin)
            return
        try:
            value = json.loads(data) if data.strip() else None
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield read_json_row(data, origin.name, origin.keys)
        else:
            yield from _lines(io.BytesIO(data), origin)

    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """See base class."""
        lines = [to_json(row).encode() for row in shape.objects(rows)]
        return len(lines), b",\n".join(lines)

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """See base class."""
        begun = False

        def join(data: bytes, rows: int) -> None:
            nonlocal begun
            if begun and rows:
                file.write(b",\n")
            file.write(data)
            begun = begun or rows > 0

        file.write(b"[\n")
        yield join
        file.write(b"\n]\n")


def _lines(lines: Iterable[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if text:
            yield read_json_row(text, f"{origin.name} line {number}", origin.keys)


def _items(text: str, origin: Origin) -> Iterator[dict[str, Any]]:
    """Items of a JSON list one by one: a syntax error is one bad row after those before it."""
    at, number = _after_space(text, text.index("[") + 1), 0
    while text[at : at + 1] != "]":
        number += 1
        where = f"{origin.name} item {number}"
        try:
            value, end, lossy = parse_json(text, at)
        except (ValueError, RecursionError) as error:
            yield _broken_list(text, at, f"{where}: {not_json(error)}")
            return
        yield read_json_value(value, where, text[at:end], origin.keys, lossy=lossy)
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            yield _broken_list(text, at, f"{where}: expected a comma or the end of the list after it")
            return
    if text[at + 1 :].strip():
        yield _broken_list(text, at + 1, f"{origin.name}: text after the end of the list")


def _broken_list(text: str, at: int, why: str) -> dict[str, Any]:
    rest = text[at:].encode("utf-8", "surrogateescape")
    return bad_row(rest, f"{why}; the rest of the file isn't read as rows, its text is under raw")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at

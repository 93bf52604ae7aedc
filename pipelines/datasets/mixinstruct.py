"""MixInstruct built again from local copies of its sources, as llm-blender's `get_mixinstruct.py` builds it.

Two passes over the files: the first keeps a digest of each row, from which `selection` chooses; the second reads
the texts of the chosen rows. Memory holds the digests and the texts of the splits, whatever the sources' size.
Different from the original: rows with equal prompts are one, also when they are of different sources, so that no
prompt is in two splits; and draws do not depend on the order of rows and files.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import is_blank
from llm_blender_ray.pipelines.datasets.objects import read_objects
from llm_blender_ray.pipelines.datasets.selection import (
    KEPT,
    MIX_SPLITS,
    OUTPUT_LONG,
    OUTPUT_SHORT,
    PROMPT_LONG,
    PROMPT_SHORT,
    ROW_DIGEST,
    Selected,
    SplitSizes,
    select,
)
from llm_blender_ray.pipelines.datasets.sources import SOURCES, DroppedRowError, InstructionExample, Source
from llm_blender_ray.pipelines.quality.row_progress import with_progress
from llm_blender_ray.pipelines.rows.formats import format_of
from llm_blender_ray.pipelines.rows.storage import names, remove
from llm_blender_ray.pipelines.rows.uris import kind, replacing, translate_errors

LEAST_PROMPT, LEAST_OUTPUT = 5, 11  # tokens
DATASET_SCHEMA = pa.schema({name: pa.string() for name in ("id", "instruction", "input", "output")})
CountTokens = Callable[[Sequence[str]], list[int]]  # numbers of tokens of texts
_Numbered = tuple[int, InstructionExample]
_BLOCK_ROWS = 1000


@dataclass(frozen=True)
class MixSettings:
    """Settings of a data set.

    Attributes:
        sources: URIs by name of the source.
        sizes: Of the splits.
        seed: Of all draws.
        max_length: Prompts and outputs have fewer tokens.
        whole_words: Match banned phrases as whole words, not anywhere in an output.
    """

    sources: Mapping[str, str]
    sizes: SplitSizes = field(default_factory=SplitSizes)
    seed: int = 42
    max_length: int = 128
    whole_words: bool = False


@dataclass(frozen=True)
class MixSummary:
    """What a data set was made of.

    Attributes:
        rows: Rows read of each source.
        kept: Rows of each source in the splits.
        dropped: Rows by source and reason.
        sizes: Rows of each split.
    """

    rows: Mapping[str, int]
    kept: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]

    def lines(self) -> list[str]:
        """The figures: the splits, then a line for each source."""
        lines = [", ".join(f"{name} {size:,}" for name, size in self.sizes.items()) + " rows"]
        for name, rows in self.rows.items():
            reasons = sorted(self.dropped[name].items(), key=lambda one: (-one[1], one[0]))
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons) or "none"
            lines.append(f"{name}: {self.kept[name]:,} of {rows:,} rows; dropped: {dropped}")
        return lines


def build_mixinstruct(
    settings: MixSettings, output: str, ending: str, lengths: CountTokens, *, overwrite: bool = False
) -> MixSummary:
    """Build the data set and write `train`, `val` and `test` into a folder.

    Args:
        settings: What to build.
        output: The folder, local or on a store.
        ending: Of the files, a registered format such as `.jsonl`.
        lengths: Numbers of tokens of texts, special tokens included.
        overwrite: Whether splits that are there are replaced.

    Returns:
        The figures.

    Raises:
        BlendError: A file can't be read, the folder has splits, or too few rows are left.
    """
    present = _splits_at(output)
    if present and not overwrite:
        raise BlendError(f"{output}: has {present[0]} already; --overwrite replaces the splits there")
    readers = {  # in the registry's order, whatever that of the options
        name: _Reader(SOURCES.get(name)(), settings.sources[name], settings)
        for name in SOURCES.names()
        if name in settings.sources
    }
    blocks = [
        _digests(examples, number, lengths, settings.max_length)
        for number, reader in enumerate(readers.values())
        for examples in _blocks(with_progress(reader.examples(), f"{reader.uri}, first pass"))
    ]
    rows = np.concatenate(blocks) if blocks else np.zeros(0, ROW_DIGEST)
    limits = [reader.source.limit for reader in readers.values()]
    selected = select(rows, limits, settings.sizes, settings.seed, settings.max_length)
    del blocks, rows
    texts = _texts(list(readers.values()), selected)
    form, folder = format_of(ending), output.rstrip("/")
    written = {f"{split}{ending}": rows for split, rows in texts.items() if rows}
    for name, split_rows in written.items():
        file = f"{folder}/{name}"
        with (
            translate_errors(file, "write it"),
            replacing(file) as sink,
            form.joining(sink, DATASET_SCHEMA) as join,
        ):
            count, data = form.encoded(_PlainShape(), pa.Table.from_pylist(split_rows, DATASET_SCHEMA))
            join(data, count)
    for name in present:
        if name not in written:
            remove(f"{folder}/{name}")
    kept = Counter(source for split in selected.splits.values() for source in split["source"].tolist())
    return MixSummary(
        rows={name: reader.rows for name, reader in readers.items()},
        kept={name: kept[number] for number, name in enumerate(readers)},
        dropped={
            name: reader.dropped + selected.dropped[number] for number, (name, reader) in enumerate(readers.items())
        },
        sizes={split: len(of_split) for split, of_split in texts.items()},
    )


def _splits_at(folder: str) -> list[str]:
    """Files of splits in a folder, of any format."""
    return sorted(name for name in names(folder) if kind(name) and name.partition(".")[0] in MIX_SPLITS)


def _blocks(examples: Iterator[_Numbered]) -> Iterator[list[_Numbered]]:
    while block := list(islice(examples, _BLOCK_ROWS)):
        yield block


class _Reader:
    """Examples of one source, read as often as wanted, and what was dropped."""

    def __init__(self, source: Source, uri: str, settings: MixSettings) -> None:
        self.source = source
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.uri = uri
        edge = r"\b" if settings.whole_words else ""
        phrases = "|".join(map(regex.escape, source.banned))
        self._banned = regex.compile(f"{edge}(?:{phrases}){edge}") if phrases else None

    def examples(self) -> Iterator[_Numbered]:
        """Number and example of each usable row; counts start again."""
        self.rows, self.dropped = 0, Counter()
        numbers: Counter[str] = Counter()
        for number, given in enumerate(read_objects(self.uri)):
            self.rows += 1
            try:
                example = self._read(given)
            except DroppedRowError as error:
                self.dropped[str(error)] += 1
                continue
            if example.id.endswith("/"):
                numbers[example.id] += 1
                example = replace(example, id=f"{example.id}{numbers[example.id] - 1}")
            if self._banned and self._banned.search(example.output.lower()):
                self.dropped["refusal or mere agreement"] += 1
                continue
            yield number, example

    def _read(self, given: Mapping[str, Any] | None) -> InstructionExample:
        if given is None:
            raise DroppedRowError("not a JSON object")
        example = self.source.read(given)
        try:
            "".join((example.id, example.prompt, example.output)).encode()
        except UnicodeEncodeError:
            raise DroppedRowError("invalid Unicode") from None
        if is_blank(example.prompt):
            raise DroppedRowError("empty prompt")
        return example


def _digests(examples: Sequence[_Numbered], source: int, lengths: CountTokens, max_length: int) -> NDArray[np.void]:
    """Rows of `ROW_DIGEST`."""
    rows = np.zeros(len(examples), ROW_DIGEST)
    rows["source"] = source
    rows["number"] = [number for number, _ in examples]
    prompt = np.frombuffer(b"".join(prompt_digest(example) for _, example in examples), ">u8").reshape(-1, 2)
    rows["high"], rows["low"] = prompt.T
    rows["content"] = [_content_digest(example) for _, example in examples]
    prompts = np.array(lengths([example.prompt for _, example in examples]))
    outputs = np.array(lengths([example.output for _, example in examples]))
    rows["lengths"] = np.select(
        [outputs < LEAST_OUTPUT, outputs >= max_length, prompts < LEAST_PROMPT, prompts >= max_length],
        [OUTPUT_SHORT, OUTPUT_LONG, PROMPT_SHORT, PROMPT_LONG],
        KEPT,
    )
    return rows


def prompt_digest(example: InstructionExample) -> bytes:
    """Digest (16 bytes) of the prompt without differences of case, white space and Unicode form."""
    text = unicodedata.normalize("NFKC", f"{example.instruction} {example.input}").casefold()
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _content_digest(example: InstructionExample) -> int:
    texts = json.dumps([example.instruction, example.input, example.output])
    return int.from_bytes(hashlib.blake2b(texts.encode(), digest_size=8).digest())


def _texts(readers: Sequence[_Reader], selected: Selected) -> dict[str, list[dict[str, str]]]:
    """Texts of the selected rows, read from the files.

    Raises:
        BlendError: A file has changed since it was read first.
    """
    texts: dict[str, list[dict[str, str]]] = {name: [{} for _ in selected.splits[name]] for name in MIX_SPLITS}
    for source, reader in enumerate(readers):
        wanted = {
            int(row["number"]): (name, place, int(row["content"]))
            for name, rows in selected.splits.items()
            for place, row in enumerate(rows)
            if row["source"] == source
        }
        for number, example in with_progress(reader.examples(), f"{reader.uri}, second pass"):
            if number not in wanted:
                continue
            name, place, content = wanted.pop(number)
            if content != _content_digest(example):
                raise BlendError(f"{reader.uri}: changed while it was read")
            texts[name][place] = {one: getattr(example, one) for one in DATASET_SCHEMA.names}
        if wanted:
            raise BlendError(f"{reader.uri}: changed while it was read")
    ids: Counter[str] = Counter()
    for rows in texts.values():
        for row in rows:
            ids[row["id"]] += 1
            if ids[row["id"]] > 1:  # a source's own ids may repeat
                row["id"] += f"/{ids[row['id']]}"
    return texts


class _PlainShape:
    """Rows that are written as they are."""

    def schema(self) -> pa.Schema:
        """See Shape."""
        return DATASET_SCHEMA

    def table(self, rows: pa.Table) -> pa.Table:
        """See Shape."""
        return rows

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """See Shape."""
        return iter(rows.to_pylist())

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """See Shape."""
        return (list(row.values()) for row in rows.to_pylist())

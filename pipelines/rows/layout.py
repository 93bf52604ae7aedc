"""Columns of the output of a run: a layout of all rows, and tables of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import pyarrow as pa

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import CANDIDATE_FIELDS, CANDIDATE_TYPE, ON_DEMAND_TYPES, RAW, RESULT_COLUMNS
from llm_blender_ray.pipelines.rows.arrow_types import cast, to_python
from llm_blender_ray.pipelines.rows.columns import (
    JSON,
    MADE_IDS,
    NUMBERS,
    OTHER_KEYS,
    as_json,
    candidate_extra,
    fit,
    given_columns,
    infer,
    stored,
    unify,
    unify_rows,
)
from llm_blender_ray.pipelines.rows.schema import EXTRA, OWN_COLUMNS, ROW_SCHEMA, with_raw
from llm_blender_ray.pipelines.rows.source_types import GIVEN_ID, OWN_TYPES, GivenColumns, number_of, readable

_NONE: Mapping[str, pa.DataType] = MappingProxyType({})


@dataclass(frozen=True)
class Layout:
    """Columns of the output, the same for every file of a folder.

    Attributes:
        own: Prompt columns that some row has, in their input types.
        unreadable: Those of too different types, written as stages read them, and input under `extra`.
        typed_ids: Type of ids that all come from Parquet.
        kept: Result columns that this run does not write.
        extra: Type of the unknown keys of rows (`infer_row`).
        candidate_extra: The same of candidates.
        native: Columns that come from Parquet alone.
        shared: Those that other files have as keys, so that `extra` has their type.
    """

    own: dict[str, pa.DataType]
    kept: dict[str, pa.DataType]
    results: dict[str, pa.DataType]
    extra: pa.DataType
    candidate_extra: pa.DataType
    native: tuple[pa.Field, ...]
    shared: frozenset[str] = frozenset()
    unreadable: tuple[str, ...] = ()
    typed_ids: pa.DataType | None = None

    @classmethod
    def of(
        cls,
        seen: pa.DataType,
        results: dict[str, pa.DataType],
        keep: Sequence[str],
        on_demand: Sequence[str] = (),
        adds: Mapping[str, pa.DataType] = _NONE,
        candidate_adds: Mapping[str, pa.DataType] = _NONE,
    ) -> Self:
        """Layout of all rows.

        Args:
            seen: Result of `inspect_columns`.
            results: Result columns to write.
            keep: Result columns to write if some row has them.
            on_demand: Further fields of generated candidates, of `ON_DEMAND_TYPES`.
            adds: Columns that the run writes among the unknown keys of rows, with the types of its values.
            candidate_adds: The same of candidates.
        """
        parts = {field.name: field.type for field in seen}
        if adds:
            parts["extra"] = unify_rows(parts["extra"], pa.struct(adds.items()))
        present = {field.name for field in parts["present"]}
        given = {field.name: field.type for field in parts["given"]}
        keys = {field.name for field in parts["extra"]}
        native = [field for field in parts["native"] if field.name not in results and field.name != GIVEN_ID]
        shared = [(f.name, parts["native_values"].field(f.name).type) for f in native if f.name in keys]
        extra = parts["extra"]
        for name, kind in shared:
            extra = pa.struct([(f.name, unify(f.type, kind) if f.name == name else f.type) for f in extra])
        own = {name: kind for name, kind in given.items() if name in OWN_COLUMNS and not pa.types.is_null(kind)}
        unreadable = tuple(name for name, kind in own.items() if not readable(name, kind, JSON))
        if unreadable:
            extra = unify_rows(extra, pa.struct([(OTHER_KEYS, JSON)]))
            own |= {name: OWN_TYPES[name] for name in unreadable}
        if "prompt" in unreadable:
            own["messages"] = unify(own.get("messages", pa.null()), OWN_TYPES["messages"])
        if any(name in given for name in (*results, "error")):
            extra = unify_rows(extra, pa.struct([(RAW, pa.string())]))
        typed = parts["native"].field(GIVEN_ID).type if parts["native"].get_field_index(GIVEN_ID) >= 0 else None
        marks = {field.name for field in parts["ids"]}
        own["id"] = _id_type(own.get("id", pa.null()), made=MADE_IDS in marks)
        kept = {name: OWN_TYPES[name] for name in keep if name in present and name not in results}
        for name, kind in given.items():
            if name in RESULT_COLUMNS and name not in results and not pa.types.is_null(kind):
                kept[name] = unify(kept.get(name, pa.null()), kind)
        return cls(
            own={name: own[name] for name in OWN_COLUMNS if name in own},
            kept=kept,
            results=results,
            extra=extra,
            candidate_extra=unify_rows(
                parts["candidate_extra"],
                pa.struct([*((name, ON_DEMAND_TYPES[name]) for name in on_demand), *candidate_adds.items()]),
            ),
            native=tuple(field for field in native if field.name not in keys),
            shared=frozenset(name for name, _ in shared),
            unreadable=unreadable,
            typed_ids=None if marks else typed,
        )

    def check_columns(self, names: Sequence[str], setting: str) -> None:
        """Check that rows of the output have these columns.

        Args:
            names: The columns.
            setting: What names them, for the message.

        Raises:
            BlendError: The input has none of such a name.
        """
        there = self.schema().names
        if missing := [name for name in names if name not in there]:
            raise BlendError(f"{setting}: the rows have no column {missing[0]}; they have {', '.join(there)}")

    def made_id(self, text: str) -> str | int:
        """A generated id in the type of the column of ids."""
        return number_of(text) if self.own["id"] in NUMBERS else text

    def ids(self, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Column `id` of a table of the stages."""
        if self.typed_ids is not None:
            return rows.column(GIVEN_ID)
        return self._own("id", given_columns(rows), rows)

    def extra_types(self) -> dict[str, pa.DataType]:
        """Columns made of `extra`; ours win over a key of the same name."""
        taken = (set(ROW_SCHEMA.names) - {EXTRA}) | set(self.results) | {field.name for field in self.native}
        return {name: kind for name, kind in _columns(self.extra).items() if name not in taken}

    def schema(self) -> pa.Schema:
        """The row's own columns first, then ours, `error` last."""
        candidate = {name: CANDIDATE_TYPE.field(name).type for name in CANDIDATE_FIELDS}
        candidate |= {name: stored(kind) for name, kind in _columns(self.candidate_extra).items()}
        columns = {name: stored(kind) for name, kind in self.own.items()}
        columns |= {"id": self.typed_ids} if self.typed_ids is not None else {}
        columns |= {name: stored(kind) for name, kind in self.extra_types().items()}
        columns |= {field.name: field.type for field in self.native}
        columns |= {name: stored(kind) for name, kind in self.kept.items()}
        columns |= {"candidates": pa.list_(pa.struct(candidate.items()))} | self.results
        return pa.schema((columns | {"error": pa.string()}).items())

    def table(self, rows: pa.Table) -> pa.Table:
        """A table of the stages as it is written."""
        extra_types, schema, columns = self.extra_types(), self.schema(), []
        given = given_columns(rows)
        extras = self._extras(rows, given)
        for name, kind in zip(schema.names, schema.types, strict=True):
            if name == "id":
                columns.append(cast(self.ids(rows), kind))
            elif name in self.own or name in self.kept:
                columns.append(self._own(name, given, rows))
            elif name in extra_types:
                columns.append(pa.array([fit(extra.get(name), extra_types[name]) for extra in extras], kind))
            elif name == "candidates":
                lists, types = rows.column(name).to_pylist(), _columns(self.candidate_extra)
                columns.append(pa.array([[self._candidate(one, types) for one in c or ()] for c in lists], kind))
            elif name in rows.column_names:
                columns.append(cast(rows.column(name), kind))
            else:
                columns.append(pa.nulls(len(rows), kind))
        return pa.table(columns, schema=schema)

    def _own(self, name: str, given: Sequence[GivenColumns], rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """One of our columns, with its input values."""
        kind = {**self.own, **self.kept}[name]
        if kind == OWN_TYPES[name]:
            return rows.column(name)
        held = rows.column(name).to_pylist()
        if name == "id":
            held = [self.made_id(text) if one.made else text for one, text in zip(given, held, strict=True)]
        made = name == "id" or name in RESULT_COLUMNS or (name == "messages" and "prompt" in self.unreadable)
        values = [one.own.get(name, value if made else None) for one, value in zip(given, held, strict=True)]
        return pa.array([fit(value, kind) for value in values], stored(kind))

    def _extras(self, rows: pa.Table, given: Sequence[GivenColumns]) -> list[dict[str, Any]]:
        """Each row's unknown keys, with the values of shared columns."""
        extras = [_unknown(self._others(row), self.extra) for row in given]
        for name in self.shared:
            for extra, value in zip(extras, to_python(rows.column(name)), strict=True):
                if value is not None:
                    extra[name] = as_json(value)
        return extras

    def _others(self, row: GivenColumns) -> dict[str, Any]:
        """A row's keys outside our columns, including those that cannot be in them."""
        odd = {name: row.own[name] for name in (*self.results, "error") if row.own.get(name) is not None}
        moved = {n: row.own[n] for n in self.unreadable if n in row.own and infer(row.own[n]) != OWN_TYPES[n]}
        return with_raw(row.others, odd) | moved

    def _candidate(self, candidate: dict[str, Any], types: dict[str, pa.DataType]) -> dict[str, Any]:
        text, unknown = candidate_extra(candidate)
        extra = _unknown(unknown, self.candidate_extra)
        fitted = {name: fit(extra.get(name), kind) for name, kind in types.items()}
        return {name: candidate[name] for name in CANDIDATE_FIELDS} | {"text": text} | fitted


def _id_type(kind: pa.DataType, *, made: bool) -> pa.DataType:
    """Type of ids: that of all given ones; a generated one is a text or, among numbers, a number."""
    if pa.types.is_null(kind):
        return pa.string()
    return JSON if made and kind not in (*NUMBERS, pa.string()) else kind


def others(row: Mapping[str, Any], kind: pa.DataType) -> dict[str, Any] | None:
    """A row's keys without a column of their own (`kind`: see `infer_row`), for the column `extra`."""
    if kind.get_field_index(OTHER_KEYS) < 0:
        return None
    return {name: value for name, value in row.items() if kind.get_field_index(name) < 0 or name in _NO_COLUMN}


_NO_COLUMN = (OTHER_KEYS, EXTRA)  # a user's key `extra` is one of the others


def _columns(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Columns of unknown keys."""
    fields = {field.name: field.type for field in kind}
    if OTHER_KEYS in fields:
        return {name: t for name, t in fields.items() if name not in _NO_COLUMN} | {EXTRA: JSON}
    return fields


def _unknown(values: dict[str, Any], kind: pa.DataType) -> dict[str, Any]:
    """A row's unknown keys; those without a column together in `extra`."""
    rest = others(values, kind)
    return values if rest is None else values | {EXTRA: rest or None}

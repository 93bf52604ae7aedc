"""Whatever happens to a sealed object's bytes, it isn't opened; and other programs read it as before."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.bulk.checksums import DamagedError, opened, sealed

NAME = "results/stage/0123.parquet"


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TABLE = pa.table({"text": ["one", None, "three"] * 20, "scores": [[1.5], [], [2.0, 3.0]] * 20})
RECORD = {"identity": {"models": ["a", "b"]}, "sessions": 1}
OBJECTS = {"parquet": parquet(TABLE), "json": json.dumps(RECORD, indent=2).encode()}


def test_other_programs_read_what_is_sealed() -> None:
    assert pq.read_table(io.BytesIO(sealed(OBJECTS["parquet"], NAME))).equals(TABLE)
    assert RECORD.items() <= json.loads(sealed(OBJECTS["json"], NAME)).items()


@pytest.mark.parametrize("form", OBJECTS)
def test_what_was_sealed_is_opened(form: str) -> None:
    data = opened(sealed(OBJECTS[form], NAME), NAME)
    if form == "json":
        assert json.loads(data) == RECORD
    else:
        assert pq.read_table(io.BytesIO(data)).equals(TABLE)


@pytest.mark.parametrize("form", OBJECTS)
def test_no_flipped_bit_is_passed_by(form: str) -> None:
    """Every bit of the object, of its seal, and of the format's own frame."""
    whole = bytearray(sealed(OBJECTS[form], NAME))
    for bit in range(8 * len(whole)):
        whole[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            opened(bytes(whole), NAME)
        whole[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("form", OBJECTS)
def test_no_missing_or_added_part_is_passed_by(form: str) -> None:
    whole = sealed(OBJECTS[form], NAME)
    for length in range(len(whole)):
        for part in (whole[:length], whole[len(whole) - length :], whole[:length].ljust(len(whole), b"\0")):
            with pytest.raises(DamagedError):
                opened(part, NAME)
    for longer in (whole + b"\n", whole + whole, b" " + whole):
        with pytest.raises(DamagedError):
            opened(longer, NAME)


@pytest.mark.parametrize("form", OBJECTS)
def test_what_has_no_seal_or_another_name_is_refused(form: str) -> None:
    with pytest.raises(DamagedError):
        opened(OBJECTS[form], NAME)
    with pytest.raises(DamagedError, match=f"^{NAME}: damaged$"):
        opened(sealed(OBJECTS[form], "results/stage/4567.parquet"), NAME)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: data + b"PAR1"))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        opened(data, NAME)

"""Outputs among inputs: a run reads what users wrote, never what it wrote itself, and replaces nobody's input."""

from pathlib import Path

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.own_outputs import own_outputs
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.uris import list_files

PART = "part-000000-0123456789abcdef.parquet"
BEGUN = {"identity": {"preferences": {"output": "pairs.jsonl"}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of rows; the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n')
    return tmp_path


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize(
    ("uri", "outputs", "written"),
    [
        (".", ["out.jsonl"], ["out.jsonl"]),
        ("*.jsonl", ["out.jsonl", "pairs.jsonl"], ["out.jsonl", "pairs.jsonl"]),
        (".", ["deep/out"], [f"deep/out/{PART}"]),
        ("**/*", ["./deep/../deep/out/"], [f"deep/out/{PART}"]),
        (".", ["linked/out.csv.gz"], ["real/out.csv.gz"]),
        (".", ["out.jsonl"], []),
    ],
)
def test_what_the_same_run_wrote_is_no_input(
    folder: Path, uri: str, outputs: list[str], written: list[str]
) -> None:
    (folder / "real").mkdir()
    (folder / "linked").symlink_to(folder / "real")
    before = fingerprint(uri, None)
    make(folder, *written, ".out.jsonl.blend/rows/1/0.parquet")
    own = own_outputs(uri, [Output(one) for one in outputs], lambda: BEGUN)
    assert [Path(path).name for path in own] == [Path(name).name for name in written]
    assert [Path(path).name for path in list_files(uri, own)] == ["a.jsonl"]
    assert fingerprint(uri, None, own) == before


@pytest.mark.parametrize(
    ("uri", "output", "there", "record"),
    [
        ("a.jsonl", "a.jsonl", [], None),
        ("a.jsonl", "a.jsonl", [], BEGUN),
        ("./a.jsonl", "link.jsonl", [], BEGUN),
        (".", "a.jsonl", [], None),  # with --overwrite it would be gone
        (".", ".", [PART], BEGUN),
        ("a.jsonl", ".", [], BEGUN),
        ("*", "out", [f"out/{PART}"], None),
        (".", "out", [f"out/{PART}", "out/mine.parquet"], BEGUN),
    ],
)
def test_what_is_not_a_runs_own_is_not_replaced_by_what_reads_it(
    folder: Path, uri: str, output: str, there: list[str], record: dict | None
) -> None:
    make(folder, *there)
    if output == "link.jsonl":
        (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
    with pytest.raises(BlendError, match=f"^{output}: is read by this run too; choose another output$"):
        own_outputs(uri, [Output(output)], lambda: record)


def test_pairs_of_another_run_are_input(folder: Path) -> None:
    make(folder, "pairs.jsonl", "other.jsonl")
    assert own_outputs("*.jsonl", [Output("out"), Output("pairs.jsonl")], lambda: BEGUN) == [
        str(folder / "pairs.jsonl")
    ]
    with pytest.raises(BlendError, match=r"other\.jsonl: is read by this run too"):
        own_outputs("*.jsonl", [Output("out"), Output("other.jsonl")], lambda: BEGUN)


def test_objects_of_a_store_are_known_by_their_names(s3_bucket: str) -> None:
    from llm_blender_ray.pipelines.rows.storage import put

    for name in ("in/a.jsonl", "in/out.jsonl", f"in/parts/{PART}"):
        put(f"{s3_bucket}/{name}", b"")
    outputs = [f"{s3_bucket}/in/out.jsonl", f"{s3_bucket}/in/parts"]
    record = {"identity": {"preferences": {"output": outputs[1]}}}
    own = own_outputs(f"{s3_bucket}/in", [Output(one) for one in outputs], lambda: record)
    assert list_files(f"{s3_bucket}/in", own) == [f"{s3_bucket}/in/a.jsonl"]

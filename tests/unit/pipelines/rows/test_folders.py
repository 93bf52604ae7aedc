"""What is in a folder: what is read, what its folders say of it, and that what isn't read is named."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from passing import objects

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.storage import put
from llm_blender_ray.pipelines.rows.uris import find


def zstd(data: bytes) -> bytes:
    """Two frames, as tools that append or work in parallel write them."""
    half = len(data) // 2
    return b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in (data[:half], data[half:]))


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def write(folder: Path, name: str, content: bytes | str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prompts(uri: object) -> list[str]:
    return [row["prompt"] for row in read_rows(str(uri))]


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_are_read_whole_or_not_at_all(tmp_path, ending):
    lines = "".join(f'{{"prompt": "{i}"}}\n' for i in range(5000)).encode()
    write(tmp_path, f"in/a.jsonl{ending}", PACKED[ending](lines))
    write(tmp_path, f"in/b.csv{ending}", PACKED[ending](b"prompt\nx\n"))
    write(tmp_path, f"in/c.json{ending}", PACKED[ending](b'[{"prompt": "y"}]'))
    assert prompts(tmp_path / "in") == [*map(str, range(5000)), "x", "y"]
    cut = write(tmp_path, f"cut.jsonl{ending}", PACKED[ending](lines)[:-9])
    with pytest.raises(BlendError, match=rf"cut\.jsonl{ending}: can't read it: "):
        prompts(cut)
    junk = write(tmp_path, f"junk.jsonl{ending}", b"no such format")
    with pytest.raises(BlendError, match=rf"junk\.jsonl{ending}: can't read it: "):
        prompts(junk)


def test_what_is_not_read_is_named_in_one_line(tmp_path, capsys):
    write(tmp_path, "a.jsonl", '{"prompt": "p"}')
    assert prompts(tmp_path) == ["p"]
    assert capsys.readouterr().err == ""
    for name in ("b.jsonl.lz4", "c.parquet.gz", ".hidden.jsonl", "_SUCCESS", ".git/HEAD", ".git/x.jsonl"):
        write(tmp_path, name)
    write(tmp_path, ".a.jsonl.blend/rows/f/00000-000000.parquet")
    assert prompts(tmp_path) == ["p"]
    assert capsys.readouterr().err == f"{tmp_path}: not read: b.jsonl.lz4, c.parquet.gz, .git/, and 2 more\n"
    assert prompts(tmp_path / "*") == ["p"]
    assert capsys.readouterr().err == f"{tmp_path}/*: not read: b.jsonl.lz4, c.parquet.gz\n"
    with pytest.raises(BlendError, match=r"nothing to read there; expected .*; not read: c\.parquet\.gz"):
        prompts(tmp_path / "*.gz")


def test_a_clone_from_the_hub_is_its_data(tmp_path, capsys):
    write(tmp_path, "data/train-00000-of-00001.parquet")
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "data/train-00000-of-00001.parquet")
    for name in ("dataset_infos.json", "README.md", ".gitattributes"):
        write(tmp_path, name, "{}")
    assert prompts(tmp_path) == ["p"]
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: not read: README.md, dataset_infos.json, .gitattributes\n"
    assert len(list(read_rows(str(tmp_path / "dataset_infos.json")))) == 1  # named outright


def saved(folder: Path, *prompts: str) -> None:
    """As `Dataset.save_to_disk` of Hugging Face datasets has it."""
    table = pa.table({"prompt": list(prompts)})
    names = [f"data-{i:05}-of-00001.arrow" for i in range(1)]
    folder.mkdir(parents=True)
    with (folder / names[0]).open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": "train"}
    write(folder, "state.json", json.dumps(state))
    write(folder, "dataset_info.json", '{"features": {}}')


def test_a_dataset_saved_to_disk_is_what_its_state_names(tmp_path, capsys):
    saved(tmp_path / "set/train", "a", "b")
    saved(tmp_path / "set/test", "c")
    write(tmp_path, "set/dataset_dict.json", '{"splits": ["train", "test"]}')
    write(tmp_path, "set/train/cache-0123.arrow", (tmp_path / "set/test/data-00000-of-00001.arrow").read_bytes())
    assert prompts(tmp_path / "set") == ["c", "a", "b"]
    assert "cache-0123.arrow" in capsys.readouterr().err
    (tmp_path / "set/test/data-00000-of-00001.arrow").unlink()
    with pytest.raises(BlendError, match=r"state\.json names data-00000-of-00001\.arrow, which isn't there"):
        prompts(tmp_path / "set")


def test_a_dataset_with_an_index_mapping_is_refused(tmp_path):
    saved(tmp_path / "set", "a", "b")
    state = json.loads((tmp_path / "set/state.json").read_text())
    write(tmp_path, "set/state.json", json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(BlendError, match="flatten_indices"):
        prompts(tmp_path / "set")


def test_folders_of_hive_are_columns(tmp_path):
    write(tmp_path, "in/lang=en/year=2020/p.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "in/lang=en/year=2020/p.parquet")
    write(tmp_path, "in/lang=de%2FAT/p.jsonl", '{"prompt": "b"}\n{"prompt": "c", "lang": "own"}\n{bad\n')
    write(tmp_path, "in/lang=__HIVE_DEFAULT_PARTITION__/p.csv", "prompt\nd\n")
    rows = {row.get("prompt"): row for row in objects(tmp_path / "in", tmp_path)}
    assert {prompt: row.get("lang") for prompt, row in rows.items() if prompt} == {
        "a": "en",
        "b": "de/AT",
        "c": "own",
        "d": None,
    }
    assert rows[None]["error"].startswith("lang=de%2FAT/p.jsonl line 3: not JSON")
    assert (rows["a"]["year"], rows["a"]["n"]) == ("2020", 1)
    assert objects(tmp_path / "in/lang=*/**/*.parquet", tmp_path)[0]["lang"] == "en"
    below = objects(tmp_path / "in/lang=en", tmp_path)[0]
    assert ("lang" in below, below["year"]) == (False, "2020")


def test_links_are_followed(tmp_path):
    write(tmp_path, "elsewhere/b.jsonl", '{"prompt": "b"}')
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a.jsonl").symlink_to(tmp_path / "elsewhere/b.jsonl")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in")
    assert prompts(tmp_path / "in") == ["b", "b"]
    assert prompts(tmp_path / "in/*.jsonl") == prompts(tmp_path / "in/*/*.jsonl") == ["b"]
    assert prompts(tmp_path / "in/**/*.jsonl") == ["b", "b"]
    before = fingerprint(str(tmp_path / "in"), None)
    os.utime(tmp_path / "elsewhere/b.jsonl", (1, 1))
    assert fingerprint(str(tmp_path / "in"), None) != before
    (tmp_path / "in/gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BlendError, match=r"gone\.jsonl: no such file"):
        prompts(tmp_path / "in")


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("{train,test}*.jsonl", ["test.jsonl", "train-1.jsonl"]),
        ("{train-1,sub/{x,y}}.{jsonl,csv}", ["sub/y.csv", "train-1.jsonl"]),
        ("[tu]*.jsonl", ["test.jsonl", "train-1.jsonl"]),
        ("**/*.csv", ["sub/y.csv"]),
        ("{odd}.jsonl", ["{odd}.jsonl"]),
    ],
)
def test_globs(tmp_path, glob, names):
    for name in ("train-1.jsonl", "test.jsonl", "other.jsonl", "sub/y.csv", "{odd}.jsonl"):
        write(tmp_path, name)
    assert find(str(tmp_path / glob)).files == [str(tmp_path / name) for name in names]


def test_a_store_is_listed_as_a_disk_is(s3_bucket, capsys):
    for name in ("in/lang=en/a.jsonl", "in/README.md", "in/.git/x.jsonl", "in/_tmp/y.jsonl", "in/b.jsonl"):
        put(f"{s3_bucket}/{name}", b'{"prompt": "p"}\n')
    rows = list(read_rows(f"{s3_bucket}/in"))
    assert [json.loads(row["extra"]).get("lang") for row in rows] == [None, "en"]
    put(f"{s3_bucket}/in/lang=en/a.jsonl", b"{}")
    assert list(read_rows(f"{s3_bucket}/in"))[1]["error"].startswith("lang=en/a.jsonl line 1: no prompt")
    capsys.readouterr()
    list(read_rows(f"{s3_bucket}/in"))
    assert capsys.readouterr().err == f"{s3_bucket}/in: not read: README.md, .git/, _tmp/\n"
    assert find(f"{s3_bucket}/in/{{lang=*/a,b}}.jsonl").files == [
        f"{s3_bucket}/in/b.jsonl",
        f"{s3_bucket}/in/lang=en/a.jsonl",
    ]

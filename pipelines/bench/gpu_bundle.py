"""`make gpu-bundle`: one archive for a GPU machine that has torch and transformers, but no network.

It holds the package, the tests that need a GPU, the small models that they read, and wheels of what such a machine
usually lacks. `run.sh` in it runs the tests and `gpu.py`, and prints JSON.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_NAME = "gpu-bundle"
_PACKAGES = (
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
)  # at the versions of constraints.txt
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PACKED_FOLDERS = ("actors", "configs", "pipelines")
TESTS = (
    "tests/e2e/test_gpu.py",
    "tests/support/paths.py",
    "tests/support/deberta_models.py",
    "tests/golden",
)
PYTEST = """[pytest]
pythonpath = tests/support
addopts = --import-mode=importlib --strict-markers -ra
markers =
    gpu: needs a CUDA device
"""
RUN = """#!/usr/bin/env bash
# The tests that need a GPU, then speed and memory; JSON in the last line and in results.json.
# PYTHON=python3; --small shows in seconds that everything runs.
set -uo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-index --no-deps --upgrade --target site wheels/*.whl || exit 1
mkdir -p package/llm_blender_ray
ln -sfn "$PWD"/actors "$PWD"/configs "$PWD"/pipelines "$PWD"/pipelines/package/*.py package/llm_blender_ray/
export PYTHONPATH="$PWD/site:$PWD/package"
failed=0
"$python" -m pytest tests/e2e/test_gpu.py -q --junitxml=tests.xml >&2 || failed=1
"$python" -m llm_blender_ray.pipelines.bench.gpu "$@" > results.json || failed=1
tail -n 1 results.json
exit $failed
"""


def pack_bundle(folder: Path) -> None:
    """Copy into a folder all of the bundle but the wheels."""
    for name in PACKED_FOLDERS:
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in TESTS:
        source, target = _ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    (folder / "pytest.ini").write_text(PYTEST)
    script = folder / "run.sh"
    script.write_text(RUN)
    script.chmod(0o755)


def download(folder: Path, python: str) -> None:
    """Download the wheels for a version of Python on Linux x86-64.

    Raises:
        subprocess.CalledProcessError: pip can't.
    """
    pinned = (_ROOT / "constraints.txt").read_text()
    wanted = [
        match[0] for name in _PACKAGES if (match := re.search(rf"^{re.escape(name)}==\S+$", _dashed(pinned), re.M))
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={python}", "--implementation=cp", f"--dest={folder}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*command, *wanted], check=True)


def _dashed(constraints: str) -> str:
    """Constraints with names as the index has them."""
    return "\n".join(
        name.replace("_", "-").lower() + equals + version
        for name, equals, version in (line.partition("==") for line in constraints.splitlines())
    )


def main() -> None:
    """Write the archive; print its path and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (3.12)")
    parser.add_argument("--output", type=Path, default=_ROOT / "out" / f"{_NAME}.tar.gz")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / _NAME
        folder.mkdir()
        pack_bundle(folder)
        download(folder / "wheels", arguments.python)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(arguments.output, "w:gz") as archive:
            archive.add(folder, _NAME)
    size = arguments.output.stat().st_size / 2**20
    print(f"{arguments.output} ({size:.0f} MiB); on the GPU machine: tar xf {_NAME}.tar.gz && {_NAME}/run.sh")


if __name__ == "__main__":
    main()

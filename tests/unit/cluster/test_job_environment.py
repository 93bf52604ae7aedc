"""Variables of a job in two shares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_blender_ray.cluster import job_environment
from llm_blender_ray.cluster.job_environment import FILE, HOOK, VARIABLE, restore_environment, split_environment

VALUES = {"BLEND_TEST_KEY": "sk-0123456789", "BLEND_TEST_NAME": 'naïve "東京"\nline', "BLEND_TEST_EMPTY": ""}


def test_no_share_has_a_value_or_its_length() -> None:
    pad, share = split_environment(VALUES)
    for one in (pad, bytes.fromhex(share)):
        assert b"sk-0123456789" not in one and b"BLEND_TEST_KEY" not in one
    assert len(pad) == len(split_environment({"A": "b"})[0]) == len(share) // 2
    assert split_environment(VALUES)[1] != share


def test_a_worker_s_start_joins_them_and_keeps_no_share(tmp_path: Path) -> None:
    """In a process that has the package from an upload, by the name that Ray is given."""
    package = tmp_path / "llm_blender_ray" / "cluster"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "job_environment.py").write_text(Path(job_environment.__file__).read_text())
    pad, share = split_environment(VALUES)
    (tmp_path / FILE).write_bytes(pad)
    module, _, function = HOOK.rpartition(".")
    program = (
        f"import importlib, json, os; importlib.import_module({module!r}).{function}(); "
        f"print(json.dumps([{VARIABLE!r} in os.environ, {{name: os.environ[name] for name in {list(VALUES)!r}}}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"], VARIABLE: share},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == json.dumps([False, VALUES])


def test_without_a_share_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = dict(os.environ)
    restore_environment()
    assert dict(os.environ) == before

"""The notebook of the first hour runs as it is, top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_commands")]


def test_first_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs/first_hour.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "rank 1  score" in printed
    assert "32 rows: first_hour/blended.jsonl" in printed
    assert "32 pairs; the first one:" in printed

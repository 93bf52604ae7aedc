"""Examples in the documentation, to be executed by tests, and the hooks that build its pages."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

from paths import ROOT


def python_blocks(page: Path, heading: str) -> list[str]:
    """Python code of a section of a Markdown page."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (one for one in sections if one.partition("\n")[0] == heading)
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@cache
def docs_hooks() -> ModuleType:
    """The module `docs/hooks.py`, which mkdocs loads by its path."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

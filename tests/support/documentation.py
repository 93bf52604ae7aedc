"""Examples in the documentation, to be executed by tests."""

import re
from pathlib import Path


def python_blocks(page: Path, heading: str) -> list[str]:
    """Python code of a section of a Markdown page."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (one for one in sections if one.partition("\n")[0] == heading)
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)

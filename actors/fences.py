"""Other people's texts within what an LLM is told: fenced, so that none can pass for a part of what it is told."""

import re

from actors.records import Prompt


def fence_for(*texts: str) -> str:
    """A line that none of these texts can spell: Markdown's fence, of more backticks than any has in a row."""
    runs = re.findall("`+", "\n".join(texts))
    return "`" * max(3, 1 + max(map(len, runs), default=0))


def shown(prompt: Prompt) -> str:
    """The prompt as one text, a chat of several turns whole."""
    return "\n".join(text for text in prompt.texts() if text)

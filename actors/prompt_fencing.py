"""Fences around untrusted texts in a prompt, so that none can pass for a part of the instructions."""

import re

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.truncation import keep_ends, keep_last_turn


def fence_for(*texts: str) -> str:
    """A line that none of these texts can spell: Markdown's fence, of more backticks than any has in a row."""
    runs = re.findall("`+", "\n".join(texts))
    return "`" * max(3, 1 + max(map(len, runs), default=0))


def prompt_text(prompt: Prompt, share: float = 1.0) -> str:
    """The prompt as one text, a chat of several turns whole.

    Args:
        prompt: The prompt.
        share: Characters to keep, as a share of all, for an LLM that the whole is too long for: the end of a chat,
            both ends of any other text.
    """
    turns = prompt.turns() if prompt.messages else ("\n".join(text for text in prompt.texts() if text),)
    whole = "\n".join(turns)
    if share >= 1:
        return whole
    length = int(share * len(whole))
    if len(turns) > 1:
        return "".join(keep_last_turn([f"{turn}\n" for turn in turns], length)).rstrip("\n")
    return " ... ".join("".join(part) for part in keep_ends(whole, length))

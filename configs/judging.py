"""Settings of judges: the prompt, and the form of the verdict."""

import re
from string import Formatter
from typing import Annotated

from pydantic import Field, field_validator

from llm_blender_ray.configs.settings import Settings


class Judging(Settings):
    """Prompt of a judge, and form of its verdict."""

    criterion: Annotated[str, Field(min_length=1)] | None = None  # None: helpful, relevant, accurate and detailed
    prompt: str | None = None  # its prompt template, with {prompt}, {answer_a}, {answer_b}, {criterion} and {fence}
    verdict_pattern: str | None = None  # regular expression; the first group of its last match is A, B, C or tie

    @field_validator("prompt")
    @classmethod
    def _shows_both(cls, value: str | None) -> str | None:
        known = {"prompt", "answer_a", "answer_b", "criterion", "fence"}
        try:
            fields = {field for _, field, *_ in Formatter().parse(value or "") if field is not None}
        except ValueError as error:
            raise ValueError(f"{error}; write braces that are text as {{{{ and }}}}") from error
        if unknown := sorted(fields - known):
            raise ValueError(f"unknown field {{{unknown[0]}}}; write braces that are text as {{{{ and }}}}")
        if value is not None and (missing := sorted({"prompt", "answer_a", "answer_b"} - fields)):
            raise ValueError(f"expected {{{missing[0]}}} in it")
        return value

    @field_validator("verdict_pattern")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        try:
            groups = re.compile(value or "()").groups
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from error
        if not groups:
            raise ValueError(r"expected a group around the verdict, such as 'Verdict: (A|B|tie)'")
        return value

"""ShareGPT: `ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json`, conversations of people with ChatGPT.

A conversation gives its first question and answer. Long ones are published in pieces, which may begin with an
answer: that one, or a system prompt, is then the instruction, as context.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from llm_blender_ray.pipelines.datasets.sources import DroppedRowError, InstructionExample, field_text


class ShareGPT:
    """Rows with `id` and `conversations`: a list of turns with `from` and `value`."""

    limit: ClassVar[int] = 50_000
    # llm-blender's, its spellings included: refusals, and outputs that only agree
    banned: ClassVar[tuple[str, ...]] = (
        "i'm sorry",
        "i'am here",
        "i'am ready",
        "sure",
        "okay",
        "ok",
        "yes",
        "no",
        "yeah",
        "nope",
        "yep",
        "yup",
        "no problem",
        "no worries",
        "how can i",
        "of course",
    )

    def read(self, given: Mapping[str, Any]) -> InstructionExample:
        """See Source."""
        turns = given.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DroppedRowError("conversations is not a list of turns")
        speakers = [turn.get("from") for turn in turns[:3]]
        if speakers[:2] == ["human", "gpt"]:
            context, question, answer = "", turns[0], turns[1]
        elif speakers[:1] in (["gpt"], ["system"]) and speakers[1:] == ["human", "gpt"]:
            context, question, answer = field_text(turns[0], "value"), turns[1], turns[2]
        else:
            raise DroppedRowError("no question with an answer at the beginning")
        return InstructionExample(
            id=f"sharegpt/{given.get('id') or ''}",
            instruction=context,
            input=field_text(question, "value"),
            output=field_text(answer, "value"),
        )

"""Formats in which LLMs mark their reasoning, as data.

Sources: the models' own chat templates and cards, and vLLM's reasoning parsers of the same names. Marks count only
where a text begins with them, so an answer may mention any of them.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Marks around the reasoning that a text begins with.

    Attributes:
        begins: What the text begins with when it is reasoning, one of them.
        ends: What ends it, whichever comes first. Searched from the beginning of the text.
        header: Text up to and with this belongs to the end mark; "" for none.
        opening: What may stand between reasoning and answer; "" for nothing.
        closing: What may stand behind such an answer, one of them.
        tokens: Special tokens that the marks are made of. A tokenizer that has the first two writes this format.
        tentative: The begin mark is common in answers, too: without an end mark the text is an answer.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    header: str = ""
    opening: str = ""
    closing: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    tentative: bool = False


def _tags(begin: str, end: str, opening: str = "", closing: str = "") -> ReasoningFormat:
    wrapper = tuple(tag for tag in (opening, closing) if tag)
    return ReasoningFormat(
        (begin,), (end,), opening=opening, closing=(closing,) if closing else (), tokens=(begin, end, *wrapper)
    )


_CHANNELS = tuple(
    f"{start}<|channel|>{name}"
    for start in ("", "<|start|>assistant")
    for name in ("analysis", "commentary", "final")
)

REASONING_FORMATS = (
    _tags("<think>", "</think>"),  # DeepSeek-R1, Qwen3 and most others
    _tags("[THINK]", "[/THINK]"),  # Mistral: Magistral
    _tags("<seed:think>", "</seed:think>"),  # ByteDance: Seed-OSS
    _tags("<reasoning>", "</reasoning>"),
    _tags("<thought>", "</thought>"),  # LG: EXAONE Deep; Gemini's OpenAI endpoint
    _tags("<longcat_think>", "</longcat_think>"),  # Meituan: LongCat
    _tags("◁think▷", "◁/think▷"),  # Moonshot: Kimi-VL
    _tags("<|inner_prefix|>", "<|inner_suffix|>"),  # Swiss AI: Apertus
    _tags("<|channel>thought", "<channel|>"),  # Google: Gemma 4
    _tags("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),  # Cohere: Command A
    _tags(
        "<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"
    ),  # Sky-T1, OpenThinker
    ReasoningFormat(  # OpenAI: gpt-oss (harmony)
        begins=_CHANNELS,
        ends=("<|channel|>final",),
        header="<|message|>",
        closing=("<|return|>", "<|end|>"),
        tokens=("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"),
    ),
    ReasoningFormat(  # the same from a server that leaves out special tokens
        begins=("analysis", "commentary"), ends=("assistantfinal",), tentative=True
    ),
    ReasoningFormat(begins=("<thinking>",), ends=("</thinking>",), tentative=True),
    ReasoningFormat(  # IBM: Granite 3.2
        begins=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
        tentative=True,
    ),
    ReasoningFormat(  # ServiceNow: Apriel
        begins=("Here are my reasoning steps:",),
        ends=("[BEGIN FINAL RESPONSE]",),
        closing=("[END FINAL RESPONSE]",),
        tentative=True,
    ),
)


def marking_tokens(special: Collection[str]) -> frozenset[str]:
    """Find the special tokens that mark reasoning, which a decoder mustn't leave out.

    Args:
        special: Special tokens of a tokenizer.

    Returns:
        Those of them that belong to a format which the tokenizer can write.
    """
    written = (format for format in REASONING_FORMATS if format.tokens and {*format.tokens[:2]} <= {*special})
    return frozenset(token for format in written for token in format.tokens if token in special)


def opened_reasoning(prompt: str) -> str:
    """Find the begin mark that a chat template wrote in the answer's place.

    Args:
        prompt: A rendered chat, up to where the answer begins.

    Returns:
        The mark, or "" where the answer doesn't begin within reasoning.
    """
    end = prompt.rstrip()
    marks = (
        mark
        for format in REASONING_FORMATS
        if not format.tentative
        for begin in format.begins
        for mark in _ways(format, begin)
    )
    return max((mark for mark in marks if end.endswith(mark)), key=len, default="")


def _ways(format: ReasoningFormat, begin: str) -> tuple[str, ...]:
    return (begin, begin + format.header) if format.header else (begin,)

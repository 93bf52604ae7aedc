"""Formats in which LLMs mark their reasoning, as data.

Sources: the models' own chat templates and cards, and vLLM's reasoning parsers. Marks count only where a text
begins with them, so an answer may mention any of them. A family's name is here and in `configs.reasoning`.
"""

from collections.abc import Collection
from dataclasses import dataclass

from llm_blender_ray.configs.reasoning import AUTO


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Marks around the reasoning that a text begins with.

    Attributes:
        begins: What the text begins with when it is reasoning, one of them.
        ends: What ends it, whichever comes first. Searched from the beginning of the text.
        header: Text up to and with this belongs to the end mark; "" for none.
        families: Names of the families that write it (`configs.reasoning.FAMILIES`).
        opening: What may stand between reasoning and answer; "" for nothing.
        closing: What may stand behind such an answer, one of them.
        tokens: Special tokens that the marks are made of. A tokenizer that has the first two writes this format.
        tentative: The begin mark is common in answers, too: without an end mark the text is an answer.
        inner: Marks within the reasoning, which are no part of it.
        forced: What ends the reasoning where it is cut off; "" for the first of `ends`.
        named: Whether it is looked for only in answers of its own families.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    header: str = ""
    opening: str = ""
    closing: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    tentative: bool = False
    families: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    forced: str = ""
    named: bool = False

    @property
    def forced_end(self) -> str:
        """What is written to end reasoning whose budget is used up."""
        return self.forced or self.ends[0]


def _tags(
    begin: str, end: str, *families: str, opening: str = "", closing: str = "", named: bool = False
) -> ReasoningFormat:
    return ReasoningFormat(
        begins=(begin,),
        ends=(end,),
        opening=opening,
        closing=(closing,) if closing else (),
        tokens=(begin, end, *(tag for tag in (opening, closing) if tag)),
        families=families,
        named=named,
    )


_STARTS = ("", "<|start|>assistant")
_CHANNELS = tuple(f"{start}<|channel|>{name}" for start in _STARTS for name in ("analysis", "commentary", "final"))
_THINK = (
    *("deepseek_r1", "deepseek_v3", "deepseek_v4", "glm45", "glm47", "holo2", "kimi_k2", "ling3", "mimo"),
    *("minicpmv", "minimax_m2", "nemotron_v3", "olmo3", "qwen3", "smollm3", "step3", "step3p5"),
)

_FORMATS = (
    _tags("<think>", "</think>", *_THINK),
    _tags("<think>", "</think>", "ernie45", opening="<response>", closing="</response>", named=True),
    _tags("<think>", "</think>", "hunyuan_a13b", opening="<answer>", closing="</answer>", named=True),
    _tags("[THINK]", "[/THINK]", "mistral"),  # Magistral
    _tags("<seed:think>", "</seed:think>", "seed_oss"),
    _tags("<mm:think>", "</mm:think>", "minimax_m3"),
    _tags("<reasoning>", "</reasoning>"),
    _tags("<thought>", "</thought>", "exaone_deep"),  # Gemini's OpenAI endpoint, too
    _tags("<longcat_think>", "</longcat_think>", "longcat"),
    _tags("◁think▷", "◁/think▷", "kimi_vl"),
    _tags("<|inner_prefix|>", "<|inner_suffix|>", "apertus"),
    _tags("<|channel>thought", "<channel|>", "gemma4"),
    _tags(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        *("cohere_command3", "cohere_command4"),
        opening="<|START_RESPONSE|>",
        closing="<|END_RESPONSE|>",
    ),
    _tags(
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "openthinker",  # Sky-T1, too
        opening="<|begin_of_solution|>",
        closing="<|end_of_solution|>",
    ),
    ReasoningFormat(  # harmony
        begins=_CHANNELS,
        ends=("<|channel|>final",),
        header="<|message|>",
        closing=("<|return|>", "<|end|>"),
        tokens=("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"),
        families=("openai_gptoss",),
        inner=("<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>analysis", "<|channel|>commentary"),
        forced="<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ReasoningFormat(  # the same from a server that leaves out special tokens
        begins=("analysis", "commentary"),
        ends=("assistantfinal",),
        tentative=True,
        families=("openai_gptoss",),
    ),
    ReasoningFormat(begins=("<thinking>",), ends=("</thinking>",), tentative=True),
    ReasoningFormat(  # Granite 3.2
        begins=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
        tentative=True,
        families=("granite",),
    ),
    ReasoningFormat(
        begins=("Here are my reasoning steps:",),
        ends=("[BEGIN FINAL RESPONSE]",),
        closing=("[END FINAL RESPONSE]",),
        tentative=True,
        families=("apriel",),
    ),
)
REASONING_FORMATS = tuple(format for format in _FORMATS if not format.named)


def formats_of(parser: str = AUTO) -> tuple[ReasoningFormat, ...]:
    """Find the formats in which an LLM may mark its reasoning.

    Args:
        parser: A `reasoning_parser` setting; a name that is known to vLLM alone is as `auto`.

    Returns:
        All that are told by their marks, or those of the named family.
    """
    return tuple(format for format in _FORMATS if parser in format.families) or REASONING_FORMATS


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

"""Reads a judge's verdict from its reply, in the forms that LLMs use.

Deterministic, and strict about quotes: what a judge quotes from an answer is no verdict, and a reply that gives
two verdicts has none. In the order in which they count:

- marked: `[[A]]`, on the last line that has such a mark, whatever surrounds it on a line of its own;
- an object: `{"verdict": "A"}`, `{"winner": "B"}`, `{"choice": "tie"}`, alone on its lines;
- labelled: `Verdict: A`, `The winner is B`;
- bare: `A` as the last line.

Each may be in lower case, emphasised, quoted, fenced, escaped, or in full-width characters.
"""

import json
import re
import unicodedata
from collections.abc import Iterator

from llm_blender_ray.actors.engines.reasoning import THINK_BEGIN, THINK_END

TIES = ("c", "tie", "tied", "draw", "equal", "both", "neither")
SCORES = {"a": 1.0, "b": -1.0, **dict.fromkeys(TIES, 0.0)}

_CHOICE = rf"(?:(?:answer|assistant|response|option|model|candidate)[\s_]*)?(a|b|{'|'.join(TIES)})"
_LABEL = (
    r"(?:verdict|winner|choice|decision|preference|preferred|better|best|result|judge?ment|conclusion|final answer)"
)
_DECORATION = r"[\s*_`'\"()\[\].,;:!~#>-]*"  # around a verdict that has a line of its own
_SPECIAL = re.compile(r"(?:</s>|<\|[^<>|]{1,40}\|>|<end_of_turn>|<eos>|\[/INST\])", re.IGNORECASE)  # tokens
_TAGGED = re.compile(rf"<({_LABEL})>\s*{_CHOICE}\s*</\1>|\\?boxed\{{\s*{_CHOICE}\s*\}}", re.IGNORECASE)
_MARK = re.compile(rf"(?<!\[)\[\[\s*{_CHOICE}\s*\]\](?!\])", re.IGNORECASE)
_LABELLED = re.compile(
    rf"{_DECORATION}(?:(?:so|therefore|thus|my|the|final|overall)[\s,]+)*{_LABEL}(?:\s+(?:answer|verdict|choice))?"
    rf"[\s*_`'\"]*(?:\bis\b|[:=]|->)[\s*_`'\"(\[:]*{_CHOICE}\b(?![\w'])(?P<after>.*)",
    re.IGNORECASE,
)
_BARE = re.compile(rf"(?!.*\[\[){_DECORATION}{_CHOICE}{_DECORATION}", re.IGNORECASE)
_OWN_LABEL = re.compile(rf".*\b{_LABEL}\b[^.!?]*", re.IGNORECASE)
_BRACKETS = str.maketrans("【】〔〕「」『』“”„‘’«»。、", '[][]""""""' + '"' + "''" + '""' + ".,")
_KEYS = re.compile(rf"(?:final[\s_]*)?{_LABEL}|answer", re.IGNORECASE)


def read_verdict(reply: str, pattern: re.Pattern[str] | None = None) -> float | None:
    """The verdict as a score.

    Args:
        reply: What the LLM answered. Reasoning that ends with </think> is passed over; reasoning without an end is
            no reply.
        pattern: Replaces the usual forms: the first group of its last match is the verdict (A, B, C or tie).

    Returns:
        1 where A is better, -1 where B is, 0 for a tie; None where the reply has no verdict, or more than one.
    """
    reply = reply.rpartition(THINK_END)[2]
    if THINK_BEGIN in reply:
        return None
    if pattern is not None:
        found = [match[1] for match in pattern.finditer(reply)]
        return SCORES.get((found[-1] or "").strip().lower()) if found else None
    lines = _lines(reply)
    for read in (_marked, _object, _labelled, _bare):
        verdicts = set(read(lines))
        if verdicts:
            return verdicts.pop() if len(verdicts) == 1 else None
    return None


def _lines(reply: str) -> list[tuple[str, bool]]:
    """The lines that show something, and whether each is a quotation: fenced, or behind `>`, with more to come."""
    text = unicodedata.normalize("NFKC", reply).translate(_BRACKETS)
    text = re.sub(r"\\([\[\]*_`>#(){}-])", r"\1", _SPECIAL.sub("", text))
    text = _TAGGED.sub(lambda match: f"[[{match[2] or match[3]}]]", text)
    lines: list[tuple[str, bool]] = []
    fenced = False
    for line in text.splitlines():
        if re.match(r"\s*(?:>\s*)?(?:```|~~~)", line):
            fenced = not fenced
        elif re.search(r"[^\s\-=*_#]", line):
            lines.append((line.strip(), fenced or line.lstrip().startswith(">")))
    end = next((i for i in reversed(range(len(lines))) if not lines[i][1]), -1) + 1
    if len({line for line, _ in lines[end:]}) > 1 and not _is_object(lines[end:]):
        return lines  # a quotation of several lines ends the reply: whose words are these?
    return [(line, quoted and i < end) for i, (line, quoted) in enumerate(lines)]


def _is_object(lines: list[tuple[str, bool]]) -> bool:
    return lines[0][0].startswith("{") and lines[-1][0].endswith("}")


def _marked(lines: list[tuple[str, bool]]) -> Iterator[float]:
    """The verdict of the last line with a mark, and those on other lines of their own.

    The latter contradict it if they differ.
    """
    with_mark = [i for i, (line, _) in enumerate(lines) if _MARK.search(line)]
    for i in with_mark:
        line, quoted = lines[i]
        own = _own(line)
        last = i == with_mark[-1] and i == len(lines) - 1
        if not quoted and (own or (last and _closing(line))):
            yield from (SCORES[match[1].lower()] for match in _MARK.finditer(line))
    if with_mark and with_mark[-1] < len(lines) - 1:
        yield from _labelled(lines[with_mark[-1] + 1 :])
        yield from _bare(lines[with_mark[-1] + 1 :])


def _own(line: str) -> bool:
    """Whether a marked verdict has the line to itself, but for a label before it or a remark in brackets."""
    before, after = _around(line)
    return bool(
        re.fullmatch(_DECORATION, re.sub(r"\([^()]*\)", "", after))
        and (re.fullmatch(_DECORATION, before) or _OWN_LABEL.fullmatch(before))
        and not after.rstrip().endswith("?")
    )


def _closing(line: str) -> bool:
    """Whether a marked verdict begins or ends its sentence, and is not quoted, negated or requested."""
    before, after = _around(line)
    if "?" in after or re.search(r"\b(?:not|never|n't)\s*$", before, re.IGNORECASE):
        return False
    if re.search(r"['\"`]\s*$", before):
        return False
    return bool(re.fullmatch(_DECORATION, before) or re.fullmatch(_DECORATION, after))


def _around(line: str) -> tuple[str, str]:
    """Text before the first mark of a line and after its last."""
    marks = list(_MARK.finditer(line))
    return line[: marks[0].start()], line[marks[-1].end() :]


def _object(lines: list[tuple[str, bool]]) -> Iterator[float]:
    """Verdicts of JSON objects that begin and end at a line's ends, outside of quotations."""
    text = "\n".join(line for line, quoted in lines if not quoted)
    end = 0
    for start in re.finditer(r"^\{", text, re.MULTILINE):
        if start.start() < end:
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if not text[end:].partition("\n")[0].strip(" .,;"):
            for key, said in value.items():
                if isinstance(said, str) and _KEYS.fullmatch(key):
                    match = _BARE.fullmatch(said) or _MARK.fullmatch(said.strip())
                    if match:
                        yield SCORES[match[1].lower()]


def _labelled(lines: list[tuple[str, bool]]) -> Iterator[float]:
    for line, quoted in lines:
        match = _LABELLED.fullmatch(line)
        if not match or quoted or re.match(r"[^.!(]*(?:\bor\b|\band\b|\?|/)", match["after"]):
            continue
        if match[1] in "ABC" or not re.match(r"\s*\w", match["after"]):  # "the better one is a short one"
            yield SCORES[match[1].lower()]


def _bare(lines: list[tuple[str, bool]]) -> Iterator[float]:
    line, quoted = lines[-1] if lines else ("", False)
    if not quoted and (match := _BARE.fullmatch(line)):
        yield SCORES[match[1].lower()]

"""Reads a judge's verdict from its reply, in the forms that LLMs use.

Deterministic, and strict about quotes: what a judge quotes from an answer is no verdict, and a reply that gives
two verdicts has none. In the order in which they count:

- marked: `[[A]]`, on the last line that has such a mark, whatever surrounds it on a line of its own;
- an object: `{"verdict": "A"}`, `{"winner": "B"}`, `{"choice": "tie"}`, alone on its lines;
- labelled: `Verdict: A`, `The winner is B`;
- bare: `A` as the last line.

Each may be in lower case, emphasised, quoted, fenced, escaped, or in full-width characters.

`FOUR_WAY` has MixInstruct's verdicts: `A is better`, `B is better`, `Same good`, `Same bad` (LLM-Blender, Jiang et
al. 2023, arXiv 2306.02561).
"""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from llm_blender_ray.actors.engines.reasoning import THINK_BEGIN, THINK_END
from llm_blender_ray.actors.judged_pairs import Preferred

VerdictWords = tuple[tuple[str, Preferred], ...]  # verdicts as judges write them, in lower case

_SIDES: VerdictWords = (("a", "left"), ("b", "right"))
_TIES: VerdictWords = tuple((word, "tie") for word in ("c", "tie", "tied", "draw", "equal", "both", "neither"))
THREE_WAY: VerdictWords = (*_SIDES, *_TIES)
FOUR_WAY: VerdictWords = (
    ("a is better", "left"),
    ("b is better", "right"),
    *_SIDES,
    *((word, "both_good") for word in ("same good", "both good", "both are good", "equally good")),
    *((word, "both_bad") for word in ("same bad", "both bad", "both are bad", "equally bad")),
    ("tie", "tie"),
)
SCORES: Mapping[Preferred, float] = MappingProxyType(
    {"left": 1.0, "right": -1.0, "tie": 0.0, "both_good": 0.0, "both_bad": 0.0}
)

_LABEL = (
    r"(?:verdict|winner|choice|decision|preference|preferred|better|best|result|judge?ment|conclusion|final answer)"
)
_DECORATION = r"[\s*_`'\"()\[\].,;:!~#>-]*"  # around a verdict that has a line of its own
_SPECIAL = re.compile(r"(?:</s>|<\|[^<>|]{1,40}\|>|<end_of_turn>|<eos>|\[/INST\])", re.IGNORECASE)  # tokens
_OWN_LABEL = re.compile(rf".*\b{_LABEL}\b[^.!?]*", re.IGNORECASE)
_BRACKETS = str.maketrans("【】〔〕「」『』“”„‘’«»。、", '[][]""""""' + '"' + "''" + '""' + ".,")
_KEYS = re.compile(rf"(?:final[\s_]*)?{_LABEL}|answer", re.IGNORECASE)
_GAP = r"[\s_-]+"  # between the words of a verdict

Line = tuple[str, bool]  # its text, and whether it is a quotation


def read_verdict(reply: str, pattern: re.Pattern[str] | None = None) -> float | None:
    """The verdict A, B or tie as a score.

    Args:
        reply: See `read_preference`.
        pattern: See `read_preference`.

    Returns:
        1 where A is better, -1 where B is, 0 for a tie; None where the reply has no verdict, or more than one.
    """
    preferred = read_preference(reply, pattern=pattern)
    return None if preferred is None else SCORES[preferred]


def read_preference(
    reply: str, words: VerdictWords = THREE_WAY, pattern: re.Pattern[str] | None = None
) -> Preferred | None:
    """Read which answer a judge prefers.

    Args:
        reply: What the LLM answered. Reasoning that ends with </think> is passed over; reasoning without an end is
            no reply.
        words: The verdicts that there are.
        pattern: Replaces the usual forms: the first group of its last match is the verdict, one of `words`.

    Returns:
        The verdict; None where the reply has none, or more than one.
    """
    reply = reply.rpartition(THINK_END)[2]
    if THINK_BEGIN in reply:
        return None
    forms = _forms(words)
    if pattern is not None:
        found = [match[1] for match in pattern.finditer(reply)]
        return forms.verdicts.get(_normal((found[-1] or "").strip())) if found else None
    lines = _lines(reply, forms)
    readers: tuple[Callable[[list[Line]], Iterator[Preferred]], ...] = (
        forms.marked,
        forms.object,
        forms.labelled,
        forms.bare,
    )
    for read in readers:
        verdicts = set(read(lines))
        if verdicts:
            return verdicts.pop() if len(verdicts) == 1 else None
    return None


def _normal(word: str) -> str:
    return re.sub(_GAP, " ", word.lower())


def _lines(reply: str, forms: "_Forms") -> list[Line]:
    """The lines that show something, and whether each is a quotation: fenced, or behind `>`, with more to come."""
    text = unicodedata.normalize("NFKC", reply).translate(_BRACKETS)
    text = re.sub(r"\\([\[\]*_`>#(){}-])", r"\1", _SPECIAL.sub("", text))
    text = forms.tag.sub(lambda match: f"[[{match[2] or match[3]}]]", text)
    lines: list[Line] = []
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


def _is_object(lines: list[Line]) -> bool:
    return lines[0][0].startswith("{") and lines[-1][0].endswith("}")


class _Forms:
    """The forms of some verdicts."""

    def __init__(self, words: VerdictWords) -> None:
        self.verdicts = dict(words)
        choices = "|".join(word.replace(" ", _GAP) for word in self.verdicts)
        choice = rf"(?:(?:answer|assistant|response|option|model|candidate)[\s_]*)?({choices})"
        tag = rf"<({_LABEL})>\s*{choice}\s*</\1>|\\?boxed\{{\s*{choice}\s*\}}"
        labelled = (
            rf"{_DECORATION}(?:(?:so|therefore|thus|my|the|final|overall)[\s,]+)*{_LABEL}"
            rf"(?:\s+(?:answer|verdict|choice))?[\s*_`'\"]*(?:\bis\b|[:=]|->)[\s*_`'\"(\[:]*{choice}\b(?![\w'])"
            r"(?P<after>.*)"
        )
        self.tag = re.compile(tag, re.IGNORECASE)
        self._mark = re.compile(rf"(?<!\[)\[\[\s*{choice}\s*\]\](?!\])", re.IGNORECASE)
        self._labelled = re.compile(labelled, re.IGNORECASE)
        self._bare = re.compile(rf"(?!.*\[\[){_DECORATION}{choice}{_DECORATION}", re.IGNORECASE)

    def _verdict(self, match: re.Match[str]) -> Preferred:
        return self.verdicts[_normal(match[1])]

    def marked(self, lines: list[Line]) -> Iterator[Preferred]:
        """The verdict of the last line with a mark, and those on other lines of their own.

        The latter contradict it if they differ.
        """
        with_mark = [i for i, (line, _) in enumerate(lines) if self._mark.search(line)]
        for i in with_mark:
            line, quoted = lines[i]
            last = i == with_mark[-1] and i == len(lines) - 1
            if not quoted and (self._own(line) or (last and self._closing(line))):
                yield from map(self._verdict, self._mark.finditer(line))
        if with_mark and with_mark[-1] < len(lines) - 1:
            yield from self.labelled(lines[with_mark[-1] + 1 :])
            yield from self.bare(lines[with_mark[-1] + 1 :])

    def _own(self, line: str) -> bool:
        """Whether a marked verdict has the line to itself, but for a label before it or a remark in brackets."""
        before, after = self._around(line)
        return bool(
            re.fullmatch(_DECORATION, re.sub(r"\([^()]*\)", "", after))
            and (re.fullmatch(_DECORATION, before) or _OWN_LABEL.fullmatch(before))
            and not after.rstrip().endswith("?")
        )

    def _closing(self, line: str) -> bool:
        """Whether a marked verdict begins or ends its sentence, and is not quoted, negated or requested."""
        before, after = self._around(line)
        if "?" in after or re.search(r"\b(?:not|never|n't)\s*$", before, re.IGNORECASE):
            return False
        if re.search(r"['\"`]\s*$", before):
            return False
        return bool(re.fullmatch(_DECORATION, before) or re.fullmatch(_DECORATION, after))

    def _around(self, line: str) -> tuple[str, str]:
        """Text before the first mark of a line and after its last."""
        marks = list(self._mark.finditer(line))
        return line[: marks[0].start()], line[marks[-1].end() :]

    def object(self, lines: list[Line]) -> Iterator[Preferred]:
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
                        match = self._bare.fullmatch(said) or self._mark.fullmatch(said.strip())
                        if match:
                            yield self._verdict(match)

    def labelled(self, lines: list[Line]) -> Iterator[Preferred]:
        """Verdicts behind a label, one on a line."""
        for line, quoted in lines:
            match = self._labelled.fullmatch(line)
            if not match or quoted or re.match(r"[^.!(]*(?:\bor\b|\band\b|\?|/)", match["after"]):
                continue
            if match[1] in "ABC" or not re.match(r"\s*\w", match["after"]):  # "the better one is a short one"
                yield self._verdict(match)

    def bare(self, lines: list[Line]) -> Iterator[Preferred]:
        """The last line, if it is a verdict."""
        line, quoted = lines[-1] if lines else ("", False)
        if not quoted and (match := self._bare.fullmatch(line)):
            yield self._verdict(match)


@functools.cache
def _forms(words: VerdictWords) -> _Forms:
    return _Forms(words)

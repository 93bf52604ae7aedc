"""The miniature's world: three questions a prompt, and six LLMs with different beliefs.

An LLM is fallible in a way that a fusion can repair: it knows some skills well and others hardly, and where it
does not know the answer it always gives the same wrong one of the right kind. Beliefs are fixed because greedy
decoding averages random noise away. All answer in one style, so that style never reveals the correct answer.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.pipelines.miniature.facts import CAPITALS, OPPOSITES, PAST_TENSES, SORTED_WORDS, SPANISH

TABLES: Mapping[str, Mapping[str, str]] = {
    "capital of": CAPITALS,
    "opposite of": OPPOSITES,
    "Spanish for": SPANISH,
    "past tense of": PAST_TENSES,
}
SORT = "sort"
SKILLS = (*TABLES, SORT)
PARTS = 3  # questions a prompt

INSTRUCTIONS = (
    "Answer the three questions below.",
    "Please answer each question.",
    "Give a short answer to every question.",
    "Reply to all three questions in order.",
    "What are the answers?",
    "Solve these three small tasks.",
    "Here are three questions. Answer them.",
    "Write the answers as a numbered list.",
)

STRONG, MEDIUM, WEAK = 0.97, 0.3, 0.04  # share of a skill's keys that an LLM knows (chance sorts 1/6 correctly)

# Each fact table has two LLMs that know it, sorting has one, and no LLM knows more than two skills: the best answer
# of a row is seldom all correct, three good ones together often are, and three random ones less often.
COVERAGE: Mapping[str, tuple[float, ...]] = {  # in the order of SKILLS
    "alder": (STRONG, STRONG, WEAK, WEAK, MEDIUM),
    "birch": (WEAK, STRONG, STRONG, MEDIUM, WEAK),
    "cedar": (WEAK, WEAK, STRONG, STRONG, WEAK),
    "hazel": (WEAK, WEAK, WEAK, STRONG, STRONG),
    "maple": (STRONG, WEAK, MEDIUM, WEAK, WEAK),
    "rowan": (WEAK, MEDIUM, WEAK, WEAK, MEDIUM),
}
LLM_NAMES = tuple(COVERAGE)

HELDOUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """One part of a prompt. `keys` is the word asked about, or the words to sort in the given order."""

    skill: str
    keys: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question in a prompt."""
        return f"{self.skill} {' '.join(self.keys)}"

    @property
    def answer(self) -> str:
        """The true answer."""
        return " ".join(sorted(self.keys)) if self.skill == SORT else TABLES[self.skill][self.keys[0]]


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt of the world: an instruction and its questions."""

    instruction: str
    questions: tuple[Question, ...]

    @property
    def input(self) -> str:
        """The questions, numbered."""
        return numbered([question.text for question in self.questions])

    @property
    def output(self) -> str:
        """The reference: every part correct."""
        return numbered([question.answer for question in self.questions])

    @property
    def heldout(self) -> bool:
        """Whether the task belongs to the held-out split.

        Decided by the questions alone, whatever the instruction, the order of the questions and of the words to
        sort:
        no training prompt is a held-out one in other words.
        """
        parts = sorted(f"{question.skill} {' '.join(sorted(question.keys))}" for question in self.questions)
        return fraction("split", *parts) < HELDOUT_SHARE

    @property
    def prompt(self) -> Prompt:
        """The task as a prompt."""
        return Prompt(self.id, instruction=self.instruction, input=self.input)

    @property
    def id(self) -> str:
        """Id made of the questions."""
        digest = hashlib.sha256(f"{self.instruction}\n{self.input}".encode()).hexdigest()
        return f"miniature/{digest[:12]}"

    def to_row(self) -> dict[str, Any]:
        """The task as an input row with its reference."""
        return {"id": self.id, "instruction": self.instruction, "input": self.input, "output": self.output}


class Beliefs:
    """Beliefs of one LLM; the same for the same seed and name."""

    def __init__(self, llm: str, seed: int) -> None:
        coverage = dict(zip(SKILLS, COVERAGE[llm], strict=True))
        rng = random.Random(f"beliefs {seed} {llm}")
        self._tables = {skill: _believed(table, coverage[skill], rng) for skill, table in TABLES.items()}
        self._alphabet = _believed_alphabet(coverage[SORT], rng)

    def answer(self, question: Question) -> str:
        """This LLM's answer to the question."""
        if question.skill == SORT:
            return " ".join(sorted(question.keys, key=self._alphabet.__getitem__))
        return self._tables[question.skill][question.keys[0]]

    def answers(self, task: Task) -> str:
        """This LLM's answer to the whole task."""
        return numbered([self.answer(question) for question in task.questions])


def _believed(table: Mapping[str, str], coverage: float, rng: random.Random) -> dict[str, str]:
    """The table with `coverage` of its keys correct and the others mapped to another key's answer."""
    known = set(rng.sample(sorted(table), round(coverage * len(table))))
    answers = sorted(table.values())
    return {
        key: answer if key in known else rng.choice([other for other in answers if other != answer])
        for key, answer in table.items()
    }


def _believed_alphabet(coverage: float, rng: random.Random) -> dict[str, float]:
    """Every word's place in the order that this LLM believes in.

    Words are misplaced one after the other until at most `coverage` of all triples is sorted correctly.
    """
    places = {word: float(place) for place, word in enumerate(SORTED_WORDS)}
    threes = [sorted(rng.sample(SORTED_WORDS, 3)) for _ in range(500)]
    for word in rng.sample(SORTED_WORDS, len(SORTED_WORDS)):
        if sum(places[a] < places[b] < places[c] for a, b, c in threes) <= coverage * len(threes):
            break
        places[word] = rng.uniform(0, len(places))
    return places


def fraction(*words: str) -> float:
    """A number in [0, 1) determined by the words: the same in every process and on every machine."""
    digest = hashlib.sha256("\n".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def random_question(skill: str, rng: random.Random) -> Question:
    """Draw a question of the skill."""
    if skill == SORT:
        return Question(skill, tuple(rng.sample(SORTED_WORDS, 3)))
    return Question(skill, (rng.choice(sorted(TABLES[skill])),))


def random_tasks(rng: random.Random, *, heldout: bool) -> Iterator[Task]:
    """Endless tasks of one split, the questions of each from distinct skills."""
    while True:
        skills = rng.sample(SKILLS, PARTS)
        task = Task(rng.choice(INSTRUCTIONS), tuple(random_question(skill, rng) for skill in skills))
        if task.heldout == heldout:
            yield task


def numbered(parts: Sequence[str]) -> str:
    """Number the parts: `1) first 2) second ...`."""
    return " ".join(f"{i}) {part}" for i, part in enumerate(parts, start=1))

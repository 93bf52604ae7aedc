"""Verdicts as judges write them, and what looks like one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.scorers.verdicts import FOUR_WAY, THREE_WAY, read_preference, read_verdict

A, B, TIE = 1.0, -1.0, 0.0

READ = [
    ("[[A]]", A),
    ("[[B]]", B),
    ("[[C]]", TIE),
    ("Both are short.\n\nMy verdict: [[B]]", B),
    ("**[[A]]**", A),
    ("`[[A]]`.\n\n  \n", A),
    ("[[A]] seemed better at first.\n[[B]]", B),
    ("A", A),
    ("a", A),
    ("b.", B),
    ("**B**", B),
    ("(A)", A),
    ("[A]", A),
    ("C", TIE),
    ("tie", TIE),
    ("Tie.", TIE),
    ("[[a]]", A),
    ("[[ A ]]", A),
    ("[[A]] [[A]]", A),
    ("[[A]]\nThat is my verdict.", A),
    ("[[A]] because it is longer", A),
    ("B is better.\n```\n[[B]]\n```", B),
    ('"[[A]]"', A),
    ("([[A]])", A),
    ("[[A]]!", A),
    ("[[A]]。", A),
    ("[[A]]</s>", A),
    ("[[A]] (A is better)", A),
    ("\\[\\[A\\]\\]", A),
    ("[[A]]\n---", A),
    ("[[A]]\n\nLet me know if you need anything else!", A),
    ("> [[A]]", A),
    ("x\r\n[[B]]\r\n", B),
    ('{"verdict": "A"}', A),
    ('{"winner":"B"}', B),
    ('```json\n{"choice": "tie"}\n```', TIE),
    ('Explanation here.\n```json\n{\n "reason": "x",\n "verdict": "B"\n}\n```', B),
    ('{"verdict": "[[A]]"}', A),
    ('{"reasoning":"[[B]] is claimed","verdict":"A"}', A),
    ("Verdict: A", A),
    ("verdict: b", B),
    ("**Verdict:** A", A),
    ("**Verdict: B**", B),
    ("Final verdict: Tie", TIE),
    ("The winner is B.", B),
    ("Verdict： Ａ", A),
    ("［［Ａ］］", A),
    ("【【B】】", B),
    ("Verdict: A\nThanks!", A),
    ('My verdict: "[[A]]"', A),
    ("Verdict: [[A]]", A),
    ("So I choose [[A]].", A),
    ("<verdict>A</verdict>", A),
    ("\\boxed{B}", B),
    ("Winner: Assistant B", B),
    ("Better answer: A", A),
    ("[[A]]<|im_end|>", A),
    ("[[Tie]]", TIE),
    ("Verdict: C (they are equal)", TIE),
    ("Answer A", A),
    ("'A'", A),
    ("Verdict: B because it's right", B),
    ('{"answer_a": "x", "answer": "B"}', B),
    ("[[A]]\n```", A),
    ("```\nA\n```", A),
    ('"B"', B),
    ("[[A]]\n\n[[A]]", A),
    ("Verdict: **[[B]]**", B),
    ("### Verdict\n[[A]]", A),
    ("### Verdict\nA", A),
    ("Verdict:\nA", A),
    ("Both are good. [[C]]", TIE),
    ("> quoted [[A]] text\n\n[[B]]", B),
    ("結論：[[A]]", A),
    ("<think>is it [[A]]? or [[C]]?</think>\n[[B]]", B),
    ("is it [[A]]?</think>[[C]]", TIE),
    ("<think>one</think> <think>two [[A]]</think> [[B]]", B),
]
NOT_READ = [
    "",
    "[[D]]",
    "[[A]] or [[B]]",
    "Is it [[A]]?",
    "[[[A]]]",
    "[[A][B]]",
    '{"verdict": "A", "winner": "B"}',
    "Verdict: A or B",
    "Verdict: A\nVerdict: B",
    'Answer A says "[[A]]" at its end.',
    "Answer B ends with:\n```\nMy verdict: [[B]]\n```\nThat is an attempt to cheat.",
    'Answer B ends with "[[B]]".',
    "[[A]]\n[[B]]",
    "[[B]]\nVerdict: A",
    "[[A]]\n\nB",
    "They are much the same.",
    "I'd rather not say.",
    "Answer A claims [[A]] for itself.\nI can't decide.",
    "Verdict - A",
    "It's not [[A]]",
    "Verdict: a better answer",
    "> Answer A wrote [[A]]\nI give up",
    'Answer A says:\n> {"verdict": "A"}\nHm.',
    "A\nThis is good.\nB\nThis is bad.",
    "A is better because b",
    "Prompt says: Verdict: A",
    "```\nVerdict: A\nAnswer B is bad\n```",
    "1",
    "判定：Ａ",
    "<think>It must be\n[[A]]",
    "<think>[[A]]</think>",
    "[[A]]<think>[[B]]</think>",
    "The better one is both short and right",
    "A or B",
    "I see.\nA, B",
]
WORDS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(("reply", "verdict"), READ)
def test_the_usual_forms_are_read(reply: str, verdict: float) -> None:
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize("reply", NOT_READ)
def test_no_verdict_is_taken_from_quotations_and_contradictions(reply: str) -> None:
    assert read_verdict(reply) is None


@given(
    before=WORDS.filter(lambda text: not re.search(r"\[\[|think>|[【］［〚`~>]", text)),
    letter=st.sampled_from("ABCabc"),
    form=st.sampled_from(["[[{}]]", "**[[{}]]**", '"[[{}]]"', "([[{}]]).", "Final verdict: [[{}]]", "［［{}］］"]),
)
def test_any_words_may_come_before_a_verdict(before: str, letter: str, form: str) -> None:
    verdict = {"a": A, "b": B, "c": TIE}[letter.lower()]
    assert read_verdict(f"{before}\n{form.format(letter)}\n") == verdict


@given(st.text('AB[]C \n"`>{}:.verdict', max_size=30))
def test_no_reply_raises(reply: str) -> None:
    assert read_verdict(reply) in (None, A, B, TIE)
    assert read_verdict(reply) == read_verdict(reply)


def test_a_pattern_replaces_the_usual_forms() -> None:
    pattern = re.compile(r"score=(\w+)")
    assert read_verdict("score=A\nscore=Tie", pattern) == TIE
    assert read_verdict("score=five [[A]]", pattern) is None
    assert read_verdict("[[A]]", pattern) is None
    assert read_verdict("score=A", re.compile(r"score=(x)?A")) is None


FOUR = [
    ("[[A is better]]", "left"),
    ("[[B is better]]", "right"),
    ("A is better", "left"),
    ("**Same good**", "both_good"),
    ("[[same bad]]", "both_bad"),
    ("They both help.\nVerdict: Same good", "both_good"),
    ("Verdict: same_bad.", "both_bad"),
    ('{"verdict": "Same bad"}', "both_bad"),
    ("[[A]]", "left"),
    ("Candidate B is better", "right"),
    ("[[Both bad]]", "both_bad"),
    ("[[tie]]", "tie"),
    ("[[Same good]]\n[[Same bad]]", None),
    ("'[[Same good]]' was my first thought", None),
    ("Same", None),
    ("[[C]]", None),
    ("[[A is better than B]]", None),
]


@pytest.mark.parametrize(("reply", "expected"), FOUR)
def test_four_way_verdicts(reply: str, expected: str | None) -> None:
    assert read_preference(reply, FOUR_WAY) == expected


@pytest.mark.parametrize(
    "reply", ["[[Same good]]", "[[A is better]]", "A is better", "Verdict: same bad", "[[both good]]"]
)
def test_judges_of_three_verdicts_do_not_read_the_other_four(reply: str) -> None:
    assert read_verdict(reply) is None


def test_a_pattern_reads_verdicts_of_several_words() -> None:
    pattern = re.compile(r"Result: (.*)$")
    assert read_preference("Result: SAME  bad", FOUR_WAY, pattern) == "both_bad"
    assert read_preference("Result: SAME  bad", THREE_WAY, pattern) is None

"""The miniature's world: true answers, a split that nothing leaks through, fixed beliefs, counterfactual rows."""

import random
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.miniature.data import candidate_rows, fuser_rows
from llm_blender_ray.pipelines.miniature.facts import CAPITALS, SORTED_WORDS
from llm_blender_ray.pipelines.miniature.tokenizer import build_tokenizer, world_words
from llm_blender_ray.pipelines.miniature.world import (
    COVERAGE,
    INSTRUCTIONS,
    LLM_NAMES,
    SKILLS,
    SORT,
    TABLES,
    Beliefs,
    Question,
    Task,
    random_question,
    random_tasks,
)
from llm_blender_ray.pipelines.quality.metrics import numbered_parts, parts_right

seeds = st.integers(0, 2**32)


@cache
def beliefs_of(llm: str) -> Beliefs:
    return Beliefs(llm, 0)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    rng = random.Random(draw(seeds))
    return next(random_tasks(rng, heldout=draw(st.booleans())))


def test_tables_have_unique_answers() -> None:
    for table in TABLES.values():
        assert len(table) == 40
        assert len(set(table.values())) == 40
    assert list(SORTED_WORDS) == sorted(set(SORTED_WORDS))


def test_questions_read_and_are_answered_as_expected() -> None:
    task = Task(
        INSTRUCTIONS[0],
        (Question("capital of", ("France",)), Question(SORT, ("velvet", "acorn", "wagon"))),
    )
    assert task.input == "1) capital of France 2) sort velvet acorn wagon"
    assert task.output == "1) Paris 2) acorn velvet wagon"


@given(tasks())
def test_a_task_has_distinct_skills_and_its_reference_is_all_right(task: Task) -> None:
    assert len({question.skill for question in task.questions}) == 3
    assert parts_right(task.output, task.output) == 1.0
    assert len(numbered_parts(task.input) or ()) == 3


@given(tasks(), st.randoms(use_true_random=False), st.sampled_from(INSTRUCTIONS))
def test_the_split_looks_through_order_and_wording(task: Task, rng: random.Random, instruction: str) -> None:
    questions = [replace(q, keys=tuple(rng.sample(q.keys, len(q.keys)))) for q in task.questions]
    rng.shuffle(questions)
    assert Task(instruction, tuple(questions)).heldout == task.heldout


def test_a_tenth_is_held_out() -> None:
    rng = random.Random(0)
    drawn = [Task(INSTRUCTIONS[0], tuple(random_question(skill, rng) for skill in SKILLS[:3])) for _ in range(4000)]
    assert 0.08 < sum(task.heldout for task in drawn) / len(drawn) < 0.12


@pytest.mark.parametrize("llm", LLM_NAMES)
def test_an_llm_knows_as_much_as_its_coverage_says(llm: str) -> None:
    beliefs = Beliefs(llm, seed=3)
    rng = random.Random(0)
    for skill, coverage in zip(SKILLS, COVERAGE[llm], strict=True):
        if skill == SORT:
            asked = [random_question(SORT, rng) for _ in range(2000)]
            coverage = max(coverage, 1 / 6)  # by luck
        else:
            asked = [Question(skill, (key,)) for key in TABLES[skill]]
        known = sum(beliefs.answer(question) == question.answer for question in asked) / len(asked)
        assert known == pytest.approx(coverage, abs=0.12 if skill == SORT else 0.026)


def test_beliefs_are_fixed_by_seed_and_name() -> None:
    asked = [Question("capital of", (key,)) for key in CAPITALS]

    def told(llm: str, seed: int) -> list[str]:
        return [Beliefs(llm, seed).answer(question) for question in asked]

    assert told("rowan", 0) == told("rowan", 0)
    assert told("rowan", 0) != told("rowan", 1)
    assert told("rowan", 0) != told("birch", 0)


@given(tasks())
def test_wrong_answers_are_of_the_right_kind(task: Task) -> None:
    for llm in LLM_NAMES:
        answers = numbered_parts(beliefs_of(llm).answers(task)) or []
        for question, answer in zip(task.questions, answers, strict=True):
            if question.skill == SORT:
                assert sorted(answer.split()) == sorted(question.keys)
            else:
                assert answer in TABLES[question.skill].values()


@given(seeds)
def test_counterfactual_rows_keep_what_is_right_and_who_agrees(seed: int) -> None:
    rng = random.Random(seed)
    drawn = list(islice(random_tasks(rng, heldout=False), 3))
    answers = {llm: [beliefs_of(llm).answers(task) for task in drawn] for llm in LLM_NAMES}
    rows = candidate_rows([task.to_row() for task in drawn], answers)
    told = list(fuser_rows(drawn, rows, rng, top_k=4, copies=2))
    assert [row["id"] for row in told] == [row["id"] for row in rows] * 2
    for row, original in zip(told, rows * 2, strict=True):
        assert len(row["candidates"]) == 4
        scores = [candidate["scores"]["parts"] for candidate in row["candidates"]]
        assert scores == sorted(scores, reverse=True)
        texts = {candidate["model"]: candidate["text"] for candidate in original["candidates"]}
        for candidate in row["candidates"]:
            assert parts_right(row["output"], candidate["text"]) == pytest.approx(candidate["scores"]["parts"])
        here = [numbered_parts(candidate["text"]) for candidate in row["candidates"]]
        before = [numbered_parts(texts[candidate["model"]]) for candidate in row["candidates"]]
        for part in range(3):
            assert [a[part] == b[part] for a in here for b in here] == [
                a[part] == b[part] for a in before for b in before
            ]


def test_half_of_the_parts_are_counterfactual() -> None:
    rng = random.Random(0)
    drawn = list(islice(random_tasks(rng, heldout=False), 400))
    answers = {llm: [beliefs_of(llm).answers(task) for task in drawn] for llm in LLM_NAMES}
    rows = candidate_rows([task.to_row() for task in drawn], answers)
    told = list(fuser_rows(drawn, rows, rng, top_k=3, copies=1))
    kept = sum(parts_right(task.output, row["output"]) for row, task in zip(told, drawn, strict=True)) / len(drawn)
    assert 0.45 < kept < 0.55


def test_every_word_of_an_answer_is_one_token_and_any_text_comes_back() -> None:
    tokenizer = build_tokenizer(["<a>", "<b>"])
    assert [tokenizer.token_to_id(token) for token in ("<a>", "<b>")] == [0, 1]
    assert all(len(tokenizer.encode(f" {word}").ids) == 1 for word in world_words())
    text = "Überall, 東京 🎈\n\tx=1;"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text

"""Strengths against odds worked out by hand, against another implementation, and in simulation."""

import math

import numpy as np
import pytest

from llm_blender_ray.pipelines.quality.bradley_terry import fit_controlled, fit_strengths
from llm_blender_ray.pipelines.quality.judgements import RANKER_CONTESTANT, Outcome
from llm_blender_ray.pipelines.quality.outcome_table import OutcomeRecorder, OutcomeTable, count_style


def table(*outcomes, with_style=False):
    """Each outcome of a row of its own: (left, right, preferred), and the two texts."""
    recorder = OutcomeRecorder(with_style=with_style)
    for at, (left, right, preferred, *texts) in enumerate(outcomes):
        recorder.add(at, Outcome(str(at), "j", left, right, preferred, *texts))
    return recorder.table()


def lead(strengths, one, other):
    return strengths.values[one] - strengths.values[other]


def test_three_wins_to_one_are_odds_of_three() -> None:
    found = fit_strengths(table(*[("a", "b", "left")] * 2, ("b", "a", "right"), ("a", "b", "right")), resamples=10)
    assert list(found.values) == ["a", "b"]
    assert lead(found, "a", "b") == pytest.approx(math.log(3), abs=1e-4)
    assert sum(found.values.values()) == pytest.approx(0)


def test_a_tie_is_half_a_win_and_both_bad_is_a_tie() -> None:
    two_wins = [("a", "b", "left")] * 2
    found = fit_strengths(table(*two_wins, ("a", "b", "tie"), ("b", "a", "both_bad")), resamples=10)
    assert lead(found, "a", "b") == pytest.approx(math.log(3), abs=1e-4)


def test_a_probability_is_a_share_of_a_win() -> None:
    recorder = OutcomeRecorder()
    for at, probability in enumerate((0.6, 0.9)):
        recorder.add(at, Outcome(str(at), "j", "a", "b", "left", probability=probability))
    assert lead(fit_strengths(recorder.table(), resamples=10), "a", "b") == pytest.approx(math.log(3), abs=1e-4)


def test_a_chain_of_odds_adds_up() -> None:
    """b beats c with odds 2, a beats b with odds 3: a and c never met."""
    found = fit_strengths(
        table(
            *[("a", "b", "left")] * 3,
            ("a", "b", "right"),
            *[("b", "c", "left")] * 2,
            ("b", "c", "right"),
        ),
        resamples=10,
    )
    assert lead(found, "a", "c") == pytest.approx(math.log(6), abs=1e-4)


def simulated(strengths, prompts, per_prompt, rng):
    """Outcomes with known strengths: the expected share of a win is the model's; some are ties."""
    names = [f"m{i}" for i in range(len(strengths))]
    rows = []
    for prompt in range(prompts):
        for _ in range(per_prompt):
            i, j = rng.choice(len(strengths), 2, replace=False)
            share = 1 / (1 + math.exp(strengths[j] - strengths[i]))
            tie, drawn = min(share, 1 - share) / 3, rng.random()
            rows.append((prompt, i, j, 1.0 if drawn < share - tie / 2 else 0.5 if drawn < share + tie / 2 else 0.0))
    prompt, left, right, shares = zip(*rows, strict=True)
    return OutcomeTable(tuple(names), np.array(prompt), np.array(left), np.array(right), np.array(shares))


def test_the_fit_is_that_of_another_implementation() -> None:
    evalica = pytest.importorskip("evalica")
    outcomes = simulated(np.linspace(1, -1, 6), 200, 4, np.random.default_rng(0))
    found = fit_strengths(outcomes, resamples=2)
    winner = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}
    scores = evalica.bradley_terry(
        [outcomes.names[at] for at in outcomes.left],
        [outcomes.names[at] for at in outcomes.right],
        [winner[share] for share in outcomes.shares],
        tolerance=1e-12,
        limit=10_000,
    ).scores
    logs = np.log(scores) - np.log(scores).mean()
    assert found.values == pytest.approx({name: logs[name] for name in found.values}, abs=1e-4)


def test_intervals_hold_known_strengths() -> None:
    """The small form of `pipelines.bench.coverage`: of 25 x 3 intervals, 90% or more hold the truth, not all."""
    truth, rng = np.array([0.7, 0.0, -0.7]), np.random.default_rng(1)
    hits = 0
    for seed in range(25):
        found = fit_strengths(simulated(truth, 60, 2, rng), resamples=50, seed=seed)
        for at, strength in enumerate(truth):
            low, high = found.interval(f"m{at}")
            hits += low <= strength <= high
    assert 68 <= hits < 75


def test_the_interval_of_one_that_hardly_ever_wins_holds_its_strength() -> None:
    """A judge's probabilities for answers far below the reference, as of AlpacaEval."""
    recorder = OutcomeRecorder()
    for at in range(100):
        for name, probability in (("weak", 1e-4), ("fair", 0.02 + 0.1 * (at % 7 == 0))):
            recorder.add(at, Outcome(str(at), "j", name, "reference", "right", probability=probability))
    found = fit_strengths(recorder.table())
    for name, strength in found.values.items():
        low, high = found.interval(name)
        assert low <= strength <= high, name


def test_outcomes_of_one_prompt_are_not_more_evidence() -> None:
    """25 equal outcomes on each of 40 prompts have the interval of 40 outcomes."""
    sides = ["left" if at % 4 else "right" for at in range(40)]
    once = fit_strengths(table(*(("a", "b", side) for side in sides)), resamples=300)
    recorder = OutcomeRecorder()
    for at, side in enumerate(sides):
        for _ in range(25):
            recorder.add(at, Outcome(str(at), "j", "a", "b", side))
    often = fit_strengths(recorder.table(), resamples=300)
    assert often.interval("a", "b") == pytest.approx(once.interval("a", "b"), abs=0.1)


def test_who_only_won_or_never_met_the_others_has_no_strength() -> None:
    even = [("a", "b", "left"), ("a", "b", "right")]
    found = fit_strengths(table(*even, ("a", "best", "right"), ("far", "away", "tie")), resamples=10)
    assert (list(found.values), found.without) == (["a", "b"], ("best", "far", "away"))
    assert fit_strengths(table(("a", "b", "left")), resamples=10).values == {}


def test_the_rankers_choice_changes_nobody_elses_strength() -> None:
    plain = [("a", "b", "left"), ("b", "a", "left"), ("a", "b", "left"), ("b", "a", "tie")]
    alone = fit_strengths(table(*plain), resamples=10)
    chosen = [(RANKER_CONTESTANT, "b", "left"), (RANKER_CONTESTANT, "b", "right"), (RANKER_CONTESTANT, "b", "left")]
    found = fit_strengths(table(*plain, *chosen), resamples=10)
    assert [found.values[name] for name in "ab"] == pytest.approx([alone.values[name] for name in "ab"])
    assert lead(found, RANKER_CONTESTANT, "b") == pytest.approx(math.log(2), abs=1e-4)


def test_a_judge_of_lengths_sees_no_difference_at_equal_length() -> None:
    """The judge takes the longer answer in 3 of 4 cases; `long` mostly writes longer answers, and is no better."""
    rng = np.random.default_rng(2)
    outcomes = []
    for _ in range(400):
        longer = rng.random() < 0.8
        texts = ("x" * 200, "x" * 100) if longer else ("x" * 100, "x" * 200)
        takes_longer = rng.random() < 0.75
        outcomes.append(("long", "short", "left" if takes_longer == longer else "right", *texts))
    outcomes = table(*outcomes, with_style=True)
    plain, controlled = fit_strengths(outcomes, resamples=50), fit_controlled(outcomes, "length")
    assert plain.interval("long", "short")[0] > 0.2
    low, high = controlled.interval("long", "short")
    assert low < 0 < high
    effect, half = controlled.effects["length"]
    assert effect - half > 0.5
    assert fit_controlled(outcomes, "style").effects.keys() == {"length"}  # nothing else varies


def test_one_prompt_has_no_interval_and_no_strength() -> None:
    recorder = OutcomeRecorder(with_style=True)
    for side in ("left", "right", "left"):
        recorder.add(0, Outcome("0", "j", "a", "b", side, "short", "longer"))
    assert fit_strengths(recorder.table(), resamples=10).values == {}
    assert fit_controlled(recorder.table(), "length").values == {}


def test_markdown_is_counted() -> None:
    text = "# One\n\nSome **bold** and __more__.\n\n- a\n* b\n1. c\n## Two"
    assert count_style(text) == (len(text), 2, 2, 3)
    assert count_style("plain") == (5, 0, 0, 0)

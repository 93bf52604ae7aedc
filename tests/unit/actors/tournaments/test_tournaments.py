"""Tournaments as pure logic: what each strategy asks, what it promises, and what follows from any answers."""

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from paths import GOLDEN

from llm_blender_ray.actors.errors import RowError
from llm_blender_ray.actors.records import Comparison, Ranking
from llm_blender_ray.actors.tournaments import Pair, Tournament, max_comparisons, tournament
from llm_blender_ray.configs.strategies import (
    Bubble,
    Focus,
    Full,
    Knockout,
    Sparse,
    SparseRefine,
    Strategy,
    Swiss,
    ToReference,
)

CASES_OF_ORIGINAL = json.loads((GOLDEN / "pairranker.json").read_text())
CASES = [case for case in CASES_OF_ORIGINAL["cases"] if "error" not in case]

Logit = Callable[[str, str], float]
TEXTS = st.text("abcdefgh", min_size=1, max_size=3)
KEYS = st.lists(TEXTS | st.none(), max_size=10)
FIELDS = st.dictionaries(TEXTS, st.integers(-4000, 4000).map(lambda q: q / 1000), max_size=11).filter(
    lambda field: len(set(field.values())) == len(field)  # no ties, so that there is one right order
)

KINDS = st.one_of(
    st.builds(Full),
    st.builds(Sparse, degree=st.sampled_from([2, 4, 6])),
    st.builds(SparseRefine, degree=st.sampled_from([2, 4]), leaders=st.none() | st.integers(4, 6)),
    st.builds(
        Focus, rounds=st.integers(1, 4), width=st.floats(0.1, 2), confidence=st.none() | st.floats(0.5, 0.99)
    ),
    st.builds(Swiss, rounds=st.integers(1, 6), confidence=st.none() | st.floats(0.5, 0.99)),
    st.builds(Knockout),
    st.builds(Bubble, passes=st.none() | st.integers(1, 4)),
    st.builds(ToReference, reference=st.sampled_from(["longest", "shortest", "median", "first", "last"])),
)


@st.composite
def any_settings(draw: st.DrawFn) -> Strategy:
    changes = {
        "orders": draw(st.sampled_from(["both", "one"])),
        "aggregation": draw(
            st.sampled_from(["max-logits", "max-wins", "borda", "least-squares", "bradley-terry"]),
        ),
        "budget": draw(st.none() | st.integers(1, 60)),
        "seed": draw(st.integers(0, 3)),
    }
    return draw(KINDS).model_copy(update=changes)


def answers(keys: Sequence[str | None], asked: list[Pair], logit: Logit) -> list[Comparison]:
    return [Comparison(i, j, logit(keys[i] or "", keys[j] or "")) for i, j in asked]


def play(settings: Strategy, keys: Sequence[str | None], logit: Logit, **options: object) -> tuple[Ranking, int]:
    """The ranking at the end, and the rounds it took."""
    game = tournament(settings, keys, **options)  # type: ignore[arg-type]
    rounds = 0
    while asked := game.ask():
        game.tell(answers(keys, asked, logit))
        rounds += 1
    return game.ranking(), rounds


def noise(seed: int) -> Logit:
    """Logits without any rhyme, the same in every process."""
    return lambda a, b: (
        (sum(ord(c) * 31**n for n, c in enumerate(f"{seed}{a}|{b}")) * 2654435761 % 4001 - 2000) / 500
    )


def by_key(keys: Sequence[str | None], ranking: Ranking) -> dict[str | None, float | None]:
    return dict(zip(keys, ranking.scores, strict=True))


# What is promised


@pytest.mark.parametrize(
    "settings",
    [
        Full(),
        Full(orders="one"),
        Full(aggregation="least-squares"),
        Full(aggregation="bradley-terry"),
        Sparse(degree=2),
        Sparse(degree=4, orders="one"),
        SparseRefine(degree=2),
        SparseRefine(orders="both"),
        SparseRefine(leaders=2),
        Focus(),
        Focus(degree=2, confidence=None),
        Focus(orders="both"),
        Swiss(rounds=4),
        Swiss(rounds=6, confidence=0.9),
        Knockout(),
        Bubble(),
        Bubble(passes=5),
        ToReference(reference="median"),
    ],
    ids=str,
)
@given(field=FIELDS, bias=st.floats(-2, 2), top_k=st.integers(1, 4))
def test_without_noise_the_top_k_is_right_whatever_the_position_bias(
    settings: Strategy, field: dict[str, float], bias: float, top_k: int
) -> None:
    if len(field) == 2 and isinstance(settings, Full | Sparse) and settings.orders == "one":
        bias = 0.0  # one logit can't tell the bias from the strength
    ranking, _ = play(settings, list(field), lambda a, b: field[a] - field[b] + bias, top_k=top_k)
    best = sorted(field, key=lambda key: -field[key])
    assert [list(field)[i] for i in ranking.order[:top_k]] == best[:top_k]


@pytest.mark.parametrize("settings", [Knockout(), Bubble(), Bubble(passes=10)], ids=str)
@given(field=FIELDS, sizes=st.integers(0, 99), top_k=st.none() | st.integers(1, 4))
def test_who_is_better_is_all_that_an_order_needs(
    settings: Strategy, field: dict[str, float], sizes: int, top_k: int | None
) -> None:
    def logit(a: str, b: str) -> float:
        return (1.0 if field[a] > field[b] else -1.0) * (2.5 + abs(noise(sizes)(min(a, b), max(a, b)))) + 2.0

    ranking, _ = play(settings, list(field), logit, top_k=top_k)
    best = sorted(field, key=lambda key: -field[key])
    assert [list(field)[i] for i in ranking.order[:top_k]] == best[:top_k]


@given(any_settings(), KEYS, st.integers(0, 9), st.none() | st.integers(1, 4), st.booleans())
def test_the_promise_and_the_budget_are_kept(
    settings: Strategy, keys: list[str | None], seed: int, top_k: int | None, symmetric: bool
) -> None:
    distinct = [key for key in dict.fromkeys(keys) if key is not None]
    ranking, _ = play(settings, distinct, noise(seed), top_k=top_k, symmetric=symmetric)
    assert ranking.comparisons <= max_comparisons(settings, len(distinct), top_k, symmetric)
    ranking, _ = play(settings, keys, noise(seed), top_k=top_k, symmetric=symmetric)
    assert ranking.comparisons <= (settings.budget or 10**6)


@pytest.mark.parametrize(
    ("settings", "forwards", "rounds"),
    [
        (Full(), 110, 1),
        (Full(orders="one"), 55, 1),
        (Sparse(), 66, 1),
        (SparseRefine(), 42, 2),
        (SparseRefine(orders="both"), 64, 2),
        (Focus(), 50, 3),
        (Focus(orders="both"), 72, 3),
        (Swiss(), 50, 5),
        (Knockout(), 34, 10),
        (Bubble(), 54, 12),
        (ToReference(), 20, 1),
    ],
    ids=str,
)
def test_what_eleven_candidates_cost_for_a_top_three(settings: Strategy, forwards: int, rounds: int) -> None:
    assert max_comparisons(settings, 11, 3, False) == forwards
    for seed in range(20):
        assert play(settings, list("abcdefghijk"), noise(seed), top_k=3)[1] <= rounds


# What any answers lead to


@given(any_settings(), KEYS, st.integers(0, 9), st.booleans())
def test_a_ranking_is_consistent_whatever_is_told(
    settings: Strategy, keys: list[str | None], seed: int, symmetric: bool
) -> None:
    present = [i for i, key in enumerate(keys) if key is not None]
    game = tournament(settings, keys, top_k=3, symmetric=symmetric)
    told: dict[tuple[str | None, str | None], float] = {}
    comparisons = 0
    while True:
        ranking = game.ranking()
        assert sorted(ranking.order) == present
        assert [i for i, score in enumerate(ranking.scores) if score is not None] == present
        falling = [ranking.scores[i] or 0.0 for i in ranking.order]
        assert falling == sorted(falling, reverse=True)
        for i in present:
            for j in present:
                if keys[i] == keys[j]:
                    assert ranking.scores[i] == ranking.scores[j]
                assert ranking.logits[i][j] == (None if i == j else told.get((keys[i], keys[j])))
        assert ranking.comparisons == comparisons
        asked = game.ask()
        if not asked:
            break
        for comparison in answers(keys, asked, noise(seed)):
            left, right = keys[comparison.left], keys[comparison.right]
            assert left is not None and right is not None and comparison.left != comparison.right
            assert (left, right) not in told
            told[left, right] = comparison.logit
            if symmetric:
                told[right, left] = -comparison.logit
            comparisons += 1
            game.tell([comparison])


@given(any_settings(), KEYS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_scores_follow_the_candidate_not_its_place(
    settings: Strategy, keys: list[str | None], seed: int, random: object
) -> None:
    if isinstance(settings, ToReference):  # the first, or the first of several longest, does go by place
        assume(settings.reference not in ("first", "last"))
        keys = list({len(key or ""): key for key in keys}.values())
    shuffled = random.sample(keys, len(keys))  # type: ignore[attr-defined]
    one, _ = play(settings, keys, noise(seed), top_k=3)
    other, _ = play(settings, shuffled, noise(seed), top_k=3)
    assert by_key(keys, one) == by_key(shuffled, other)
    assert one.comparisons == other.comparisons


def _biased(a: str, b: str) -> float:
    return 1.0


def _cyclic(a: str, b: str) -> float:
    return 1.0 if (len(a) * 7 + ord(a[:1] or "a")) % 3 == (len(b) * 7 + ord(b[:1] or "a") + 1) % 3 else -1.0


SCORERS: dict[str, Logit] = {
    "always left": _biased,
    "always a tie": lambda a, b: 0.0,
    "in a circle": _cyclic,
    "in few steps": lambda a, b: float(len(a) - len(b)),
}


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
@given(
    settings=any_settings(),
    field=st.lists(st.tuples(TEXTS | st.none(), st.sampled_from("mnop")), max_size=9, unique=True),
    random=st.randoms(use_true_random=False),
    symmetric=st.booleans(),
)
def test_the_order_of_the_candidates_decides_nothing(
    scorer: Logit,
    settings: Strategy,
    field: list[tuple[str | None, str]],
    random: object,
    symmetric: bool,
) -> None:
    """Texts that a scorer can't tell apart, and equal texts of several models, go by the draw."""
    if isinstance(settings, ToReference):
        assume(settings.reference not in ("first", "last"))

    def ranked(field: list[tuple[str | None, str]]) -> tuple[Ranking, list[tuple[str | None, str]]]:
        keys = [key for key, _ in field]
        ranking, _ = play(
            settings, keys, scorer, top_k=3, symmetric=symmetric, labels=[model for _, model in field]
        )
        return ranking, [field[i] for i in ranking.order]

    places = random.sample(range(len(field)), len(field))  # type: ignore[attr-defined]
    (one, order), (other, turned) = ranked(field), ranked([field[i] for i in places])
    assert order == turned
    assert [one.scores[i] for i in places] == list(other.scores)
    assert [[one.logits[i][j] for j in places] for i in places] == [list(row) for row in other.logits]


@given(any_settings(), KEYS, st.integers(0, 9), st.sampled_from([2, 3, 7]), st.booleans())
def test_comparisons_that_are_left_out_are_not_asked_again(
    settings: Strategy, keys: list[str | None], seed: int, every: int, symmetric: bool
) -> None:
    game = tournament(settings, keys, top_k=3, symmetric=symmetric)
    asked: set[tuple[str | None, str | None]] = set()
    told = skipped = 0
    while pairs := game.ask():
        for i, j in pairs:
            texts = keys[i], keys[j]
            assert texts not in asked and not (symmetric and texts[::-1] in asked)
            asked.add(texts)
            if int(abs(noise(seed)(*map(str, texts))) * 500) % every == 0:
                game.skip([(i, j)])
                game.skip([(i, j)])  # told twice
                skipped += 1
            else:
                game.tell(answers(keys, [(i, j)], noise(seed)))
                told += 1
    ranking = game.ranking()
    assert (ranking.comparisons, ranking.unreadable) == (told, skipped)
    assert sorted(ranking.order) == [i for i, key in enumerate(keys) if key is not None]
    scores = [ranking.scores[i] or 0.0 for i in ranking.order]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("settings", [Full(), Sparse(), Focus(), Swiss(), Knockout(), Bubble()], ids=str)
def test_who_could_not_be_compared_at_all_stands_last(settings: Strategy) -> None:
    keys = ["b", "mute", "aa", "c"]
    game = tournament(settings, keys, top_k=2)
    while pairs := game.ask():
        game.skip([pair for pair in pairs if 1 in pair])
        game.tell(
            answers(keys, [pair for pair in pairs if 1 not in pair], lambda a, b: float(ord(a[0]) - ord(b[0])))
        )
    ranking = game.ranking()
    assert ranking.order == (3, 0, 2, 1)


def test_what_was_not_asked_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="not asked"):
        tournament(Full(), ["a", "b"]).skip([(0, 1)])


@given(any_settings(), KEYS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_answers_in_any_order_and_in_parts_lead_to_the_same(
    settings: Strategy, keys: list[str | None], seed: int, random: object
) -> None:
    game = tournament(settings, keys, top_k=3)
    while asked := game.ask():
        told = answers(keys, asked, noise(seed))
        random.shuffle(told)  # type: ignore[attr-defined]
        half = len(told) // 2
        game.tell(told[:half])
        assert set(game.ask()) == {(c.left, c.right) for c in told[half:]}  # what is missing, not the next round
        game.tell(told[half:] + told)  # late answers of a replica thought dead
    assert game.ranking() == play(settings, keys, noise(seed), top_k=3)[0]


@given(KEYS, st.integers(0, 9))
def test_a_symmetric_scorer_is_asked_half_and_ranked_as_in_both_orders(keys: list[str | None], seed: int) -> None:
    def logit(a: str, b: str) -> float:
        return noise(seed)(a, a) - noise(seed)(b, b)

    one, _ = play(Full(), keys, logit, symmetric=True)
    both, _ = play(Full(), keys, logit)
    distinct = len({key for key in keys if key is not None})
    assert one.comparisons == distinct * (distinct - 1) // 2
    assert [s and pytest.approx(s) for s in both.scores] == list(one.scores)


def test_a_budget_cuts_a_round_to_whole_pairs() -> None:
    for budget, expected in ((1, 0), (7, 6), (12, 12)):
        game = tournament(Full(budget=budget), list("abcdefgh"))
        asked = game.ask()
        assert len(asked) == expected
        assert {(j, i) for i, j in asked} == set(asked)
        game.tell(answers("abcdefgh", asked, noise(0)))
        assert game.ask() == []


@given(st.integers(2, 12), st.sampled_from([Full(orders="one"), Sparse(orders="one"), Swiss(orders="one")]))
def test_in_one_order_everyone_stands_on_either_side_as_often(n: int, settings: Strategy) -> None:
    game = tournament(settings, [f"text {i}" for i in range(n)])
    surplus = [0] * n
    while asked := game.ask():
        for i, j in asked:
            surplus[i] += 1
            surplus[j] -= 1
        game.tell(Comparison(i, j, noise(1)(str(i), str(j))) for i, j in asked)
    allowed = 2 if isinstance(settings, Swiss) else 1 if n % 2 == 0 else 0
    assert max(map(abs, surplus)) <= allowed


def test_another_seed_is_another_draw() -> None:
    keys = [f"text {i}" for i in range(9)]
    asked = [set(tournament(Sparse(degree=2, seed=seed), keys).ask()) for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]


# Single strategies


@pytest.mark.parametrize("settings", [Full(), SparseRefine(), Focus(), Swiss(), Knockout(), Bubble()], ids=str)
def test_two_are_compared_in_both_orders_and_one_needs_nothing(settings: Strategy) -> None:
    ranking, _ = play(settings, ["a", None, "b", "a"], noise(0), top_k=3)
    assert ranking.comparisons - isinstance(settings, Full) == 2  # full compares copies too
    assert tournament(settings, [None, "a"]).ask() == []
    assert tournament(settings, []).ask() == []


@pytest.mark.parametrize("settings", [Swiss(rounds=7), Focus(degree=2, rounds=7, width=0.5)], ids=str)
def test_rounds_end_when_the_top_k_is_sure(settings: Strategy) -> None:
    field = {f"text {i}": 2.0 * i for i in range(8)}

    def nearly(a: str, b: str) -> float:
        return field[a] - field[b] + noise(3)(a, b) / 4

    def rounds(confidence: float | None) -> int:
        return play(settings.model_copy(update={"confidence": confidence}), list(field), nearly, top_k=3)[1]

    assert rounds(None) == 7
    assert rounds(0.5) <= rounds(0.9) < 7


@pytest.mark.parametrize(
    "settings", [Swiss(rounds=7, deadline_s=5), Focus(rounds=7, width=0.5, confidence=None, deadline_s=5)], ids=str
)
def test_no_round_begins_after_the_deadline(settings: Strategy) -> None:
    now = 100.0
    game = tournament(settings, list("abcdefgh"), clock=lambda: now)
    rounds = 0
    while asked := game.ask():
        rounds += 1
        now += 2
        game.tell(answers("abcdefgh", asked, noise(0)))
    assert rounds == 3  # at 0, 2 and 4 seconds


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("longest", 2), ("shortest", 3), ("median", 4), ("first", 1), ("last", 5), (4, 4)],
)
def test_all_meet_the_reference(reference: object, expected: int) -> None:
    keys = [None, "four", "the longest", "a", "seven..", "the longes2"]
    asked = tournament(ToReference(reference=reference), keys).ask()  # type: ignore[arg-type]
    others = {1, 2, 3, 4, 5} - {expected}
    assert set(asked) == {(i, expected) for i in others} | {(expected, i) for i in others}


@pytest.mark.parametrize("place", [0, 6])
def test_a_reference_that_is_not_there_is_the_rows_error(place: int) -> None:
    with pytest.raises(RowError, match=f"no candidate {place}"):
        tournament(ToReference(reference=place), [None, "a", "b"])


def test_a_logit_that_is_no_number_is_the_rows_error() -> None:
    game: Tournament = tournament(Full(), ["a", "b"])
    with pytest.raises(RowError, match="nan"):
        game.tell(answers("ab", game.ask(), lambda a, b: float("nan")))


def test_what_was_not_asked_is_not_taken() -> None:
    game = tournament(Full(), ["a", "b", None])
    with pytest.raises(ValueError, match="not asked"):
        game.tell([Comparison(0, 1, 1.0)])
    game.ask()
    with pytest.raises(ValueError, match="not asked"):
        game.tell([Comparison(0, 2, 1.0)])


# The original's answers


def golden(settings: Strategy, case: dict) -> Ranking:
    game = tournament(settings, case["candidates"])
    while asked := game.ask():
        game.tell(Comparison(i, j, case["logits"][i][j]) for i, j in asked)
    return game.ranking()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_golden_case(number: int) -> None:
    case = CASES[number]
    ranking = golden(Full(), case)
    assert ranking.scores == pytest.approx(case["scores_max_logits"], abs=2e-6)
    assert list(ranking.order) == sorted(range(len(case["ranks"])), key=lambda i: case["ranks"][i])
    assert golden(Full(aggregation="max-wins"), case).scores == pytest.approx(case["scores_max_wins"], abs=1e-6)
    assert golden(ToReference(), case).scores == pytest.approx(case["rewards_longest"], abs=2e-6)

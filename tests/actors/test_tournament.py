"""The full tournament as pure logic: what it asks, and what follows from any answers."""

from hypothesis import given
from hypothesis import strategies as st

from actors.records import Comparison
from actors.tournament import Full

KEYS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), max_size=7)


def play(keys: list, logit) -> Full:
    tournament = Full(keys)
    while pairs := tournament.ask():
        tournament.tell([Comparison(i, j, logit(keys[i], keys[j])) for i, j in pairs])
    return tournament


@given(KEYS)
def test_every_distinct_ordered_pair_is_asked_once(keys: list) -> None:
    asked = [(keys[i], keys[j]) for i, j in Full(keys).ask()]
    present = [key for key in keys if key is not None]
    distinct = set(present)
    expected = {(a, b) for a in distinct for b in distinct if a != b or present.count(a) > 1}
    assert sorted(asked) == sorted(expected)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), unique=True, min_size=1, max_size=9), st.floats(-3, 3))
def test_noise_free_quality_is_recovered_whatever_the_position_bias(quality: list[float], bias: float) -> None:
    ranking = play(quality, lambda a, b: a - b + bias).ranking()
    assert [quality[i] for i in ranking.order] == sorted(quality, reverse=True)
    assert ranking.comparisons == len(quality) * (len(quality) - 1)


@given(KEYS, st.randoms(use_true_random=False))
def test_scores_follow_the_candidate_not_its_place(keys: list, random) -> None:
    table = {(a, b): random.uniform(-1, 1) for a in "abcde" for b in "abcde"}
    shuffled = random.sample(keys, len(keys))
    one, other = (play(k, lambda a, b: table[a, b]).ranking() for k in (keys, shuffled))
    by_key = [
        {key: round(score or 0, 9) for key, score in zip(k, r.scores, strict=True)}
        for k, r in ((keys, one), (shuffled, other))
    ]
    assert by_key[0] == by_key[1]


@given(KEYS)
def test_equal_candidates_tie_and_keep_their_order(keys: list) -> None:
    ranking = play(keys, lambda a, b: float(a > b) - 0.25).ranking()
    assert sorted(ranking.order) == [i for i, key in enumerate(keys) if key is not None]
    for i, j in zip(ranking.order, ranking.order[1:], strict=False):
        if keys[i] == keys[j]:
            assert i < j and ranking.scores[i] == ranking.scores[j]


def test_swap_tells_the_same_judgement() -> None:
    assert Comparison(0, 1, 0.5).swap() == Comparison(1, 0, -0.5)
    assert Comparison(0, 1, 0.5).swap().swap() == Comparison(0, 1, 0.5)

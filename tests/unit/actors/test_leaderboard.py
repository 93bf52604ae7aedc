"""The order of answers when nothing could be compared."""

from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.leaderboard import Leaderboard
from llm_blender_ray.actors.records import Candidate, Ranking


@given(
    texts=st.lists(st.text("ab", max_size=2) | st.none(), min_size=1, max_size=6),
    random=st.randoms(use_true_random=False),
)
def test_models_without_a_record_are_not_ordered_by_the_config(texts: list[str | None], random: object) -> None:
    candidates = [Candidate(f"m{i}", text, error=None if text else "failed") for i, text in enumerate(texts)]
    shuffled = random.sample(candidates, len(candidates))  # type: ignore[attr-defined]
    orders = [
        [some[at] for at in Leaderboard([c.model or "" for c in some]).ranking(some).order]
        for some in (candidates, shuffled)
    ]
    assert orders[0] == orders[1]


def test_no_place_in_the_config_is_the_best() -> None:
    """Of 60 rows that nobody ranks, each of three models wins a good part."""
    leaderboard = Leaderboard("abc")
    firsts = [leaderboard.ranking([Candidate(m, f"{m} says {row}") for m in "abc"]).order[0] for row in range(60)]
    assert min(firsts.count(at) for at in range(3)) >= 10


def test_the_record_goes_before_the_draw() -> None:
    leaderboard = Leaderboard("ab")
    candidates = [Candidate("a", "one"), Candidate("b", "two")]
    for _ in range(3):
        leaderboard.add(candidates, Ranking((1, 0), (0.0, 1.0), ((None, None),) * 2, 2))
    assert all(
        leaderboard.ranking([Candidate("a", f"one {i}"), Candidate("b", f"two {i}")]).order == (1, 0)
        for i in range(20)
    )

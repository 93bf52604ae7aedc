"""What stays of a text that is too long: both ends of one text, the last turn of a chat."""

from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.truncation import keep_ends, keep_last_turn

IDS = st.lists(st.integers(0, 9), max_size=30)


@given(IDS, st.integers(0, 40))
def test_keep_ends_keeps_a_prefix_and_a_suffix(ids: list[int], length: int) -> None:
    head, tail = keep_ends(ids, length)
    assert len(head) + len(tail) == min(length, len(ids))
    assert ids[: len(head)] == head and ids[len(ids) - len(tail) :] == tail
    assert len(head) - len(tail) in (0, 1) or len(ids) <= length


@given(st.lists(IDS, min_size=1, max_size=5), st.integers(0, 40))
def test_keep_last_turn_drops_the_oldest(turns: list[list[int]], length: int) -> None:
    kept = keep_last_turn(turns, length)
    everything = [i for turn in turns for i in turn]
    assert len(kept) == min(length, len(everything))
    if len(turns[-1]) <= length:
        assert kept == everything[len(everything) - len(kept) :]


def test_a_last_turn_that_is_too_long_keeps_both_ends() -> None:
    assert keep_last_turn([[1, 2], [3, 4, 5, 6, 7]], 4) == [3, 4, 6, 7]

"""Which replica gets a call."""

from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.cluster.routing import least_loaded_index


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 40))
def test_none_has_fewer_calls(calls: list[int], turn: int) -> None:
    assert calls[least_loaded_index(calls, turn)] == min(calls)


@given(st.integers(1, 20), st.integers(0, 40))
def test_calls_routed_before_the_first_counts_go_to_all_in_turns(count: int, turn: int) -> None:
    chosen = []
    for _ in range(count):
        chosen.append(least_loaded_index([0] * count, turn))
        turn = chosen[-1] + 1
    assert sorted(chosen) == list(range(count))

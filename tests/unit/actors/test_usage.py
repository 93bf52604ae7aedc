import pickle

import pyarrow as pa
import pytest

from llm_blender_ray.actors.records import USAGE_TYPE
from llm_blender_ray.actors.usage import TokenUsage, summed


def test_usages_add_field_by_field() -> None:
    one, other = TokenUsage(1, 0, 10, 4, 7, 3), TokenUsage(2, 1, 100, 40, 70, 30)
    assert one + other == TokenUsage(3, 1, 110, 44, 77, 33)
    assert (one + other).total_tokens == 110 + 77
    assert one + TokenUsage() == one


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ((10, 7), TokenUsage(1, 0, 10, 0, 7, 0)),
        ((10, 7, 4, 3), TokenUsage(1, 0, 10, 4, 7, 3)),
        ((0, 0), TokenUsage(1, 0, 0, 0, 0, 0)),
        ((None, None), TokenUsage.given_up()),
        ((10, None, 4), TokenUsage(1, 1, 10, 4, 0, 0)),
        ((10, 7, 11, 8), TokenUsage(1, 0, 10, 10, 7, 7)),
    ],
)
def test_a_call_without_all_its_counts_is_unreported(counts: tuple[int | None, ...], usage: TokenUsage) -> None:
    assert TokenUsage.of_call(*counts) == usage


def test_the_sum_with_an_unknown_usage_is_unknown() -> None:
    one = TokenUsage(1, 0, 10, 4, 7, 3)
    assert summed([one, one]) == one + one
    assert summed([]) == TokenUsage()
    assert summed([one, None]) is None


def test_a_usage_survives_arrow_and_pickle() -> None:
    one = TokenUsage(1, 0, 10, 4, 7, 3)
    column = pa.array([one.to_row(), None], USAGE_TYPE)
    assert [TokenUsage.from_row(row) for row in column.to_pylist()] == [one, None]
    assert pickle.loads(pickle.dumps(one)) == one

"""The plan: who takes what, and refusing what doesn't fit before anything starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.plan import Capacity, Plan, PlanError, place, plan, spread
from configs.schema import BlendConfig, PairRanker


def config(*models: dict, **changes: object) -> BlendConfig:
    named = [{"name": f"m{i}", "model": "org/m"} | model for i, model in enumerate(models)]
    base: dict = {"models": named, "ranker": {"model": "org/r"}, "fuser": {"model": "org/f"}}
    return BlendConfig.model_validate(base | changes)


VLLM, LOCAL = {"engine": "vllm"}, {"engine": "transformers"}
ENDPOINT = {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}


def test_what_is_left_open_is_filled_in() -> None:
    pools = plan(config(VLLM, VLLM | {"tensor_parallel_size": 4}, LOCAL, ENDPOINT), Capacity(8, 8))
    taken = {place.name: (place.num_cpus, place.num_gpus) for place in pools.placements}
    assert taken == {"m0": (0, 1), "m1": (0, 4), "m2": (0, 1), "m3": (0, 0), "ranker": (0, 1), "fuser": (0, 1)}
    assert pools.needed() == {"CPU": 1, "GPU": 8}
    pools.check()


def test_without_gpus_a_cpu_each() -> None:
    pools = plan(config(LOCAL, LOCAL | {"num_cpus": 0.5}, fuser=None), Capacity(4))
    assert [place.num_cpus for place in pools.placements] == [1, 0.5, 1]
    pools.check()


def test_a_shortage_is_named() -> None:
    pools = plan(config(VLLM, LOCAL | {"resources": {"big": 1}}), Capacity(1))
    with pytest.raises(PlanError) as caught:
        pools.check()
    assert "1 GPU needed at once, 0 there" in str(caught.value)
    assert "4 CPU needed at once, 1 there" in str(caught.value)
    assert "1 big needed at once, 0 there" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replicas_count_from_their_fewest() -> None:
    pools = plan(config(VLLM | {"replicas": {"min": 2, "max": 9}}), Capacity(2, 4))
    assert pools.needed()["GPU"] == 4
    pools.check()


@given(
    st.lists(st.sampled_from([VLLM, LOCAL, ENDPOINT]), min_size=1, max_size=12),
    st.integers(0, 16),
    st.integers(1, 16),
)
def test_a_plan_passes_exactly_when_the_sums_fit(models: list[dict], gpus: int, cpus: int) -> None:
    pools = plan(config(*models), Capacity(cpus, gpus))
    fits = (
        sum(place.num_gpus * place.replicas[0] for place in pools.placements) <= gpus
        and 1 + sum(place.num_cpus * place.replicas[0] for place in pools.placements) <= cpus
    )
    assert fits == (not pools.shortages())


class TestSpread:
    """A stage that has the cluster to itself may fill it."""

    def placed(self, capacity: Capacity, **settings: object) -> tuple[tuple[int, int], float, float]:
        ranker = PairRanker.model_validate({"model": "org/r", **settings})
        pools = Plan((place("ranker", spread(ranker, capacity), capacity),), capacity)
        pools.check()
        (pool,) = pools.placements
        return pool.replicas, pool.num_cpus, pool.num_gpus

    def test_every_gpu_ranks(self) -> None:
        assert self.placed(Capacity(16, 4)) == ((4, 4), 0, 1)
        assert self.placed(Capacity(16, 4), num_gpus=0.5) == ((1, 1), 0, 0.5)  # who says so means it

    @given(st.integers(2, 64))
    def test_every_core_ranks_and_one_is_left_to_read(self, cores: int) -> None:
        (least, most), cpus, _ = self.placed(Capacity(cores))
        assert least == most and most * cpus <= cores - 1
        assert (most == cores and cpus < 1) if cores <= 8 else (cpus == 4 and most * cpus > cores - 5)

    def test_what_the_settings_say_stays(self) -> None:
        assert self.placed(Capacity(8), replicas=3) == ((3, 3), 1, 0)
        assert self.placed(Capacity(2), replicas=2) == ((2, 2), 0.5, 0)
        assert self.placed(Capacity(8), replicas=2, num_cpus=3) == ((2, 2), 3, 0)

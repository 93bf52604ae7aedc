"""The plan: who runs with whom and takes what, and refusing what can't run before anything starts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.cluster.placement import Capacity, Node, Placement, PlanError, place
from llm_blender_ray.cluster.plan import (
    READ_CPUS,
    Plan,
    fill_cluster,
    make_plan,
    pack_waves,
    place_together,
    replaceable,
)
from llm_blender_ray.configs.schema import BlendConfig, PairRanker

VLLM, LOCAL = {"engine": "vllm"}, {"engine": "transformers"}
ENDPOINT = {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}


def config(*models: dict, **changes: Any) -> BlendConfig:
    named = [{"name": f"m{i}", "model": "org/m"} | model for i, model in enumerate(models)]
    base: dict = {"models": named, "ranker": {"model": "org/r"}, "fuser": {"model": "org/f"}}
    return BlendConfig.model_validate(base | changes)


def machine(cpus: float, gpus: float = 0, **resources: float) -> Capacity:
    return Capacity.machine(cpus, gpus, resources)


def waves(made: Plan) -> list[dict[str, int]]:
    """The replicas of every pool, wave by wave."""
    return [{pool.name: pool.replicas for pool in wave} for wave in made.waves]


def test_what_is_left_open_is_filled_in() -> None:
    made = make_plan(config(VLLM, VLLM | {"tensor_parallel_size": 4}, LOCAL, ENDPOINT), machine(8, 8))
    taken = {pool.name: (pool.num_cpus, pool.num_gpus) for pool in made.placements}
    assert taken == {"m0": (0, 1), "m1": (0, 4), "m2": (0, 1), "m3": (0, 0), "ranker": (0, 1), "fuser": (0, 1)}
    assert waves(made) == [{"m1": 1, "m0": 1, "m2": 1, "m3": 1, "ranker": 1, "fuser": 1}]


def test_without_gpus_a_cpu_each() -> None:
    made = make_plan(config(LOCAL, LOCAL | {"num_cpus": 0.5}, fuser=None), machine(4))
    assert [pool.num_cpus for pool in made.placements] == [1, 0.5, 1]
    assert len(made.waves) == 1


def test_what_does_not_fit_at_once_runs_one_after_the_other() -> None:
    made = make_plan(config(VLLM, VLLM, VLLM), machine(4, 2))
    assert waves(made) == [{"m0": 1, "m1": 1}, {"m2": 1, "ranker": 1}, {"fuser": 2}]


def test_a_ranker_and_a_fuser_can_share_a_gpu() -> None:
    half = {"num_gpus": 0.5}
    made = make_plan(
        config(VLLM, VLLM, ranker={"model": "org/r", **half}, fuser={"model": "org/f", **half}), machine(4, 3)
    )
    assert waves(made) == [{"m0": 1, "m1": 1, "ranker": 1, "fuser": 1}]


def test_what_a_wave_leaves_goes_to_replicas() -> None:
    made = make_plan(config(VLLM | {"tensor_parallel_size": 2}, VLLM, fuser=None), machine(4, 8))
    assert waves(made) == [{"m0": 2, "m1": 2, "ranker": 2}]


def test_the_settings_bound_replicas() -> None:
    models = [VLLM | {"replicas": {"min": 2, "max": 9}}, VLLM | {"replicas": 1}, VLLM | {"replicas": {"max": 2}}]
    made = make_plan(config(*models, ranker={"model": "org/r", "replicas": 1}, fuser=None), machine(2, 16))
    assert waves(made) == [{"m0": 9, "m1": 1, "m2": 2, "ranker": 1}]


def test_what_takes_no_gpu_is_not_spread() -> None:
    made = make_plan(config(LOCAL | {"num_cpus": 0.1}, ENDPOINT, fuser=None), machine(64))
    assert waves(made) == [{"m0": 1, "m1": 1, "ranker": 1}]


def test_custom_resources_count_like_gpus() -> None:
    slot = {"resources": {"slot": 1}, "num_cpus": 0}
    made = make_plan(config(LOCAL | slot, LOCAL | slot, LOCAL | slot, fuser=None), machine(4, slot=2))
    assert waves(made) == [{"m0": 1, "m1": 1}, {"m2": 2, "ranker": 1}]


def test_an_actor_is_on_one_node() -> None:
    nodes = Capacity((Node(8, 2), Node(8, 2)))
    with pytest.raises(PlanError, match=r"m0 needs 4 GPU.* has 4 GPU on 2 nodes, and an actor is on one"):
        make_plan(config(VLLM | {"tensor_parallel_size": 4}), nodes)
    with pytest.raises(PlanError, match=r"m0 needs 4 GPU.* has 4 GPU on 2 nodes, and an actor is on one \("):
        make_plan(config(LOCAL | {"num_gpus": 4}), nodes)
    large = VLLM | {"tensor_parallel_size": 2}
    made = make_plan(
        config(VLLM, VLLM, large, fuser=None, ranker={"model": "r", "num_cpus": 1, "num_gpus": 0}), nodes
    )
    assert waves(made) == [{"m2": 1, "m0": 1, "m1": 1, "ranker": 1}]


STAGES = VLLM | {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}


def test_a_replica_larger_than_any_node_is_split_by_pipeline_stages() -> None:
    nodes = Capacity((Node(8), Node(8, 4), Node(8, 4), Node(8, 4), Node(8, 4)))
    small = {"model": "r", "device": "cpu"}
    made = make_plan(config(STAGES, VLLM, fuser=None, ranker=small), nodes)
    assert waves(made) == [{"m0": 1, "m1": 8, "ranker": 1}]  # two replicas of m0 would leave no room for m1
    assert made.placements[0].node_gpus == (4, 4)
    three = VLLM | {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}
    (pool, *_) = make_plan(config(three, fuser=None, ranker=small), nodes).placements
    assert (pool.node_gpus, pool.replicas) == ((4, 2), 2)  # a third has too few GPUs


def test_what_one_node_holds_stays_on_it() -> None:
    nodes = Capacity((Node(8, 8), Node(8, 4)))
    alone = place("m0", config(STAGES).models[0], Capacity.machine(8, 8))
    assert place("m0", config(STAGES).models[0], nodes) == alone
    assert (alone.node_gpus, alone.bundles(), alone.ray_options()) == ((), [], {"num_cpus": 0, "num_gpus": 8})


def test_a_group_has_a_bundle_for_each_gpu_and_the_actor_in_the_first() -> None:
    nodes = Capacity((Node(8, 2, {"slot": 1}, "H100"), Node(8, 2, {"slot": 1}, "H100"), Node(8, 4, {}, "L4")))
    asks = {"num_cpus": 2, "resources": {"slot": 1}, "accelerator_type": "H100"}
    model = VLLM | {"tensor_parallel_size": 2, "pipeline_parallel_size": 2} | asks
    pool = place("m0", config(model).models[0], nodes)
    gpu = {"GPU": 1, "accelerator_type:H100": 0.001}
    assert pool.bundles() == [gpu | {"CPU": 2, "slot": 1}, gpu, gpu, gpu]
    assert pool.ray_options() == {"num_cpus": 2, "num_gpus": 0, "resources": {"slot": 1}}
    assert pool.amounts() == {"CPU": 2, "GPU": 4, "slot": 1}


@pytest.mark.parametrize(
    ("model", "have", "why"),
    [
        (
            STAGES,
            [Node(8, 4)],
            r"needs 8 GPU.* has 4 GPU; nodes of a larger cluster can share its 2 pipeline stages \(set",
        ),
        (
            STAGES,
            [Node(8, 6), Node(8, 3)],
            "has 9 GPU on 2 nodes, and each of its 2 pipeline stages, 4 GPU, is on one",
        ),
        (
            STAGES,
            [Node(8, 4, accelerator="L4"), Node(8, 4, accelerator="H100"), Node(8, accelerator="A10G")],
            "8 GPU on 3 nodes with GPUs of different types, H100 and L4: set its accelerator_type to one",
        ),
        (
            STAGES | {"accelerator_type": "L4"},
            [Node(8, 4, accelerator="L4"), Node(8, 4, accelerator="H100")],
            "needs 8 GPU.* L4 nodes have 4 GPU; nodes of a larger cluster can share",
        ),
        (
            STAGES | {"num_gpus": 9},
            [Node(8, 8), Node(8, 8)],
            r"needs 9 GPU.* has 16 GPU on 2 nodes, and an actor is on one \(",
        ),
        (STAGES | {"replicas": 2}, [Node(8, 4)] * 3, "needs 2 actors with 8 GPU.* has 12 GPU on 3 nodes, and each"),
        (
            VLLM | {"tensor_parallel_size": 8},
            [Node(8, 4), Node(8, 4)],
            "has 8 GPU on 2 nodes, and an actor is on one, or, with pipeline_parallel_size, on several",
        ),
    ],
)
def test_why_nodes_cannot_share_a_replica(model: dict, have: list[Node], why: str) -> None:
    with pytest.raises(PlanError, match=f"^m0 {why}" if why.startswith("needs") else why) as caught:
        make_plan(config(model), Capacity(tuple(have)))
    assert "\n" not in str(caught.value)


def test_models_run_on_the_accelerators_they_name() -> None:
    nodes = Capacity((Node(8, 4, accelerator="L4"), Node(8, 2, accelerator="H100"), Node(4)))
    large = VLLM | {"accelerator_type": "H100", "tensor_parallel_size": 2}
    made = make_plan(config(VLLM, large, large, fuser=None, ranker={"model": "r", "device": "cpu"}), nodes)
    assert waves(made) == [{"m1": 1, "m0": 4}, {"m2": 1, "ranker": 1}]
    with pytest.raises(PlanError, match="m0 needs a node of accelerator type B200: the cluster has none"):
        make_plan(config(VLLM | {"accelerator_type": "B200"}), nodes)


@pytest.mark.parametrize(
    ("models", "have", "why"),
    [
        ([VLLM], machine(2), "m0 needs 1 GPU, beside 1 CPU for reading: the cluster has 0 GPU "),
        ([LOCAL], machine(1), "m0 needs 1 CPU, beside 1 CPU for reading: the cluster has 1 CPU "),
        ([LOCAL | {"resources": {"big": 1}}], machine(4), "m0 needs 1 CPU, 1 big, .* has 4 CPU, 0 big "),
        ([VLLM | {"replicas": 3}], machine(4, 2), "m0 needs 3 actors with 1 GPU, .* has 2 GPU "),
        ([VLLM], machine(0, 4), "the cluster has no CPU for reading and writing"),
    ],
)
def test_the_impossible_is_refused_in_one_line(models: list[dict], have: Capacity, why: str) -> None:
    with pytest.raises(PlanError, match=why) as caught:
        make_plan(config(*models), have)
    assert "\n" not in str(caught.value)


nodes = st.builds(Node, st.integers(0, 16).map(float), st.integers(0, 8).map(float))
models = st.one_of(
    st.builds(lambda tp: VLLM | {"tensor_parallel_size": tp}, st.sampled_from([1, 1, 2, 4])),
    st.just(LOCAL),
    st.just(LOCAL | {"num_gpus": 0.5}),
    st.just(ENDPOINT),
    st.builds(lambda n: VLLM | {"replicas": n}, st.integers(1, 3)),
    st.just(VLLM | {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}),
)


def fits(pools: tuple[Placement, ...], capacity: Capacity) -> bool:
    """Whether actors and pipeline stages can be on the nodes in some way: tried out, largest first."""
    each = [
        (part["GPU"], part.get("CPU", 0.0))
        for p in pools
        for _ in range(p.replicas)
        for part in (p.pipeline_amounts() if p.node_gpus else [p.amounts()])
    ]
    actors = sorted(each)

    def search(left: list[tuple[float, float]], free: tuple[tuple[float, float], ...]) -> bool:
        if not left:
            return any(cpus >= READ_CPUS for _, cpus in free)
        gpus, cpus = left[-1]
        tried = set()
        for at, (g, c) in enumerate(free):
            if g >= gpus and c >= cpus and (g, c) not in tried:
                tried.add((g, c))
                if search(left[:-1], (*free[:at], (g - gpus, c - cpus), *free[at + 1 :])):
                    return True
        return False

    return search(actors, tuple((node.gpus, node.cpus) for node in capacity.nodes))


@given(st.lists(models, min_size=1, max_size=6), st.lists(nodes, min_size=1, max_size=3))
def test_every_wave_fits_and_nothing_is_left_out(wanted: list[dict], have: list[Node]) -> None:
    capacity, blend = Capacity(tuple(have)), config(*wanted)
    try:
        made = make_plan(blend, capacity)
    except PlanError as error:
        alone = [place(m.name, m, capacity) for m in blend.models]
        alone += [place("ranker", blend.ranker, capacity), place("fuser", blend.fuser, capacity)]
        assert not all(fits((pool,), capacity) for pool in alone), error
        return
    names = [pool.name for pool in made.placements]
    assert sorted(names) == sorted([*(m.name for m in blend.models), "ranker", "fuser"])
    assert names[-2:] == ["ranker", "fuser"] or names.index("ranker") > max(
        i for i, name in enumerate(names) if name.startswith("m")
    )
    assert names[-1] == "fuser"
    for wave in made.waves:
        assert fits(wave, capacity)


class TestSpread:
    """A stage that has the cluster to itself may fill it."""

    def placed(self, capacity: Capacity, **settings: object) -> tuple[int, float, float]:
        ranker = PairRanker.model_validate({"model": "org/r", **settings})
        made = pack_waves([], [place("ranker", fill_cluster(ranker, capacity), capacity)], capacity)
        (pool,) = made.placements
        return pool.replicas, pool.num_cpus, pool.num_gpus

    def test_every_gpu_ranks(self) -> None:
        assert self.placed(machine(16, 4)) == (4, 0, 1)
        assert self.placed(machine(16, 4), num_gpus=0.5) == (8, 0, 0.5)

    @given(st.integers(2, 64))
    def test_every_core_ranks_and_one_is_left_to_read(self, cores: int) -> None:
        count, cpus, _ = self.placed(machine(cores))
        assert count * cpus <= cores - 1
        assert (count == cores and cpus < 1) if cores <= 8 else (cpus == 4 and count * cpus > cores - 5)

    def test_what_the_settings_say_stays(self) -> None:
        assert self.placed(machine(8), replicas=3) == (3, 1, 0)
        assert self.placed(machine(2), replicas=2) == (2, 0.5, 0)
        assert self.placed(machine(8), replicas=2, num_cpus=3) == (2, 3, 0)


# ---- services


def test_a_service_holds_all_its_models_at_once() -> None:
    parts = place_together(config(VLLM, VLLM | {"replicas": {"min": 2, "max": 8}}), machine(4, 5))
    assert {part.name: (part.num_gpus, part.replicas) for part in parts} == {
        "m0": (1, 1),
        "m1": (1, 2),
        "ranker": (1, 1),
        "fuser": (1, 1),
    }
    with pytest.raises(PlanError, match="fuser finds no room with the others: a service holds all"):
        place_together(config(VLLM, VLLM | {"replicas": {"min": 2, "max": 8}}), machine(4, 4))


def test_a_model_that_is_loaded_when_asked_takes_no_room() -> None:
    asleep = VLLM | {"replicas": {"min": 0, "max": 1}}
    assert len(place_together(config(VLLM, asleep, fuser=None), machine(4, 2))) == 3
    assert make_plan(config(asleep), machine(4, 1)).placements[0].replicas == 1  # in a bulk run it is


def test_a_services_gateway_has_its_room() -> None:
    serve = {"gateway": {"num_cpus": 2, "replicas": 2}}
    assert place_together(config(ENDPOINT, serve=serve, fuser=None), machine(5))
    with pytest.raises(PlanError, match="no room with the others"):
        place_together(config(ENDPOINT, serve=serve, fuser=None), machine(4))
    with pytest.raises(
        PlanError, match=r"no CPU for the gateway \(serve.gateway.num_cpus\) in addition to its models"
    ):
        place_together(config(ENDPOINT, serve=serve, fuser=None), machine(3))


def test_a_part_too_large_for_a_service_is_named() -> None:
    with pytest.raises(PlanError, match="m0 needs 4 GPU: the cluster has 2 GPU"):
        place_together(config(VLLM | {"tensor_parallel_size": 4}, fuser=None), machine(4, 2))


def test_how_much_a_replica_does_at_once() -> None:
    made = config(VLLM, LOCAL | {"max_batch_size": 7}, ENDPOINT | {"max_in_flight": 3}, {"engine": "echo"})
    assert [model.model_settings.width for model in made.models] == [256, 7, 3, 64]
    judge = config(VLLM, ranker={"kind": "judge", "llm": made.models[2].model_dump() | {"name": "j"}}).ranker
    assert judge.model_settings.width == 3
    fuser = config(VLLM, fuser={"kind": "chat", "llm": made.models[1].model_dump() | {"name": "f"}}).fuser
    assert fuser is not None and fuser.model_settings.width == 7


def test_what_an_update_can_start_before_it_stops_the_earlier_one() -> None:
    def found(capacity: Capacity, **model: object) -> frozenset[str]:
        settings = config(VLLM | model, fuser=None)
        return replaceable(settings, place_together(settings, capacity), capacity)

    assert found(machine(8, 4)) == {"gateway", "ranker", "m0"}
    assert found(machine(8, 3)) == {"gateway", "m0"}  # the largest first
    assert found(machine(8, 2)) == {"gateway"}
    assert found(machine(1, 4)) == {"ranker", "m0"}  # the only CPU is the gateway's
    assert found(machine(8, 3), replicas={"min": 1, "max": 3}) == frozenset()  # it may need the room itself

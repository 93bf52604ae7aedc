"""Kills of the fault benchmark."""

from collections import Counter

from llm_blender_ray.pipelines.bench.faults import draw_fault


def test_kills_are_drawn_over_the_whole_run() -> None:
    kills = draw_fault(seed=0, kills=10, results=300)
    assert draw_fault(seed=0, kills=10, results=300) == kills != draw_fault(seed=1, kills=10, results=300)
    assert sorted(Counter(kill.target for kill in kills).values()) == [3, 3, 4]
    assert [kill.results for kill in kills] == sorted(kill.results for kill in kills)
    assert kills[0].results < 100 and 200 < kills[-1].results < 300

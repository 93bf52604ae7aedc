"""The self-blend beside the mixed blend, on a few held-out prompts of the miniature."""

import json
from itertools import islice

import pytest

from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.miniature.data import read_data
from llm_blender_ray.pipelines.miniature.self_blend import (
    generate_answers,
    main,
    measure_self_blend,
    self_blend_table,
)

ROWS = list(islice(read_data(PRESETS / "miniature" / "heldout.jsonl"), 4))


def test_the_preset_is_the_demo_with_samples_of_one_of_its_llms() -> None:
    demo, own = (load(PRESETS / name, BlendConfig) for name in ("demo.yaml", "demo-self.yaml"))
    (model,) = own.models
    (same,) = [one for one in demo.models if one.name == model.name]
    assert model.model_copy(update={"samples": 1, "sampling": same.sampling}) == same
    assert model.samples == len(demo.models)
    assert (own.ranker, own.fuser) == (demo.ranker, demo.fuser)


def test_samples_are_candidates_and_differ_at_a_high_temperature() -> None:
    (model,) = load(PRESETS / "demo-self.yaml", BlendConfig).models
    hot = model.model_copy(update={"sampling": model.sampling.model_copy(update={"temperature": 3.0})})
    rows = generate_answers([hot], ROWS[:2])
    assert [one["model"] for one in rows[0]["candidates"]] == ["birch"] * 6
    assert len({one["text"] for one in rows[0]["candidates"]}) > 1
    assert generate_answers([hot], ROWS[:2]) == rows  # seeded


def test_lines_and_their_differences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = measure_self_blend(ROWS, [0.7], num_beams=1)
    six, samples = "6 LLMs", "6 samples of birch at temperature 0.7"
    assert list(results["lines"]) == [
        "birch alone, greedy",
        *(f"{what} of {label}" for label in (six, samples) for what in ("oracle", "best", "blend")),
    ]
    for label in (six, samples):
        assert results["lines"][f"best of {label}"]["parts"] <= results["lines"][f"oracle of {label}"]["parts"]
    assert results["lines"][f"blend of {six}"]["parts_less_mixed"] == [0, 0]
    for line in results["lines"].values():
        less = line["parts"][0] - results["lines"][f"blend of {six}"]["parts"][0]
        assert line["parts_less_mixed"][0] == pytest.approx(less, abs=2e-4)
    assert len(self_blend_table(results).splitlines()) == 8

    def measured(rows: object, temperatures: object, *, num_beams: int) -> object:
        return results

    monkeypatch.setattr("llm_blender_ray.pipelines.miniature.self_blend.measure_self_blend", measured)
    main([0.7], 4)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results

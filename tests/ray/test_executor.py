"""The bulk path gives what the reference gives, row for row, and a model that doesn't load ends it in one line."""

import asyncio
import json
from pathlib import Path

import pytest
from tiny_models import save_adapter

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.records import Prompt, read_prompt
from llm_blender_ray.cluster.placement import PlanError
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.summary import FailedRunError
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.rows.readers import read_rows

DEMO = PRESETS / "demo.yaml"
ECHO = {"name": "echo", "engine": "echo", "model": "none"}
SMALL = ["rows_per_block=4", "fuser.num_beams=2"]


def demo(*overrides: str) -> BlendConfig:
    config = load(DEMO, BlendConfig, [*SMALL, *overrides])
    return config.model_copy(update={"models": config.models[:2]})


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def prompts() -> list[dict]:
    return rows_of(PRESETS / "miniature" / "heldout.jsonl")[:6]


@pytest.fixture
def mixed(prompts: list[dict], tmp_path: Path) -> Path:
    """Prompts of all three forms, a given candidate, and bad rows in between."""
    given = {"model": "alder", "text": "1) given 2) answer", "scores": {"s": 0.5}}
    other = {"model": "somebody else", "text": "1) Rome"}
    text = f"{prompts[2]['instruction']}\n{prompts[2]['input']}"
    rows = [
        prompts[0] | {"tag": {"deep": [1, "x"]}},
        {"instruction": 7},
        prompts[1] | {"candidates": [given]},
        {"id": "as-prompt", "prompt": text},
        {"id": "as-chat", "messages": [{"role": "user", "content": text}]},
        {"id": "empty", "instruction": " "},
        prompts[3] | {"candidates": [other, given]},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "{broken"]) + "\n")
    return file


def with_adapters(config: BlendConfig, folder: Path) -> BlendConfig:
    """The last model with an adapter that draws twice, and one that has another prompt."""
    *others, last = config.models
    adapters = {
        "birch-code": {
            "path": str(save_adapter(Path(last.model), folder / "code", lora_alpha=8)),
            "sampling": {"temperature": 0.7, "seed": 3},
            "samples": 2,
        },
        "birch-law": {
            "path": str(save_adapter(Path(last.model), folder / "law", 1, lora_alpha=8)),
            "system_prompt": "Be strict.",
        },
    }
    models = [*(one.model_dump() for one in others), last.model_dump() | {"adapters": adapters}]
    return BlendConfig.model_validate(config.model_dump() | {"models": models})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("with_fuser", "rows_per_block"), [(True, 4), (False, 64)])
def test_bulk_gives_what_the_reference_gives(
    mixed: Path, tmp_path: Path, with_fuser: bool, rows_per_block: int
) -> None:
    """In two blocks, and in one, for which there is one ranker only; there with adapters of the second LLM."""
    output = tmp_path / "out.jsonl"
    settings = ["matrix=true", "ranker.replicas=2", f"rows_per_block={rows_per_block}"]
    config = demo(*settings, *([] if with_fuser else ["fuser="]))
    names = ["alder", "birch"]
    if not with_fuser:
        config, names = with_adapters(config, tmp_path), [*names, "birch-code", "birch-code", "birch-law"]
    config = config.model_copy(update={"input": str(mixed), "output": str(output), "max_error_rate": 0.5})
    summary = run_blend(config)
    given = [json.loads(line) if line.startswith('{"') else {} for line in mixed.read_text().splitlines()]
    rows = rows_of(output)
    written = summary.manifest.output
    assert (written.rows, written.errors) == (8, 3)
    assert [row["error"] is not None for row in rows] == [False, True, False, False, False, True, False, True]
    stages = {stage.name: stage for stage in summary.manifest.stages}
    assert stages.keys() == {*names, "ranker"} | ({"fuser"} if with_fuser else set())
    assert all(stages[name].rows == 8 and stages[name].asked == (5 - (name == "alder") * 2) for name in names)
    reference = Blender.local(config)
    for row, source in zip(rows, given, strict=True):
        if row["error"] is not None:
            assert row["ranking"] is None and row["fused"] is None
            continue
        blend = asyncio.run(reference.blend(read_prompt(source), read_candidates(source)))
        assert blend.error is None and blend.ranking is not None
        assert [c["text"] for c in row["candidates"]] == [c.text for c in blend.candidates]
        assert [c["completion_tokens"] for c in row["candidates"]] == [
            c.completion_tokens for c in blend.candidates
        ]
        assert tuple(row["ranking"]) == blend.ranking.order
        assert row["scores"] == pytest.approx(blend.ranking.scores, abs=1e-4)
        assert row["comparisons"] == blend.ranking.comparisons
        assert row["fused"] == blend.fused
        assert tuple(row["fused_from"]) == blend.fused_from
        for ours, theirs in zip(row["logits"], blend.ranking.logits, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    by_id = {row["id"]: row for row in rows}
    assert rows[0]["tag"] == {"deep": [1, "x"]}
    assert [c["model"] for c in by_id[given[2]["id"]]["candidates"]] == names  # not generated again
    assert by_id[given[2]["id"]]["candidates"][0]["text"] == "1) given 2) answer"
    assert by_id[given[2]["id"]]["candidates"][0]["scores"] == {"s": 0.5}
    assert len(by_id[given[6]["id"]]["candidates"]) == 1 + len(names)
    assert by_id["as-prompt"]["fused"] == by_id["as-chat"]["fused"]


@pytest.mark.usefixtures("ray_session")
def test_one_model_that_fails_leaves_the_others(prompts: list[dict], tmp_path: Path) -> None:
    """An endpoint where nothing listens: every one of its candidates has an error, every row still a blend."""
    nowhere = {
        "name": "nowhere",
        "engine": "endpoint",
        "model": "m",
        "base_url": "http://127.0.0.1:9/v1",
        "max_retries": 0,
        "max_error_rate": 1,
    }
    data = {"models": [nowhere, ECHO], "ranker": {"kind": "echo"}, "output": str(tmp_path / "o.jsonl")}
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts[:2])))
    run_blend(BlendConfig.model_validate(data | {"input": str(file)}))
    for row in rows_of(tmp_path / "o.jsonl"):
        failed, answered = row["candidates"]
        assert failed["text"] is None and failed["error"] and "\n" not in failed["error"]
        assert answered["error"] is None
        assert (row["error"], row["ranking"], row["scores"][0]) == (None, [1], None)
        assert row["fused_from"] == [1] and row["fused"] is not None

    only = BlendConfig.model_validate(data | {"models": [nowhere], "input": str(file), "max_error_rate": 0.9})
    with pytest.raises(FailedRunError, match=r"2 rows, 2 of them with an error.*max_error_rate 0\.9") as caught:
        run_blend(only, overwrite=True)
    model, hint = caught.value.details
    assert model.startswith("nowhere: no answer on 2 of 2 rows (100%): 2 x ") and "--retry-failed" in hint
    for row in rows_of(tmp_path / "o.jsonl"):
        assert row["error"].startswith("no candidate: nowhere: ")


@pytest.mark.usefixtures("ray_session")
def test_a_model_that_does_not_load_ends_the_run_in_one_line(prompts: list[dict], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(prompts[0]))
    config = BlendConfig.model_validate(
        {
            "models": [ECHO],
            "ranker": {"kind": "echo"},
            "fuser": {"model": str(tmp_path / "nothing-there"), "device": "cpu"},
            "input": str(tmp_path / "in.jsonl"),
            "output": str(tmp_path / "o.jsonl"),
        }
    )
    with pytest.raises(BlendError) as caught:
        run_blend(config)
    assert "nothing-there: no such folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.usefixtures("ray_session")
def test_more_than_the_machine_holds_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}')
    config = demo("models.1.num_gpus=1")
    config = config.model_copy(update={"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "o.jsonl")})
    with pytest.raises(PlanError, match=r"birch needs .*1 GPU, beside 1 CPU for reading: the cluster has .*0 GPU"):
        run_blend(config)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.usefixtures("ray_session")
def test_waves_give_what_one_wave_gives(tmp_path: Path) -> None:
    """Two LLMs of a CPU each on two CPUs, one of which reads; candidates stand in the config's order."""
    (tmp_path / "in.jsonl").write_text(
        "".join(f'{{"id": "{i}", "prompt": "one two three {i}"}}\n' for i in range(40))
    )

    def blended(name: str, cpus: tuple[float, float]) -> tuple[list[dict], list[tuple[str, int]]]:
        models = [
            {"name": name, "engine": "echo", "model": "none", "num_cpus": cpus, "sampling": {"max_tokens": tokens}}
            for name, tokens, cpus in (("short", 2, cpus[0]), ("long", 4, cpus[1]))
        ]
        config = {
            "models": models,
            "ranker": {"kind": "echo"},
            "rows_per_block": 16,
            "input": str(tmp_path / "in.jsonl"),
        }
        summary = run_blend(BlendConfig.model_validate(config | {"output": str(tmp_path / name)}))
        stages = [(stage.name, stage.wave) for stage in summary.manifest.stages]
        return list(read_rows(str(tmp_path / name))), stages

    at_once, stages = blended("at_once", (0, 0))
    assert stages == [("short", 1), ("long", 1), ("ranker", 1)]
    in_turns, stages = blended("in_turns", (0.9, 1))
    assert stages == [("long", 1), ("short", 2), ("ranker", 2)]
    assert in_turns == at_once
    assert [[c["text"] for c in row["candidates"]] for row in in_turns[:1]] == [["one two", "one two three 0"]]
    assert all(row["fused"] for row in in_turns)


def test_the_reference_alone(prompts: list[dict]) -> None:
    blend = asyncio.run(Blender.local(demo()).blend(Prompt("x", prompts[0]["instruction"], prompts[0]["input"])))
    assert [candidate.model for candidate in blend.candidates] == ["alder", "birch"]
    assert blend.ranking is not None and blend.ranking.comparisons in (1, 2)
    assert blend.fused

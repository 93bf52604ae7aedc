"""Keys of results: what changes them, and what leaves them as they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.stages import Generate, Rank
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import BlendConfig, EchoModel, GenFuser, Judge, PairRanker, TransformersModel
from llm_blender_ray.pipelines.bulk import keys
from llm_blender_ray.pipelines.bulk.keys import result_keys, run_identity, scorer_key


def llm(name: str, **more: Any) -> EchoModel:
    return EchoModel.model_validate({"engine": "echo", "name": name, "model": "m"} | more)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, PartSettings]:
    """Two LLMs, a ranker with weights in a local folder, and a fuser from the hub."""
    weights = tmp_path / "ranker"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"weights")
    return {
        "a": llm("a"),
        "b": llm("b"),
        "ranker": PairRanker(model=str(weights)),
        "fuser": GenFuser(model="org/fuser"),
    }


def keys_of(
    parts: dict[str, PartSettings], llms: tuple[str, ...] = ("a", "b"), prepare: str = ""
) -> dict[str, str]:
    return result_keys(parts, run_identity({}, parts)["weights"], llms, prepare)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


def test_unchanged_settings_keep_all_keys(parts: dict[str, PartSettings]) -> None:
    faster = {"ranker": parts["ranker"].model_copy(update={"num_cpus": 2.0, "batch_tokens": 64})}
    assert changed(keys_of(parts), keys_of(parts | faster)) == set()


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("a", llm("a", system_prompt="Be brief."), {"a", "ranker", "fuser"}),
        ("ranker", PairRanker(model="org/other"), {"ranker", "fuser"}),
        ("fuser", GenFuser(model="org/fuser", num_beams=1), {"fuser"}),
    ],
)
def test_a_setting_changes_its_stage_and_those_after(
    parts: dict[str, PartSettings], name: str, part: PartSettings, expected: set[str]
) -> None:
    assert changed(keys_of(parts), keys_of(parts | {name: part})) == expected


def test_the_order_of_llms_and_what_prepares_rows_are_inputs(parts: dict[str, PartSettings]) -> None:
    assert changed(keys_of(parts), keys_of(parts, ("b", "a"))) == {"ranker", "fuser"}
    assert changed(keys_of(parts), keys_of(parts, prepare="only_pairs")) == {"ranker", "fuser"}


def test_replaced_weights_change_the_stages_that_load_them(parts: dict[str, PartSettings], tmp_path: Path) -> None:
    before, described = keys_of(parts), run_identity({}, parts)
    (tmp_path / "ranker" / "model.safetensors").write_bytes(b"trained")
    assert changed(before, keys_of(parts)) == {"ranker", "fuser"}
    assert describe_changes(described, run_identity({}, parts)) == ["weights of ranker have changed"]


def test_the_same_weights_written_again_change_nothing(parts: dict[str, PartSettings], tmp_path: Path) -> None:
    before = keys_of(parts)
    shutil.move(tmp_path / "ranker", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "ranker")
    assert changed(before, keys_of(parts)) == set()


def test_weights_of_a_judge_are_those_of_its_llm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    judge = Judge(kind="judge", llm=TransformersModel(engine="transformers", name="j", model=str(tmp_path)))
    before = run_identity({}, {"ranker": judge})["weights"]
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert run_identity({}, {"ranker": judge})["weights"].keys() == before.keys() == {"ranker"}
    assert run_identity({}, {"ranker": judge})["weights"] != before


def test_a_hub_id_reads_no_file(parts: dict[str, PartSettings]) -> None:
    assert run_identity({}, {"fuser": parts["fuser"], "a": parts["a"]})["weights"] == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [(Generate, {"a", "b", "ranker", "fuser"}), (Rank, {"ranker", "fuser"}), (PairRanker, {"ranker", "fuser"})],
)
def test_a_version_of_the_code_changes_its_stage_and_those_after(
    parts: dict[str, PartSettings], code: Any, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, described = keys_of(parts), run_identity({}, parts)
    monkeypatch.setattr(code, "results_version", 9)
    assert changed(before, keys_of(parts)) == expected
    # versions of parts are in their settings, which the commands describe
    assert bool(describe_changes(described, run_identity({}, parts))) == (code is not PairRanker)


def test_the_format_of_work_folders_changes_all_keys(
    parts: dict[str, PartSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys_of(parts)
    monkeypatch.setattr(keys, "FORMAT", keys.FORMAT + 1)
    assert changed(before, keys_of(parts)) == set(before)


def test_scores_of_two_answers_outlive_a_change_of_strategy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = PairRanker(model="org/ranker")
    key = scorer_key(ranker, "0")
    assert scorer_key(PairRanker(model="org/ranker", top_k=1), "0") == key
    others = [scorer_key(ranker, "1"), scorer_key(PairRanker(model="org/ranker", source_max_length=9), "0")]
    monkeypatch.setattr(PairRanker, "results_version", 9)
    others.append(scorer_key(ranker, "0"))
    assert len({key, *others}) == 4


def test_a_folder_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keys, "model_digest", refused)
    with pytest.raises(BlendError, match=r"^org/fuser: cannot be read: .*Permission denied"):
        run_identity({}, {"fuser": GenFuser(model="org/fuser")})


def test_an_adapter_has_keys_of_its_own_weights(tmp_path: Path) -> None:
    """Weights that were replaced in place change its answers and what is made of them, and nothing of the base."""
    for folder, config in (
        ("base", "config.json"),
        ("legal", "adapter_config.json"),
        ("code", "adapter_config.json"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / config).write_text("{}")
    adapters = {name: str(tmp_path / name) for name in ("legal", "code")}

    def keys_with(**more: Any) -> dict[str, str]:
        model = {"name": "base", "engine": "transformers", "model": str(tmp_path / "base"), **more}
        config = BlendConfig.model_validate({"models": [model], "ranker": {"kind": "echo"}})
        return keys_of(dict(config.parts), tuple(member.name for member in config.members))

    alone, before = keys_with(), keys_with(adapters=adapters)
    assert before["base"] == alone["base"] and len({*before.values()}) == 4
    assert keys_with(adapters={"legal": adapters["legal"]})["legal"] == before["legal"]
    (tmp_path / "legal" / "adapter_model.safetensors").write_bytes(b"trained on")
    assert changed(before, keys_with(adapters=adapters)) == {"legal", "ranker"}
    drawn = adapters | {"code": {"path": adapters["code"], "sampling": {"temperature": 1}}}
    assert changed(keys_with(adapters=adapters), keys_with(adapters=drawn)) == {"code", "ranker"}

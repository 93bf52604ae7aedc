"""Model folders that are none, before Ray starts."""

from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.cluster.placement import Capacity, Node, PlanError
from llm_blender_ray.cluster.preflight import check_hub_models, check_local_models, check_workers
from llm_blender_ray.configs.schema import BlendConfig, RayCluster, VLLMModel


def config(model: Path | str, **settings: Any) -> BlendConfig:
    llm = {"name": "a", "engine": "transformers", "model": str(model)}
    return BlendConfig.model_validate({"models": [llm], "ranker": {"kind": "echo"}, **settings})


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'},
            "a LORA adapter of org/base, not a model; give that one as model, and this folder as its adapter, or",
        ),
        ({"adapter_config.json": "{}"}, "a PEFT adapter of another model"),
        ({"model_index.json": "{}", "unet/config.json": "{}"}, "a diffusion pipeline, not a language model$"),
        ({"model.Q4_K_M.gguf": "GGUF"}, r"weights for llama\.cpp \(GGUF\); .* engine: endpoint$"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "its publisher's own|their publisher's own format"),
        ({"notes.txt": ""}, "no config.json in it, so it isn't a model folder$"),
    ],
)
def test_what_is_there_instead_of_a_model_is_named(tmp_path: Path, files: dict[str, str], told: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelLoadError, match=rf"^{tmp_path}: .*{told}") as caught:
        check_local_models(RayCluster(), config(tmp_path).parts.values())
    assert "\n" not in str(caught.value)


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("GGUF")
    (tmp_path / "other.gguf").write_text("<html>")
    (tmp_path / "model.safetensors").write_text("")
    told = {"other.gguf": "no GGUF file, whatever its name", "model.safetensors": "a file; give", "x": "no such"}
    for name, problem in told.items():
        with pytest.raises(ModelLoadError, match=problem):
            check_local_models(RayCluster(), config(tmp_path / name).parts.values())
    check_local_models(RayCluster(), config(tmp_path / "model.gguf").parts.values())
    vllm = config("org/model").model_copy(
        update={"models": (VLLMModel(name="v", engine="vllm", model=str(tmp_path / "model.gguf")),)}
    )
    with pytest.raises(ModelLoadError, match="give the file itself to engine: transformers"):
        check_local_models(RayCluster(), vllm.parts.values())


def test_what_an_engine_does_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "exl2"}}')
    with pytest.raises(ModelLoadError, match="quantized by exl2, which engine: transformers"):
        check_local_models(RayCluster(), config(tmp_path).parts.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"fuser": {"kind": "genfuser", "model": "/nowhere/fuser"}},
        {"ranker": {"model": "/nowhere/ranker"}},
        {"ranker": {"kind": "judge", "llm": {"name": "j", "engine": "vllm", "model": "/nowhere/judge"}}},
    ],
)
def test_every_part_is_looked_at(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError, match=r"^/nowhere/\w+: no such folder$"):
        check_local_models(RayCluster(), config("org/model", **settings).parts.values())


def test_hub_ids_and_other_machines_disks_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    check_local_models(RayCluster(), config("org/model").parts.values())
    check_local_models(RayCluster(address="10.0.0.1:6379"), config("/nowhere/model").parts.values())


def test_adapters_are_looked_at_and_another_base_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model on the hub, too, and of a judge."""
    settings = '{"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/%s"}'
    for name, base in (("legal", "model"), ("code", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(settings % base)
        (tmp_path / name / "adapter_model.bin").write_text("weights")
    models = [{"name": "a", "engine": "vllm", "model": "org/model", "adapters": {"x": str(tmp_path / "legal")}}]
    models[0]["adapters"]["y"] = str(tmp_path / "code")  # type: ignore[index]
    given = config("org/model", models=models)
    check_local_models(RayCluster(), given.parts.values())
    assert capsys.readouterr().err == f"blend: {tmp_path}/code: an adapter of org/other, applied to org/model\n"
    (tmp_path / "code" / "adapter_model.bin").unlink()
    judge = {"kind": "judge", "llm": models[0] | {"adapters": {}, "adapter": str(tmp_path / "code")}}
    for bad in (given, config("org/model", ranker=judge)):
        with pytest.raises(ModelLoadError, match=f"^{tmp_path}/code: no weights in it"):
            check_local_models(RayCluster(), bad.parts.values())
    missing = config("org/model", models=[models[0] | {"adapters": {"x": "/nowhere/x"}}])
    with pytest.raises(ModelLoadError, match=r"^/nowhere/x: no such folder$"):
        check_local_models(RayCluster(), missing.parts.values())


def test_what_is_neither_a_folder_nor_on_the_hub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match=r"^mistyped: no such local folder, not in the hub's cache, and "):
        check_hub_models(RayCluster(), config("mistyped").parts.values())
    with pytest.raises(ModelLoadError, match=r"^a/b/c: no such folder$"):
        check_hub_models(RayCluster(), config("a/b/c").parts.values())
    check_hub_models(RayCluster(address="10.0.0.1:6379"), config("mistyped").parts.values())
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    check_hub_models(RayCluster(), config("org/model").parts.values())
    check_hub_models(RayCluster(), config(tmp_path).parts.values())  # a folder, which another check reads
    with_adapter = {"name": "a", "engine": "vllm", "model": "org/model"}
    for adapters in ({"adapter": "legla"}, {"adapters": {"legal": "legla"}}):
        with pytest.raises(ModelLoadError, match=r"^legla: no such local folder, not in the hub's cache"):
            check_hub_models(RayCluster(), config("", models=[with_adapter | adapters]).parts.values())


def test_workers_without_room_are_refused() -> None:
    """A worker is on one node, so what two nodes have together is no room."""
    have = Capacity((Node(3, 1, {"fast": 1}, "H100"), Node(3, 1, {}, "L4"), Node(1)))
    check_workers(7, {"CPU": 1, "GPU": 0}, None, have)
    check_workers(2, {"CPU": 1, "GPU": 1}, None, have)
    check_workers(1, {"CPU": 1, "GPU": 1}, "L4", have)
    with pytest.raises(PlanError, match="room for 2 of 3 workers with 2 CPU each"):
        check_workers(3, {"CPU": 2, "GPU": 0}, None, have)
    with pytest.raises(PlanError, match="room for 1 of 2 workers with 1 CPU, 1 GPU each on H100"):
        check_workers(2, {"CPU": 1, "GPU": 1}, "H100", have)
    with pytest.raises(PlanError, match="room for 1 of 2 workers with 1 CPU, 1 fast each"):
        check_workers(2, {"CPU": 1, "fast": 1}, None, have)

"""Reading configs: overrides, folders beside the config, and what a mistake is told as."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.configs.loading import PRESETS, ConfigError, load
from llm_blender_ray.configs.schema import BlendConfig, Replicas, TransformersModel, VLLMModel

GOOD = """
models:
  - &llm {name: a, engine: transformers, model: llms/a, sampling: {max_tokens: 5}}
  - {<<: *llm, name: b}
ranker: {model: org/ranker}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "llms" / "a").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(GOOD)
    return tmp_path / "config.yaml"


def mistakes(file: Path, text: str, *overrides: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, BlendConfig, overrides)
    return [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]


def test_defaults_and_folders(config: Path) -> None:
    loaded = load(config, BlendConfig)
    assert loaded.models[0].model == str(config.parent / "llms" / "a")
    assert loaded.ranker.model == "org/ranker"  # no such folder beside the config: a hub id
    assert loaded.models[1].sampling.max_tokens == 5
    assert loaded.fuser is None


def test_overrides(config: Path) -> None:
    overrides = [
        "models.1.sampling.max_tokens=9",
        "models.0.replicas=2",
        "fuser.model=x/y",
        "ray.resources.big=1.5",
    ]
    loaded = load(config, BlendConfig, [*overrides, "limit=", "models.0.sampling.stop=['a', 'b=c']"])
    assert [model.sampling.max_tokens for model in loaded.models] == [5, 9]  # though an anchor shares the section
    assert loaded.models[0].replicas == Replicas(min=2, max=2)
    assert loaded.models[0].sampling.stop == ("a", "b=c")
    assert loaded.fuser is not None and loaded.fuser.model == "x/y"
    assert loaded.ray.resources == {"big": 1.5}
    assert loaded.limit is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("limit", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("models.7.name=x", "models has items 0 to 1"),
        ("models.x.name=x", "models has items 0 to 1"),
        ("ranker.model.deep=1", "ranker.model is text, so it has no deep"),
        ("limit=[", "the value is not YAML"),
    ],
)
def test_overrides_that_cant_be(config: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set ") as caught:
        load(config, BlendConfig, [override])
    assert told in str(caught.value)


def test_every_mistake_is_a_line_with_its_path(config: Path) -> None:
    lines = mistakes(
        config,
        """
models:
  - {name: a, engine: vllm, model: x/y, foo: 1, num_gpus: -1}
  - {name: b, engine: vlm, model: x/y}
  - {engine: endpoint, model: z}
  - {name: d, engine: endpoint, model: z, base_url: "http://me:secret@h/v1"}
  - {name: c, model: z}
ranker: {model: q, strateg: full}
fuser: 3
inptu: x
""",
    )
    assert lines == [
        "models.0.num_gpus: expected greater than or equal to 0, got -1",
        "models.0.foo: unknown setting",
        "models.1: unknown engine 'vlm', expected one of vllm, transformers, endpoint, echo",
        "models.2.name: required, but missing",
        "models.2.base_url: required, but missing",
        "models.3.base_url: expected http://HOST/PATH or https://HOST/PATH, without user and password",
        "models.4: engine is required, but missing",
        "ranker.strateg: unknown setting",
        "fuser: expected a mapping of settings, got 3",
        "inptu: unknown setting",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a mapping of settings, got nothing"),
        ("- 1", "expected a mapping of settings, got a list"),
        ("a: [", "not YAML"),
        ("models: []\nranker: {model: x}", "models: expected at least one model"),
        (
            GOOD + "  # same name\n".join([""]) + "\nray: {address: 3}",
            "ray.address: expected a valid string, got 3",
        ),
        (GOOD.replace("name: b", "name: a"), "two have the same name: a"),
        (GOOD.replace("name: b", "name: ranker"), "a base LLM can't be called ranker"),
        (
            "models: [{name: a, engine: echo, model: m}]\n"
            "ranker: {kind: judge, llm: {name: j, engine: echo, model: m, samples: 2, sampling: {temperature: 1}}}",
            "ranker.llm: one answer is used",
        ),
        (
            GOOD.replace("max_tokens: 5", "max_tokens: 0"),
            "models.0.sampling.max_tokens: expected greater than or equal to 1",
        ),
        (GOOD + "max_error_rate: 1.5", "max_error_rate: expected less than or equal to 1, got 1.5"),
        (GOOD.replace("name: b", "name: b, replicas: {min: 3, max: 2}"), "max (2) is smaller than min (3)"),
        (
            GOOD.replace("name: b", "name: b, replicas: two"),
            "replicas: expected an integer, or a mapping of min and max, got 'two'",
        ),
    ],
)
def test_mistakes(config: Path, text: str, told: str) -> None:
    lines = mistakes(config, text)
    assert any(told in line for line in lines), lines


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load(tmp_path / "none.yaml", BlendConfig)


@pytest.mark.parametrize("preset", ["demo", "three-models", "endpoints", "paper"])
def test_presets_are_valid(preset: str) -> None:
    config = load(PRESETS / f"{preset}.yaml", BlendConfig)
    assert all(not getattr(m, "trust_remote_code", False) for m in config.models)
    if preset == "demo":
        assert all(isinstance(m, TransformersModel) and Path(m.model).is_dir() for m in config.models)
    if preset == "paper":
        assert len(config.models) == 11


def test_the_readme_example_is_fifteen_lines() -> None:
    lines = (PRESETS / "three-models.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 15


@given(st.integers(1, 9), st.integers(1, 9))
def test_replicas(least: int, most: int) -> None:
    if least <= most:
        assert Replicas.model_validate({"min": least, "max": most}).max == most
    else:
        with pytest.raises(ValueError, match="smaller than min"):
            Replicas.model_validate({"min": least, "max": most})
    assert Replicas.model_validate(least) == Replicas(min=least, max=least)


@pytest.mark.parametrize("path", ["chat.jinja", "./chat.jinja", "{folder}/chat.jinja"])
def test_a_template_file_beside_the_config_is_read(tmp_path: Path, path: str) -> None:
    """So that actors on other nodes, and what a run keeps, have its text."""
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    models = [{"name": "m", "engine": "vllm", "model": "org/m", "chat_template": path.format(folder=tmp_path)}]
    (tmp_path / "c.yaml").write_text(json.dumps({"models": models, "ranker": {"model": "org/r"}}))
    (model,) = load(tmp_path / "c.yaml", BlendConfig).models
    assert isinstance(model, VLLMModel) and model.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("name", ["vicunna", "nowhere.jinja", "", "."])
def test_an_unknown_template_is_a_mistake(tmp_path: Path, name: str) -> None:
    models = [{"name": "m", "engine": "transformers", "model": "org/m", "chat_template": name}]
    (tmp_path / "c.yaml").write_text(json.dumps({"models": models, "ranker": {"model": "org/r"}}))
    with pytest.raises(ConfigError, match=r"models.0.chat_template: .*neither .* known name \(airoboros, .*vicuna"):
        load(tmp_path / "c.yaml", BlendConfig)

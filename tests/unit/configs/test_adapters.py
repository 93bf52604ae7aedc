"""Adapters in a config: the members that they make of one model, and what is wrong with them in one line."""

from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.loading import ConfigError, load, load_mapping
from llm_blender_ray.configs.online import online
from llm_blender_ray.configs.schema import BlendConfig

BASE: dict[str, Any] = {
    "name": "base",
    "engine": "vllm",
    "model": "org/base",
    "system_prompt": "Be brief.",
    "sampling": {"max_tokens": 9, "temperature": 0.5},
}
BOTH = {
    "legal": "org/legal",
    "code": {
        "path": "org/code",
        "revision": "r1",
        "samples": 3,
        "sampling": {"top_p": 0.9},
        "system_prompt": "Code.",
    },
}


def config(*models: dict[str, Any], **more: Any) -> BlendConfig:
    return load_mapping({"models": list(models), "ranker": {"kind": "echo"}, **more}, BlendConfig, name="c")


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_model_and_its_adapters_are_members_with_settings_of_their_own(engine: str) -> None:
    made = config(BASE | {"engine": engine, "adapters": BOTH}, {"name": "e", "engine": "echo", "model": "m"})
    base, legal, code, _ = made.members
    assert [member.name for member in made.members] == ["base", "legal", "code", "e"]
    assert list(made.parts) == ["base", "legal", "code", "e", "ranker"]
    assert base == config(BASE | {"engine": engine}).models[0]
    own = {"name": "legal", "adapter": {"path": "org/legal", "revision": None}}
    assert legal == config(BASE | {"engine": engine} | own).models[0]
    assert code.sampling.model_dump() == base.sampling.model_dump() | {"top_p": 0.9}
    assert (code.samples, code.system_prompt) == (3, "Code.")
    adapters = (Adapter(path="org/legal"), Adapter(path="org/code", revision="r1"))
    assert [member.weights.adapters for member in (made.models[0], base, legal)] == [adapters, (), adapters[:1]]  # type: ignore[attr-defined]
    assert made.models[0].label == f"{engine} org/base as base, legal, code"
    assert legal.label == f"{engine} org/base with org/legal"


def test_an_engine_s_own_rank_bounds_its_adapters() -> None:
    for args, most in (({}, 512), ({"max_lora_rank": 64}, 64)):
        made = config(BASE | {"engine_args": args, "adapters": BOTH})
        assert {one.weights.formats.adapters.max_rank for one in (*made.models, *made.members)} == {most}  # type: ignore


def test_the_base_can_be_left_out() -> None:
    made = config(BASE | {"adapters": BOTH, "include_base": False})
    assert [member.name for member in made.members] == ["legal", "code"]
    assert config(BASE | {"adapters": {"x": "p", "y": "p"}}).models[0].loaded_adapters == (Adapter(path="p"),)  # type: ignore[attr-defined]


def test_a_config_is_the_same_when_it_is_read_again() -> None:
    made = config(BASE | {"adapters": BOTH})
    for unset in (True, False):
        assert BlendConfig.model_validate(made.model_dump(mode="json", exclude_unset=unset)) == made


def test_the_service_s_limits_reach_every_member() -> None:
    served = online(config(BASE | {"adapters": BOTH}, serve={"limits": {"prompt_tokens": 77}}))
    assert [member.max_prompt_tokens for member in served.members] == [77, 77, 77]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"adapters": {"legal": {"path": "p", "samples": 2}}, "sampling": {}},
            "adapters.legal.samples: all 2 would",
        ),
        (
            {"adapters": {"legal": {"path": "p", "sampling": {"min_tokens": 10}}}},
            "adapters.legal.sampling: min_tokens",
        ),
        ({"adapters": {"legal": 3}}, "models.0.adapters.legal: expected a mapping of settings, got 3"),
        ({"adapters": {"legal": {"path": "p", "rank": 8}}}, "models.0.adapters.legal.rank: unknown setting"),
        ({"adapters": {"base": "p"}}, "models: two have the same name: base"),
        ({"adapters": {"ranker": "p"}}, "models: a base LLM can't be called ranker"),
        ({"adapter": "p", "adapters": BOTH}, "adapter: the model has adapters; name it among them"),
        ({"include_base": False}, "include_base: without adapters the model is the only member"),
        ({"engine": "echo", "adapters": BOTH}, "engine echo has no adapters: it has no weights"),
        (
            {"engine": "endpoint", "base_url": "http://x", "adapter": "p"},
            "engine endpoint has no adapter: its server",
        ),
    ],
)
def test_a_mistake_is_one_line(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(BASE | model)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_unique_among_all_members() -> None:
    """Also that of a model which is no member itself: its engine has it."""
    other = {"name": "legal", "engine": "echo", "model": "m"}
    for first in ({"adapters": BOTH}, {"adapters": {"x": "p"}, "include_base": False, "name": "legal"}):
        with pytest.raises(ConfigError, match="models: two have the same name: legal"):
            config(BASE | first, other)


def test_a_judge_s_llm_has_one_adapter_at_most() -> None:
    judge = config(BASE, ranker={"kind": "judge", "llm": BASE | {"adapter": "org/judge"}}).ranker
    assert judge.model_settings.weights.adapters == (Adapter(path="org/judge"),)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"ranker\.llm: one LLM is used; adapters is for base LLMs"):
        config(BASE, ranker={"kind": "judge", "llm": BASE | {"adapters": BOTH}})


def test_relative_paths_start_at_the_config(tmp_path: Path) -> None:
    for name in ("legal", "code"):
        (tmp_path / "sub" / name).mkdir(parents=True)
    file = tmp_path / "sub" / "blend.yaml"
    file.write_text(
        "models:\n"
        "  - {name: a, engine: vllm, model: org/a, adapters: {x: legal, y: {path: ./code}, z: org/hub}}\n"
        "  - {name: b, engine: vllm, model: org/b, adapter: legal}\n"
        "ranker: {kind: echo}\n"
    )
    a, b = load(file, BlendConfig).models
    where = file.parent
    assert [one.path for one in a.adapters.values()] == [f"{where}/legal", f"{where}/code", "org/hub"]  # type: ignore[attr-defined]
    assert b.adapter == Adapter(path=f"{where}/legal")  # type: ignore[attr-defined]


def identity(made: BlendConfig, **weights: str) -> dict[str, Any]:
    return {"models": {one.name: deciding(one) for one in made.members}, "weights": weights}


def test_what_an_adapter_changes_is_named() -> None:
    before = identity(config(BASE | {"adapters": {"legal": "p"}}), base="0", legal="1")
    more = identity(config(BASE | {"adapters": {"legal": "p", "code": "q"}}), base="0", legal="1", code="2")
    assert describe_changes(before, more) == ["model code is new"]
    assert describe_changes(before, before | {"weights": {"base": "0", "legal": "2"}}) == [
        "weights of legal have changed"
    ]
    other = identity(config(BASE | {"adapters": {"legal": "q"}}), base="0", legal="2")
    assert describe_changes(before, other) == ["adapter.path of legal: p -> q"]
    assert identity(config(BASE))["models"]["base"] == before["models"]["base"]  # its answers stay valid

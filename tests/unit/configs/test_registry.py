"""Parts by name: built-in ones, those of this process, those of other packages; what settings classes declare."""

from importlib.metadata import EntryPoint
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from llm_blender_ray.configs.fusers import FUSERS
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.llms import ENGINES, BaseLLM, EchoModel
from llm_blender_ray.configs.rankers import RANKERS
from llm_blender_ray.configs.registry import OneOf, Registry, RegistryError, import_object
from llm_blender_ray.configs.schema import BlendConfig, ModelSettings, Resources
from llm_blender_ray.configs.settings import RUNTIME_ONLY

MODEL: TypeAdapter[BaseLLM] = TypeAdapter(ModelSettings)
ECHO = {"name": "m", "engine": "echo", "model": "e"}


class ToyModel(BaseLLM):
    """An engine that another package could bring."""

    implementation: ClassVar[str] = "toy:Toy"

    engine: Literal["toy"]
    shout: bool = False


def registry(*points: EntryPoint) -> Registry[Any]:
    made: Registry[Any] = Registry("engine", "toys", {"echo": "llm_blender_ray.configs.llms:EchoModel"})
    made.__dict__["_entry_points"] = {
        name: tuple(point for point in points if point.name == name) for name in {point.name for point in points}
    }
    return made


def test_an_added_engine_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES, "_added", {"toy": ToyModel})
    model = MODEL.validate_python({"name": "t", "engine": "toy", "model": "m", "shout": True})
    assert isinstance(model, ToyModel) and model.shout
    assert MODEL.dump_python(model, mode="json", exclude_unset=True) == {
        "name": "t",
        "engine": "toy",
        "model": "m",
        "shout": True,
    }


def test_settings_of_another_engine_are_rejected() -> None:
    with pytest.raises(ValidationError) as caught:
        MODEL.validate_python({**ECHO, "tensor_parallel_size": 2})
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [
        (("tensor_parallel_size",), "extra_forbidden")
    ]


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(RegistryError, match="unknown engine 'ech', expected one of echo, toy"):
        registry(EntryPoint("toy", "toy:Toy", "toys")).get("ech")


@pytest.mark.parametrize(
    ("points", "name", "message"),
    [
        ([("echo", "json:loads")], "echo", "'echo' is built in; json:loads must use another name"),
        ([("toy", "json:loads"), ("toy", "json:dumps")], "toy", "registered twice, by json:loads and json:dumps"),
        ([("toy", "no_such_module:x")], "toy", "cannot be imported .*ModuleNotFoundError: No module named"),
    ],
)
def test_a_name_that_cannot_be_used_is_told(points: list[tuple[str, str]], name: str, message: str) -> None:
    made = registry(*(EntryPoint(point, value, "toys") for point, value in points))
    with pytest.raises(RegistryError, match=message):
        made.get(name)


def test_what_is_no_settings_class_is_told() -> None:
    union: TypeAdapter[Any] = TypeAdapter(
        Annotated[BaseLLM, OneOf(registry(EntryPoint("toy", "json:loads", "toys")), "engine")]
    )
    with pytest.raises(ValidationError, match="expected a subclass of BaseLLM"):
        union.validate_python({"engine": "toy"})


def test_the_json_schema_lists_all_kinds() -> None:
    schema = BlendConfig.model_json_schema()
    text = str(schema)
    assert all(word in text for word in ("tensor_parallel_size", "base_url", "num_beams", "comparison_s"))


@pytest.mark.parametrize("parts", [ENGINES, RANKERS, FUSERS])
def test_every_built_in_part_names_what_runs_it(parts: Registry[Any]) -> None:
    for name in parts.names():
        settings = parts.get(name)
        field = "engine" if parts is ENGINES else "kind"
        assert settings.model_fields[field].annotation == Literal[name]
        if name != "vllm":
            assert callable(import_object(settings.implementation))


def test_fields_of_resources_decide_no_result() -> None:
    assert all(RUNTIME_ONLY in field.metadata for field in Resources.model_fields.values())


def test_keys_of_users_are_never_taken_for_fields() -> None:
    """`device` is a field that decides nothing; in `extra_body` it is the user's."""
    given = {"name": "m", "engine": "endpoint", "model": "m", "base_url": "http://a", "extra_body": {"device": 1}}
    assert deciding(MODEL.validate_python(given))["extra_body"] == {"device": 1}


def test_a_part_describes_itself() -> None:
    model = MODEL.validate_python(ECHO)
    assert isinstance(model, EchoModel)
    assert (model.stage, model.label, model.weights, model.width) == ("generate", "echo e", None, 64)
    assert model.model_settings is model and model.prompted_llm is model and model.deterministic

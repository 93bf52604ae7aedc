"""Sampling settings: what excludes what, what engines can do, and the model's own defaults."""

import pickle
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from transformers import GenerationConfig

from llm_blender_ray.actors.engines.model_defaults import model_defaults
from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.llms import ENGINES, BaseLLM
from llm_blender_ray.configs.sampling import OPTIONS, BeamSampling
from llm_blender_ray.configs.schema import Sampling, SamplingOverrides, VLLMModel

GIVEN: dict[str, Any] = {
    "min_p": 0.1,
    "min_tokens": 3,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"7": 5},
    "num_beams": 2,
    "logprobs": 0,
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking_token_budget": 64,
    "from_model": True,
}
PLACE = {"endpoint": {"base_url": "http://127.0.0.1:9/v1"}}


def llm(engine: str, **settings: Any) -> BaseLLM:
    given = {"engine": engine, "name": "m", "model": "m", **PLACE.get(engine, {}), **settings}
    return ENGINES.get(engine).model_validate(given)


def problem(engine: str, **settings: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        llm(engine, **settings)
    (error,) = caught.value.errors()
    return f"{error['loc'][0]}: {error['ctx']['error']}"


def test_every_option_is_known_here() -> None:
    assert tuple(GIVEN) == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("engine", ENGINES.names())
def test_an_engine_takes_what_it_declares_and_refuses_the_rest_by_name(engine: str, name: str) -> None:
    sampling = {name: GIVEN[name]}
    if name in ENGINES.get(engine).sampling_options:
        assert llm(engine, sampling=sampling).sampling.options == (name,)
    else:
        assert problem(engine, sampling=sampling).startswith(f"sampling: {name}: engine {engine} can't; vllm and ")


def test_engines_of_other_packages_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class FarModel(BaseLLM):
        sampling_options: ClassVar[frozenset[str]] = frozenset({"min_p"})

    monkeypatch.setitem(ENGINES._added, "far", FarModel)
    assert problem("echo", sampling={"min_p": 0.1}).endswith("; vllm and transformers and endpoint and far can")
    assert "far" not in problem("echo", sampling={"min_tokens": 1})


def test_options_that_are_not_set_leave_keys_as_they_were() -> None:
    old = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
    assert tuple(deciding(Sampling())) == old
    for name in OPTIONS:
        sampling = Sampling.model_validate({name: GIVEN[name]})
        assert deciding(sampling) != deciding(Sampling()) and name in deciding(sampling)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens: 9 is larger than max_tokens (8)"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams: beam search draws nothing; leave out temperature"),
        ({"num_beams": 2, "logprobs": 1}, "num_beams: beam search returns no logprobs"),
    ],
)
def test_options_that_exclude_each_other(sampling: dict[str, Any], message: str) -> None:
    assert problem("transformers", sampling=sampling).endswith(message)


def test_beam_search_of_vllm_takes_nothing_beside() -> None:
    message = problem("vllm", sampling={"num_beams": 2, "min_tokens": 1})
    assert message == "sampling: num_beams: vLLM's beam search takes no min_tokens"


def test_samples_of_a_search_are_its_beams() -> None:
    model = llm("transformers", sampling={"num_beams": 3}, samples=3)
    beams = [model.sampling.nth(at) for at in range(3)]
    assert beams[0] == model.sampling and [one.beam for one in beams[1:] if isinstance(one, BeamSampling)] == [1, 2]
    assert {repr(one.shared()) for one in beams} == {repr(model.sampling)}
    assert pickle.loads(pickle.dumps(beams)) == beams
    assert model.deterministic
    assert "has no more answers" in problem("transformers", sampling={"num_beams": 3}, samples=4)


def test_overrides_have_the_fields_of_sampling() -> None:
    assert set(SamplingOverrides.model_fields) == set(Sampling.model_fields) - {"from_model"}
    assert SamplingOverrides(num_beams=4).of(Sampling(temperature=0.8)).problem() is None
    assert SamplingOverrides(num_beams=4, temperature=0.3).of(Sampling()).problem() is not None


def test_a_request_s_template_variables_are_added_to_the_model_s() -> None:
    model = Sampling(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False, "tone": "dry"})
    changed = SamplingOverrides(chat_template_kwargs={"tone": "warm", "n": [1]}).of(model)
    expected = {"reasoning_effort": "high", "thinking": True, "enable_thinking": False, "tone": "warm", "n": [1]}
    assert changed.template_variables == expected
    assert Sampling().template_variables == {}
    with pytest.raises(ValidationError, match="chat_template is no variable that can be set"):
        SamplingOverrides(chat_template_kwargs={"chat_template": "{{ 1 }}"})


def test_from_model_fills_in_what_is_not_set() -> None:
    sampling = Sampling(from_model=True, top_p=0.5)
    own = model_defaults(GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, top_k=20, min_p=0.05))
    filled = sampling.with_defaults(own)
    assert (filled.temperature, filled.top_p, filled.top_k, filled.min_p) == (0.6, 0.5, 20, 0.05)
    assert not sampling.greedy and Sampling(from_model=True, temperature=0).greedy
    assert Sampling(top_p=0.5).with_defaults(own) == Sampling(top_p=0.5)
    request = SamplingOverrides(temperature=1.5).of(sampling).nth(1).with_defaults(own)
    assert (request.temperature, request.top_k) == (1.5, 20)


def test_what_from_model_fills_in_stays_open_when_the_settings_travel() -> None:
    """And a temperature of 0 that is set has other results than one that is not."""
    sampling = Sampling(from_model=True, top_p=0.5)
    for copy in (
        Sampling.model_validate(sampling.model_dump(mode="json")),
        Sampling.model_validate_json(sampling.model_dump_json()),
        pickle.loads(pickle.dumps(sampling)),
    ):
        assert copy.open_fields == {"temperature", "top_k", "min_p", "repetition_penalty"}
    assert deciding(sampling) != deciding(Sampling(from_model=True, top_p=0.5, temperature=0.0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GenerationConfig(), {"temperature": 0.0}),
        (GenerationConfig(do_sample=True), {"temperature": 1.0}),
        (
            GenerationConfig(do_sample=True, top_k=0, repetition_penalty=1.05),
            {"temperature": 1.0} | {"repetition_penalty": 1.05},
        ),
    ],
)
def test_a_generation_config_is_read_as_generate_reads_it(
    config: GenerationConfig, expected: dict[str, Any]
) -> None:
    assert model_defaults(config) == expected


def test_a_generation_config_beyond_the_settings_is_told() -> None:
    with pytest.raises(ModelLoadError, match=r"temperature of the model's generation_config.json is 5.0, which"):
        model_defaults(GenerationConfig(do_sample=True, temperature=5.0))


def test_several_samples_may_follow_the_model_s_own_sampling() -> None:
    assert llm("transformers", sampling={"from_model": True}, samples=2).samples == 2
    assert VLLMModel(name="v", engine="vllm", model="m").sampling.options == ()

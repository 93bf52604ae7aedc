"""Settings of the online service."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm_blender_ray.configs.loading import PRESETS, ConfigError, load
from llm_blender_ray.configs.online import online
from llm_blender_ray.configs.schema import BlendConfig, GenFuser, LLMFuser, Sampling, SamplingOverrides, VLLMModel
from llm_blender_ray.configs.serving import Serving

ECHO = {"name": "a", "engine": "echo", "model": "echo"}


def config(**changes: Any) -> BlendConfig:
    return BlendConfig.model_validate({"models": [ECHO], "ranker": {"model": "r"}} | changes)


def test_a_change_changes_what_it_names() -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5, stop=("a",), seed=3)
    assert SamplingOverrides().of(sampling) == sampling
    changed = SamplingOverrides(temperature=0.0, stop=(), seed=4).of(sampling)
    assert changed == Sampling(max_tokens=7, temperature=0.0, stop=(), seed=4)


def test_shares_leave_time_for_fusing() -> None:
    with pytest.raises(ValidationError, match="leave no time for fusing"):
        Serving(generation_share=0.7, ranking_share=0.3)


def test_timeouts_are_of_parts() -> None:
    assert config(serve={"timeouts_s": {"a": 1, "ranker": 2, "fuser": 3}})
    with pytest.raises(
        ValidationError, match=r"serve.timeouts_s: b is neither a model's name nor ranker nor fuser"
    ):
        config(serve={"timeouts_s": {"b": 1}})


@pytest.mark.parametrize("name", ["blend", "blend-best", "ranker", "fuser", "gateway", "ballots"])
def test_names_of_other_parts_are_taken(name: str) -> None:
    with pytest.raises(ValidationError, match=f"a base LLM can't be called {name}"):
        config(models=[ECHO | {"name": name}])


def test_files_are_on_a_disk_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Serving(votes="votes.jsonl").votes == str(tmp_path / "votes.jsonl")
    with pytest.raises(ValidationError, match="a file on a local disk"):
        Serving(keys_file="s3://bucket/keys")
    assert Serving(log="requests.jsonl").log == str(tmp_path / "requests.jsonl")
    assert [Serving(log=one).log for one in ("stdout", "stderr")] == ["stdout", "stderr"]
    assert Serving().log == "stderr"


def test_replicas_from_zero() -> None:
    replicas = config(models=[ECHO | {"replicas": 0}]).models[0].replicas
    assert (replicas.min, replicas.max) == (0, 1)


def test_a_fuser_may_be_an_llm() -> None:
    assert isinstance(config(fuser={"model": "f"}).fuser, GenFuser)
    llm = {"name": "f", "engine": "vllm", "model": "org/f"}
    fuser = config(fuser={"kind": "chat", "llm": llm}).fuser
    assert isinstance(fuser, LLMFuser) and isinstance(fuser.llm, VLLMModel) and fuser.top_k == 3


def test_mistakes_in_a_fuser_are_told_by_path(tmp_path: Path) -> None:
    for override, mistake in [
        ("fuser.kind=t5", "fuser: unknown kind of fuser 't5', expected one of genfuser, chat"),
        ("fuser.beams=4", "fuser.beams: unknown setting"),
        ("fuser=3", "fuser: expected a mapping of settings, got 3"),
        (
            "fuser={kind: chat, llm: {name: f, engine: echo, model: e, samples: 2, sampling: {temperature: 1}}}",
            "fuser.llm: one answer is used; samples is for base LLMs",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(PRESETS / "demo.yaml", BlendConfig, [override])
        assert str(caught.value).endswith(mistake)


def test_endpoints_are_asked_with_few_retries_and_without_breakers_of_their_own() -> None:
    far = {"name": "far", "engine": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    parts = {"ranker": {"kind": "judge", "llm": far}, "fuser": {"kind": "chat", "llm": far}}
    asked = config(models=[far, far | {"name": "once", "max_retries": 0}, ECHO], **parts)
    assert [model.max_retries for model in asked.models[:2]] == [5, 0]  # type: ignore[union-attr]
    served = online(asked)
    llms = [*served.models[:2], served.ranker.llm, served.fuser.llm]  # type: ignore[union-attr]
    assert [(llm.max_retries, llm.breaker) for llm in llms] == [(1, None), (0, None), (1, None), (1, None)]
    assert served.models[2] == asked.models[2]
    more = online(asked.model_copy(update={"serve": Serving(max_retries=3)}))
    assert more.models[0].max_retries == 3  # type: ignore[union-attr]
    assert online(served) == served


def test_the_service_s_limit_of_prompts_is_for_models_without_their_own() -> None:
    local = {"name": "l", "engine": "transformers", "model": "m"}
    limits = {"limits": {"prompt_tokens": 100}}
    served = online(config(models=[local, local | {"name": "own", "max_prompt_tokens": 7}, ECHO], serve=limits))
    assert [getattr(model, "max_prompt_tokens", None) for model in served.models] == [100, 7, None]

"""Sampling fields of requests: passed to the models that can, refused for the others, and log-probabilities."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from fake_parts import FakeMember, fake_blender
from serving import HELLO, app_of, chat, chunks, demo_config, refused, served

from llm_blender_ray.configs.schema import BaseLLM, EchoModel, TransformersModel
from llm_blender_ray.configs.serving import Limits, Serving

FIELDS = {
    "top_k": 5,
    "min_p": 0.1,
    "min_tokens": 1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking_token_budget": 64,
}
ECHO = EchoModel(name="echo", engine="echo", model="m")


def able(name: str, **settings: Any) -> BaseLLM:
    return TransformersModel(name=name, engine="transformers", model="m", **settings)


@pytest.fixture
def members() -> list[FakeMember]:
    return [FakeMember("able", "one two"), FakeMember("warm", "one three"), FakeMember("echo", "two")]


@pytest.fixture
def client(members: list[FakeMember]) -> Iterator[httpx2.Client]:
    models = {"able": able("able"), "warm": able("warm", samples=2, sampling={"temperature": 1.0}), "echo": ECHO}
    app = app_of(fake_blender(*members), Serving(limits=Limits(candidates=8)), models=models)
    with served(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_reaches_the_models_that_can(client: httpx2.Client, members: list[FakeMember], name: str) -> None:
    assert chat(client, model="able", **{name: FIELDS[name]}).status_code == 200
    ((_, _, change),) = members[0].asked
    expected = {50256: -100} if name == "logit_bias" else FIELDS[name]
    assert change is not None and change.model_dump(exclude_none=True) == {name: expected}
    if name == "top_k":  # every engine has it
        return
    assert "engine echo can't" in refused(
        chat(client, model="echo", **{name: FIELDS[name]}), 400, "unsupported_parameter", name
    )
    message = refused(chat(client, model="blend", **{name: FIELDS[name]}), 400, "unsupported_parameter", name)
    assert message.count("echo: engine echo can't") == 1
    assert not members[2].asked


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "unsupported_parameter"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "invalid_value"),
        ({"num_beams": 9}, "num_beams", "invalid_value"),
        ({"num_beams": 2, "temperature": 1}, "num_beams", "unsupported_parameter"),
        ({"num_beams": 2, "n": 3}, "n", "invalid_value"),
        ({"num_beams": 2, "logprobs": True}, "num_beams", "unsupported_parameter"),
        ({"logprobs": True, "model": "blend"}, "logprobs", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_is_refused(client: httpx2.Client, fields: dict[str, Any], param: str, code: str) -> None:
    refused(chat(client, **{"model": "able", **fields}), 400, code, param)


def test_fields_that_ask_for_nothing_are_no_options(client: httpx2.Client) -> None:
    nothing = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
    }
    assert chat(client, model="echo", **nothing, num_beams=1, min_p=0, repetition_penalty=1).status_code == 200


def test_choices_of_a_search_are_its_beams(client: httpx2.Client, members: list[FakeMember]) -> None:
    response = chat(client, model="warm", n=3, num_beams=3)
    assert response.status_code == 200, response.text
    assert sorted(sample for _, sample, _ in members[1].asked) == [0, 1, 2]


def test_logprobs_of_a_model_s_own_answer() -> None:
    """The miniature's, as OpenAI's client reads them; a stream has them with its last piece."""
    models = {model.name: model for model in demo_config().models}
    with served(app_of(models=models)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        fields: dict[str, Any] = {"model": "alder", "messages": HELLO, "max_tokens": 4, "temperature": 0}
        (choice,) = sdk.chat.completions.create(**fields, logprobs=True, top_logprobs=2).choices
        assert choice.logprobs is not None and choice.logprobs.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and bytes(token.bytes or []).decode() == token.token
            assert token.top_logprobs[0].token == token.token and len(token.top_logprobs) == 2
        stream = chunks(client, **fields, logprobs=True, top_logprobs=2)
        with_logprobs = [part["logprobs"] for chunk in stream for part in chunk["choices"] if part["logprobs"]]
        assert with_logprobs == [json.loads(choice.logprobs.model_dump_json())]
        (bare,) = chat(client, **fields).json()["choices"]
        assert bare["logprobs"] is None and bare["message"]["content"] == choice.message.content

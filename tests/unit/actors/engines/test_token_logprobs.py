"""Log-probabilities in a service's responses, whole and streamed, and in rows."""

import json
from typing import Any

import pytest

from llm_blender_ray.actors.engines.chat_completions import StreamReader, read_completion
from llm_blender_ray.actors.engines.chat_requests import Requests
from llm_blender_ray.actors.records import Message, TokenLogprob
from llm_blender_ray.configs.schema import EndpointModel, Sampling

TOKENS = [
    {"token": "Par", "logprob": -0.25, "bytes": [80], "top_logprobs": [{"token": "Par", "logprob": -0.25}]},
    {"token": "is", "logprob": 0, "top_logprobs": []},
]
READ = (TokenLogprob("Par", -0.25, (TokenLogprob("Par", -0.25),)), TokenLogprob("is", 0.0))


def response(logprobs: Any) -> str:
    choice = {"message": {"content": "Paris"}, "finish_reason": "stop", "logprobs": logprobs}
    return json.dumps({"choices": [choice]})


def test_logprobs_of_a_response() -> None:
    assert read_completion(response({"content": TOKENS})).logprobs == READ


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": ["x"]},
        {"tokens": ["a"], "token_logprobs": [-1.0]},
        {"content": [{"token": 5, "logprob": -1}]},
        {"content": [*TOKENS, {"token": "x", "logprob": "much"}]},
    ],
)
def test_what_is_not_openai_s_form_is_none(logprobs: Any) -> None:
    """The answer counts in any case."""
    completion = read_completion(response(logprobs))
    assert completion.text == "Paris" and completion.logprobs is None


def test_logprobs_of_a_stream_are_joined() -> None:
    reader = StreamReader()
    for token, text in zip(TOKENS, ("Par", "is"), strict=True):
        choice = {"delta": {"content": text}, "finish_reason": None, "logprobs": {"content": [token]}}
        reader.add(json.dumps({"choices": [choice]}))
    reader.add(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop", "logprobs": None}]}))
    assert reader.completion().logprobs == READ


def test_a_request_names_options_as_openai_and_vllm_do() -> None:
    model = EndpointModel(engine="endpoint", name="m", model="m", base_url="http://127.0.0.1:9/v1")
    sampling = Sampling(
        min_p=0.1,
        min_tokens=2,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={7: -5},
        logprobs=3,
        max_tokens=9,
    )
    request = Requests(model).build([Message(role="user", content="x")], sampling)
    extensions = {"min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.2}
    assert request.pop("extra_body") == extensions
    assert {name: request[name] for name in request if name not in ("model", "messages")} == {
        "max_tokens": 9,
        "temperature": 0.0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {"7": -5},
        "logprobs": True,
        "top_logprobs": 3,
    }
    own = Requests(model).build([Message(role="user", content="x")], Sampling(from_model=True))
    assert "temperature" not in own

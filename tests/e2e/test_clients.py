"""The service under the clients that people use: OpenAI's own, and LangChain's."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_parts import FakeMember, fake_blender
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr
from serving import QUESTION, app_of, event_loop, served
from starlette.types import Message, Receive, Scope, Send

from llm_blender_ray.configs.serving import GatewaySettings, Limits, Serving
from llm_blender_ray.pipelines.serve.access import Keys

KEY = "correct-horse-battery"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": QUESTION},
]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    keys = Keys.load(None, {"BLEND_API_KEYS": f"ann={KEY}"})
    with served(app_of(serving=Serving(limits=Limits(body_bytes=10_000)), keys=keys)) as url:
        yield f"{url}/v1"


def client_of(base_url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with client_of(base_url) as client:
        yield client


@pytest.fixture(scope="module")
def answer(base_url: str) -> str:
    """What the blend answers to MESSAGES."""
    with client_of(base_url) as client:
        return str(client.chat.completions.create(model="blend", messages=MESSAGES).choices[0].message.content)


def test_openai_asks(client: openai.OpenAI, answer: str) -> None:
    assert answer
    response = client.chat.completions.with_raw_response.create(
        model="blend", messages=MESSAGES, temperature=0, seed=1, n=2, user="ann", extra_body={"blend": True}
    )
    completion = response.parse()
    assert [choice.message.content for choice in completion.choices] == [answer] * 2
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens > 0
    assert completion.id == f"chatcmpl-{response.request_id}"
    assert completion.model_extra is not None
    assert len(completion.model_extra["blend"]["candidates"]) == 6


def test_openai_streams(client: openai.OpenAI, answer: str) -> None:
    stream = client.chat.completions.create(
        model="blend",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"blend": {"events": True}},
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == answer
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    events = [(chunk.model_extra or {}).get("blend", {}).get("event") for chunk in chunks]
    assert {"member_piece", "answered", "ranked", "fusing", "done"} <= set(events)


def test_openai_skips_heartbeats() -> None:
    member = FakeMember("m", "some words")
    member.hold()
    app, heartbeats = app_of(fake_blender(member), heartbeat_s=0.01), []

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message.get("body", b"").startswith(b":"):
                heartbeats.append(message["body"])
            if len(heartbeats) == 3:
                member.let_go()
            await send(message)

        await app(scope, receive, sent)

    with served(counted) as url, client_of(f"{url}/v1") as client:
        stream = client.chat.completions.create(model="blend", messages=MESSAGES, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        whole = client.chat.completions.create(model="blend", messages=MESSAGES)
    assert len(heartbeats) >= 3 and text == whole.choices[0].message.content


def test_openais_helper_for_streams_accumulates(client: openai.OpenAI, answer: str) -> None:
    with client.chat.completions.stream(model="blend", messages=MESSAGES) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"


def test_openai_asks_asynchronously(base_url: str, answer: str) -> None:
    async def ask() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
            asked = (client.chat.completions.create(model="blend", messages=MESSAGES) for _ in range(4))
            whole = [completion.choices[0].message.content for completion in await asyncio.gather(*asked)]
            stream = await client.chat.completions.create(model="blend", messages=MESSAGES, stream=True)
            return whole, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == ([answer] * 4, answer)


def test_openai_lists_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["blend", "blend-best", "alder"]
    assert client.models.retrieve("alder").owned_by == "llm-blender"


def test_openai_takes_a_short_answer_for_what_it_is(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="alder", messages=MESSAGES, max_completion_tokens=2)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None and completion.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"logprobs": True, "model": "blend"}, openai.BadRequestError, "unsupported_parameter", "logprobs"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": "word " * 1900}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 10_000}]},
            openai.APIStatusError,  # it has no class for 413
            "too_large",
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_openais_exceptions(
    client: openai.OpenAI,
    stream: bool,
    changes: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "blend", "messages": MESSAGES, "stream": stream, **changes})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(base_url: str) -> None:
    with client_of(base_url, "wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_no_answer_is_a_server_error() -> None:
    with (
        served(app_of(fake_blender(FakeMember("m", error="it is dead")))) as url,
        client_of(f"{url}/v1") as client,
        pytest.raises(openai.InternalServerError, match="it is dead") as caught,
    ):
        client.chat.completions.create(model="blend", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (503, "no_answer")


def test_a_full_service_is_a_rate_limit_which_openai_waits_out() -> None:
    member = FakeMember("m", "some words")
    member.hold()
    serving = Serving(gateway=GatewaySettings(max_in_flight=1, max_queued=0))
    with served(app_of(fake_blender(member), serving)) as url, client_of(f"{url}/v1") as client:
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.response.headers["retry-after"] == "1"
        event_loop().call_soon_threadsafe(member.let_go)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "some words"


def test_an_error_in_mid_stream_is_raised() -> None:
    member = FakeMember("m", error="it is dead")
    with served(app_of(fake_blender(member))) as url, client_of(f"{url}/v1") as client:
        stream = client.chat.completions.create(
            model="blend", messages=MESSAGES, stream=True, extra_body={"blend": {"events": True}}
        )
        with pytest.raises(openai.APIError, match="it is dead") as caught:
            list(stream)
    assert caught.value.code == "no_answer"


def langchain(base_url: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="blend", base_url=base_url, api_key=SecretStr(KEY), max_retries=0, **settings)


def test_langchain_asks_and_streams(base_url: str, answer: str) -> None:
    model = langchain(base_url, temperature=0, seed=1, max_completion_tokens=100)
    message = model.invoke([("system", "Answer."), ("human", QUESTION)])
    assert message.content == answer
    assert message.usage_metadata is not None and message.usage_metadata["output_tokens"] > 0
    whole: AIMessageChunk | None = None
    for chunk in langchain(base_url, stream_usage=True).stream([("system", "Answer."), ("human", QUESTION)]):
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None and whole.content == answer
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None and whole.usage_metadata["total_tokens"] > 0


def test_langchain_batches_and_continues_a_conversation(base_url: str, answer: str) -> None:
    model = langchain(base_url)
    turns = [("system", "Answer."), ("human", QUESTION)]
    assert [message.content for message in model.batch([turns, turns])] == [answer] * 2
    longer = model.invoke([*turns, model.invoke(turns), ("human", "Sure?")])
    assert isinstance(longer.content, str)


def test_langchain_is_told_that_there_are_no_tools(base_url: str) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    with pytest.raises(openai.BadRequestError, match="tools"):
        langchain(base_url).bind_tools([add]).invoke("2 + 2?")

"""What services send in place of a plain answer: failures, parts, finish reasons, counts. Pure: no server."""

import json
from typing import Any

import pytest
from endpoint_server import chunk, completion
from hypothesis import example, given
from hypothesis import strategies as st

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.chat_completions import ServiceError, StreamReader, failure_in, read_completion


def read(body: Any) -> Completion:
    return read_completion(json.dumps(body))


def read_stream(*events: Any) -> Completion:
    reader = StreamReader()
    for event in events:
        reader.add(json.dumps(event))
    return reader.completion()


CHOICE_ERROR = {"code": 502, "message": "Upstream died"}
FAILURES: dict[str, tuple[Any, str, int | None]] = {
    "OpenAI": (
        {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}},
        "slow down",
        429,
    ),
    "OpenAI's server": ({"error": {"message": "sorry", "type": "server_error", "code": None}}, "sorry", 500),
    "OpenRouter": (
        {"error": {"message": "Provider returned error: rate limited upstream", "code": 429}},
        "limited",
        429,
    ),
    "OpenRouter's provider": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 429,
                "metadata": {"raw": "quota of X is used up"},
            }
        },
        "Provider returned error: quota of X is used up",
        429,
    ),
    "OpenRouter's choice": (
        {"choices": [{"message": {"content": "The cap"}, "finish_reason": "error", "error": CHOICE_ERROR}]},
        "Upstream died",
        502,
    ),
    "OpenRouter's chunk": (
        {"choices": [{"delta": {"content": ""}, "finish_reason": "error"}], "error": CHOICE_ERROR},
        "Upstream died",
        502,
    ),
    "choice without reason": ({"choices": [{"message": {"content": "x"}, "error": "died"}]}, "died", None),
    "LiteLLM": (
        {"error": {"message": "litellm.RateLimitError: x", "type": "None", "code": "429"}},
        "RateLimit",
        429,
    ),
    "Azure": ({"error": {"code": "429", "message": "Requests have exceeded"}}, "have exceeded", 429),
    "Azure's filter": (
        {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}},
        "was filtered",
        400,
    ),
    "Together": (
        {"error": {"message": "overloaded", "type": "service_unavailable", "param": None}},
        "overloaded",
        503,
    ),
    "vLLM": ({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, "bad", 400),
    "TGI": ({"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded", 503),
    "Ollama": ({"error": "model is still loading"}, "still loading", None),
    "Anthropic": (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
        503,
    ),
    "Gemini": ([{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}], "busy", 503),
    "Gemini by name": ({"error": {"message": "busy", "status": "RESOURCE_EXHAUSTED"}}, "busy", 429),
    "FastAPI": ({"detail": "Not Found"}, "Not Found", None),
    "Mistral": (
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        "body.seed: Extra inputs are not permitted",
        None,
    ),
    "Cloudflare": ({"success": False, "errors": [{"code": 7003, "message": "no route"}]}, "no route", None),
    "text": ({"error": "Too many requests"}, "Too many requests", 429),
    "no words": ({"error": {"code": 500}}, "500", 500),
    "gateway": ({"code": 502, "msg": "bad gateway", "data": None}, "bad gateway", 502),
    "cut": ({"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}, "finish_reason abort", None),
    "DeepSeek": (
        {"choices": [{"message": {"content": "x"}, "finish_reason": "insufficient_system_resource"}]},
        "insufficient_system_resource",
        503,
    ),
    "filter": (
        {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]},
        "content filter",
        None,
    ),
    "unknown": ({"choices": [{"message": {"content": "x"}, "finish_reason": "whatever"}]}, "whatever", None),
}


@pytest.mark.parametrize(("body", "says", "status"), FAILURES.values(), ids=FAILURES)
def test_failures_in_a_200(body: Any, says: str, status: int | None) -> None:
    failure = failure_in(body)
    assert failure is not None
    assert says in failure.message
    assert failure.status == status
    with pytest.raises(ServiceError) as raised:
        read(body)
    assert raised.value.failure == failure
    reader = StreamReader()
    with pytest.raises(ServiceError):
        reader.add(json.dumps(body))


@pytest.mark.parametrize("error", [None, "", {}, [], False])
def test_an_empty_error_is_none(error: Any) -> None:
    assert read({**completion("hi"), "error": error}).text == "hi"
    assert read_stream({**chunk("hi", "stop"), "error": error}).text == "hi"


@pytest.mark.parametrize(
    ("reason", "ours"),
    [(reason, "stop") for reason in ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "COMPLETE")]
    + [(reason, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length")]
    + [({"type": "stop", "matched": 2}, "stop")],
)
def test_finish_reasons(reason: Any, ours: str) -> None:
    assert read(completion("hi", reason)).finish_reason == ours
    assert read_stream(chunk("hi"), chunk("", reason)).finish_reason == ours


@pytest.mark.parametrize("reason", [None, ""])
def test_a_whole_answer_needs_no_finish_reason_and_a_stream_does(reason: Any) -> None:
    assert read(completion("hi", reason)) == Completion("hi", "stop")
    with pytest.raises(ServiceError, match="broke off"):
        read_stream(chunk("hi", reason))


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([THINKING, {"type": "text", "text": "Paris."}], "Paris."),
        ([{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}], "Paris."),
        (["Par", {"text": "is."}], "Paris."),
        ([{"type": "reasoning", "text": "hmm"}, {"type": "output_text", "text": "Paris."}], "Paris."),
        ([{"type": "text", "text": {"value": "Paris.", "annotations": []}}], "Paris."),
        ({"type": "text", "text": "Paris."}, "Paris."),
        ([{"type": "redacted_thinking", "data": "xx"}, {"type": "image_url", "image_url": {}}], ""),
        ([], ""),
    ],
)
def test_content_in_parts(content: Any, text: str) -> None:
    assert read(completion(content)).text == text
    assert read_stream(chunk(content), chunk("", "stop")).text == text


@pytest.mark.parametrize(
    "beside",
    [
        {"content": "Paris.", "reasoning_content": "hmm", "reasoning": "hmm"},
        {"content": "Paris.", "reasoning": "hmm", "reasoning_details": [{"type": "reasoning.text", "text": "hmm"}]},
        {"content": [THINKING, {"type": "text", "text": "Paris."}]},
        {
            "content": [
                {"type": "thinking", "thinking": "hmm", "signature": "x"},
                {"type": "text", "text": "Paris."},
            ]
        },
        {"content": [{"type": "reasoning", "text": "hmm"}, {"type": "output_text", "text": "Paris."}]},
    ],
)
def test_reasoning_beside_the_content_is_not_the_answer(beside: dict[str, Any]) -> None:
    usage = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
    body = {"choices": [{"message": beside, "finish_reason": "stop"}], "usage": usage}
    expected = Completion("Paris.", "stop", None, 9, reasoning="hmm", reasoning_tokens=7)
    assert read(body) == expected
    assert read_stream({"choices": [{"delta": beside}]}, chunk("", "stop") | {"usage": usage}) == expected


def test_a_refusal_is_told() -> None:
    body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I can't help with that."
    with pytest.raises(ServiceError, match="I can't help with that") as raised:
        read(body)
    assert raised.value.failure.rejected


COUNTS = [(3, 3), (0, 0), (2**53, 2**53)] + [
    (absurd, None) for absurd in (-1, 2**53 + 1, 10**40, "3", 3.0, 3.5, None, True, [3], {"n": 3})
]


@pytest.mark.parametrize(("given_count", "count"), COUNTS)
def test_absurd_counts_are_none(given_count: Any, count: int | None) -> None:
    for usage in ({"prompt_tokens": given_count}, {"completion_tokens": given_count}):
        for answer in (read(completion("hi", usage=usage)), read_stream(chunk("hi", "stop", usage=usage))):
            assert count in (answer.prompt_tokens, answer.completion_tokens)
            assert None in (answer.prompt_tokens, answer.completion_tokens)


@pytest.mark.parametrize("usage", [None, [], "many", 3, {"prompt_tokens_details": {}}])
def test_usage_of_another_shape_gives_no_counts(usage: Any) -> None:
    assert read(completion("hi", usage=usage)) == Completion("hi", "stop")
    assert read_stream(chunk("hi", "stop", usage=usage)) == Completion("hi", "stop")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "delta", "content", "error", "code", "usage", "finish_reason", "type"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@example({"error": [[]]})
def test_whatever_is_sent_is_an_answer_or_a_failure(body: Any) -> None:
    for attempt in (lambda: read(body), lambda: read_stream(body, chunk("", "stop"))):
        try:
            assert isinstance(attempt().text, str)
        except ServiceError as error:
            assert str(error)


@given(st.binary(max_size=40))
def test_whatever_is_no_json_is_a_failure(body: bytes) -> None:
    with pytest.raises(ServiceError):
        read_completion(body)


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a": ' * 100_000, '"\\ud800"', "\ufeff", "1" * 10_000])
def test_json_made_to_break_a_reader_is_a_failure(body: str) -> None:
    with pytest.raises(ServiceError):
        read_completion(body.encode())

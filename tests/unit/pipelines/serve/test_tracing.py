"""Spans of requests: in memory, and as a collector gets them over OTLP/HTTP."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import pytest
from fake_parts import FakeMember, fake_blender
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import HELLO, chat, served

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.serve.access import Access
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.app import create_app
from llm_blender_ray.pipelines.serve.service import Service
from llm_blender_ray.pipelines.serve.service_metrics import ServiceMetric
from llm_blender_ray.pipelines.serve.telemetry import Telemetry
from llm_blender_ray.pipelines.serve.tracing import CAPTURE, Tracing

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


def ignore(metric: ServiceMetric, value: float, labels: object = None) -> None:
    pass


def traced(tracing: Tracing, blender: Blender, **headers: str) -> httpx2.Response:
    """The answer of a service whose telemetry has been closed since."""
    telemetry = Telemetry(meter=ignore, tracing=tracing)
    app = create_app(Service(blender, Serving(), Access(None), Admission(1, 1), telemetry))
    with served(app) as url, httpx2.Client(base_url=url, headers=headers) as client:
        return chat(client)


def spans_of(blender: Blender, environment: dict[str, str] | None = None) -> dict[str, ReadableSpan]:
    """Spans of one request by name."""
    exporter = InMemorySpanExporter()
    traced(Tracing(SimpleSpanProcessor(exporter), environment or {}), blender, **TRACEPARENT)
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.fixture(scope="module")
def spans() -> dict[str, ReadableSpan]:
    return spans_of(fake_blender(FakeMember("good", "one two three"), FakeMember("bad", error="no treasure")))


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_has_a_child_for_each_member_and_stage(spans: dict[str, ReadableSpan]) -> None:
    assert set(spans) == {"chat blend", "chat good", "chat bad", "queue", "generate", "rank", "fuse"}
    request = spans["chat blend"]
    assert request.context is not None and request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, CALLER)
    for name, span in spans.items():
        assert span.start_time and span.end_time and span.start_time <= span.end_time
        if span is not request:
            assert span.parent and span.parent.span_id == request.context.span_id, name
    assert request.resource.attributes["service.name"] == "llm-blender-ray"


def test_attributes_follow_the_conventions(spans: dict[str, ReadableSpan]) -> None:
    request, good, bad = (attributes(spans[name]) for name in ("chat blend", "chat good", "chat bad"))
    assert request["gen_ai.operation.name"] == "chat"
    assert request["gen_ai.request.model"] == "blend"
    assert request["gen_ai.response.finish_reasons"] == ("stop",)
    assert request["http.response.status_code"] == 200
    assert good["gen_ai.request.model"] == "good"
    used = [attributes(span).get("gen_ai.usage.output_tokens", 0) for span in spans.values()]
    assert request["gen_ai.usage.output_tokens"] == sum(used) - request["gen_ai.usage.output_tokens"]
    assert bad["error.type"] == "_OTHER" and not spans["chat bad"].status.is_ok


def test_no_text_is_recorded_unless_asked_for(spans: dict[str, ReadableSpan]) -> None:
    for span in spans.values():
        assert not any(word in str(attributes(span)) for word in ("hello", "one two three", "treasure"))
    told = spans_of(fake_blender(FakeMember("good", "one two three")), {CAPTURE: "true"})
    asked = json.loads(attributes(told["chat blend"])["gen_ai.input.messages"])
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": HELLO[0]["content"]}]}]
    answered = json.loads(attributes(told["chat good"])["gen_ai.output.messages"])
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": "one two three"}]}]


def test_a_failed_request_is_an_error() -> None:
    request = spans_of(fake_blender(FakeMember("bad", error="no treasure")))["chat blend"]
    assert not request.status.is_ok
    assert attributes(request)["error.type"] == "no_answer"
    assert attributes(request)["http.response.status_code"] == 503


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """What a collector of 127.0.0.1 gets."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-blend")
    yield got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_all_spans_when_the_service_ends(collector: list[ExportTraceServiceRequest]) -> None:
    assert traced(Tracing.over_http(), fake_blender()).status_code == 200
    resources = [one for export in collector for one in export.resource_spans]
    names = {span.name for one in resources for scope in one.scope_spans for span in scope.spans}
    assert names >= {"chat blend", "generate", "rank", "fuse"}
    services = {each.value.string_value for each in resources[0].resource.attributes if each.key == "service.name"}
    assert services == {"my-blend"}


def test_the_log_names_the_trace() -> None:
    async def main() -> tuple[str | None, str | None]:
        telemetry = Telemetry(meter=ignore, tracing=Tracing(SimpleSpanProcessor(InMemorySpanExporter()), {}))
        with telemetry.request("r", "chat") as one, telemetry.request("r", "chat", **TRACEPARENT) as other:
            return one.trace_id, other.trace_id

    own, given = asyncio.run(main())
    assert own and len(own) == 32 and given == TRACE


def test_a_missing_exporter_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BlendError, match=r"pip install 'llm-blender-ray\[otel\]'"):
        Tracing.over_http()

"""OpenTelemetry spans of requests by the conventions for generative AI.

A request's span has a child for each member's answer and for each stage. Names and attributes are those of
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/; texts are recorded only with its opt-in variable.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Candidate, Message, Prompt
from llm_blender_ray.pipelines.online.events import Answered, BlendResult, Event

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SERVICE = "llm-blender-ray"  # name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has one
PROVIDER = "llm_blender_ray"  # of the requests' models
_STAGES = ("generate", "rank", "fuse")  # in the order in which they run
_Attributes = dict[str, Any]


class Tracing:
    """Makes the spans of a gateway, and exports them in the background."""

    def __init__(self, processor: SpanProcessor, environment: Mapping[str, str] = os.environ) -> None:
        """Give the spans to a processor.

        Args:
            processor: Receiver of ended spans.
            environment: Its opt-in variable decides on texts. The SDK reads its own variables itself, such as
                OTEL_TRACES_SAMPLER.
        """
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(__name__)
        self._with_texts = environment.get(CAPTURE, "").lower() in ("true", "span_only", "span_and_event")

    @staticmethod
    def to(exporter: SpanExporter) -> "Tracing":
        """Export spans in batches (`OTEL_BSP_...`)."""
        return Tracing(BatchSpanProcessor(exporter))

    @staticmethod
    def over_http() -> "Tracing":
        """Export over OTLP/HTTP, to the collector of `OTEL_EXPORTER_OTLP_...`.

        Raises:
            BlendError: The exporter is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise BlendError(
                "serve.tracing: OpenTelemetry's exporter is not installed: pip install 'llm-blender-ray[otel]'"
            ) from error

        return Tracing.to(OTLPSpanExporter())

    def request(self, request_id: str, route: str, traceparent: str | None) -> "RequestSpan":
        """Start the span of a request.

        Args:
            request_id: The request's id.
            route: The endpoint's label.
            traceparent: W3C's header: the span of the caller; one that is malformed is ignored.
        """
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
        span = self._tracer.start_span(route, parent, SpanKind.SERVER, {"blend.request.id": request_id})
        return RequestSpan(self, span, route)

    def child(self, parent: Span, name: str, kind: SpanKind, begin_ns: int, attributes: _Attributes) -> Span:
        """Start the span of a part of a request, at an earlier time."""
        return self._tracer.start_span(name, set_span_in_context(parent), kind, attributes, start_time=begin_ns)

    def messages(self, name: str, *messages: tuple[str, str]) -> _Attributes:
        """Attribute of (role, text) messages, if texts are recorded."""
        if not self._with_texts:
            return {}
        parts = [{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in messages]
        return {f"gen_ai.{name}.messages": json.dumps(parts)}

    def close(self) -> None:
        """Export what has not been exported."""
        self._provider.shutdown()


class RequestSpan:
    """Span of one request, with its parts as children."""

    def __init__(self, tracing: Tracing, span: Span, operation: str) -> None:
        self._tracing, self._span, self._operation = tracing, span, operation
        self._tokens = {"input_tokens": 0, "output_tokens": 0}
        self._finish_reasons: list[str] = []
        self._answers: list[tuple[str, str]] = []

    @property
    def trace_id(self) -> str | None:
        """Id of its trace (32 hex digits); None where OpenTelemetry is disabled."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def asks(self, model: str, prompt: Prompt | None) -> None:
        """Set the request's model and prompt."""
        self._span.update_name(f"{self._operation} {model}")
        self._span.set_attributes(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": model,
            }
        )
        if prompt is not None:
            turns: list[Message] = prompt.chat()
            self._span.set_attributes(
                self._tracing.messages("input", *((turn["role"], turn["content"]) for turn in turns))
            )

    def stage(self, name: str, seconds: float) -> None:
        """Add a stage that ends now."""
        now = time.time_ns()
        self._child(name, SpanKind.INTERNAL, now - _ns(seconds), now, {})

    def event(self, event: Event) -> None:
        """Add what an event of the blend completes."""
        match event:
            case Answered(_, candidate, seconds):
                self._member(candidate, seconds)
            case BlendResult():
                self._result(event)

    def end(self, status: int, error: str | None, caller: str | None) -> None:
        """End the request's span.

        Args:
            status: Of HTTP.
            error: Code of the error that the client got.
            caller: Name of its key.
        """
        self._span.set_attribute("http.response.status_code", status)
        if caller is not None:
            self._span.set_attribute("enduser.id", caller)
        if error is not None:
            self._span.set_attribute("error.type", error)
        if error is not None and status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        if self._finish_reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", self._finish_reasons)
            self._span.set_attributes(_usage(self._tokens["input_tokens"], self._tokens["output_tokens"]))
            self._span.set_attributes(self._tracing.messages("output", *self._answers))
        self._span.end()

    def _member(self, candidate: Candidate, seconds: float) -> None:
        now, model = time.time_ns(), candidate.model or ""
        attributes: _Attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        attributes |= _usage(candidate.prompt_tokens, candidate.completion_tokens)
        if candidate.finish_reason:
            attributes["gen_ai.response.finish_reasons"] = [candidate.finish_reason]
        if candidate.text is None:
            attributes["error.type"] = "_OTHER"  # its text may quote the prompt
        else:
            attributes |= self._tracing.messages("output", ("assistant", candidate.text))
        self._child(f"chat {model}", SpanKind.CLIENT, now - _ns(seconds), now, attributes)

    def _result(self, outcome: BlendResult) -> None:
        blend, answer, end = outcome.blend, outcome.answer, time.time_ns()
        if blend.ranking is None and blend.candidates:  # a member alone: no event has its answer
            self._member(blend.candidates[0], outcome.seconds["generate"])
        else:
            about: dict[str, _Attributes] = {
                "rank": {"blend.comparisons": blend.ranking.comparisons if blend.ranking else 0},
                "fuse": {"gen_ai.operation.name": "chat"} | _usage(answer.prompt_tokens, answer.completion_tokens),
            }
            if blend.ranking_usage and blend.ranking_usage.calls:  # an LLM has judged
                judge = blend.ranking_usage
                about["rank"] |= {"gen_ai.operation.name": "chat"}
                about["rank"] |= _usage(judge.prompt_tokens, judge.completion_tokens)
            for stage in reversed([stage for stage in _STAGES if stage in outcome.seconds]):
                begin = end - _ns(outcome.seconds[stage])
                self._child(stage, SpanKind.INTERNAL, begin, end, about.get(stage, {}))
                end = begin
        self._tokens["input_tokens"] += outcome.usage.prompt_tokens
        self._tokens["output_tokens"] += outcome.usage.completion_tokens
        self._finish_reasons.append(answer.finish_reason)
        self._answers.append(("assistant", answer.text))

    def _child(self, name: str, kind: SpanKind, begin_ns: int, end_ns: int, attributes: _Attributes) -> None:
        span = self._tracing.child(self._span, name, kind, begin_ns, attributes)
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)


def _usage(prompt: int | None, completion: int | None) -> _Attributes:
    counts = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion}
    return {name: count for name, count in counts.items() if count is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)

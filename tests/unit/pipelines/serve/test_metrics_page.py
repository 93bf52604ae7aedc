"""The service's page for Prometheus, from the exporters of several nodes."""

import asyncio

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_blender_ray.pipelines.serve.errors import ApiError
from llm_blender_ray.pipelines.serve.metrics_page import MetricsPage, merged

ONE = """\
# HELP ray_blend_requests_total Requests by their result.
# TYPE ray_blend_requests_total counter
ray_blend_requests_total{WorkerId="a",route="chat"} 3.0
# HELP ray_blend_stage_duration_seconds By stage.
# TYPE ray_blend_stage_duration_seconds histogram
ray_blend_stage_duration_seconds_bucket{WorkerId="a",le="0.5",stage="rank"} 1.0
ray_blend_stage_duration_seconds_bucket{WorkerId="a",le="+Inf",stage="rank"} 2.0
ray_blend_stage_duration_seconds_count{WorkerId="a",stage="rank"} 2.0
ray_blend_stage_duration_seconds_sum{WorkerId="a",stage="rank"} 0.75
# HELP ray_serve_replica_processing_queries Queries.
# TYPE ray_serve_replica_processing_queries gauge
ray_serve_replica_processing_queries{deployment="alder"} 1.0
# HELP ray_node_cpu_utilization Percent.
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{instance="1"} 50.0
"""
TWO = ONE.replace('WorkerId="a"', 'WorkerId="b"').replace("alder", "birch").replace(" 3.0", " 4.0")


def series(page: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values by name; each metric is described once."""
    metrics = list(text_string_to_metric_families(page.decode()))
    assert len({metric.name for metric in metrics}) == len(metrics)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_services_series_of_all_nodes_are_one_page() -> None:
    found = series(merged([ONE, TWO]))
    assert found["ray_blend_requests_total"] == [
        ({"WorkerId": "a", "route": "chat"}, 3.0),
        ({"WorkerId": "b", "route": "chat"}, 4.0),
    ]
    assert len(found["ray_blend_stage_duration_seconds_bucket"]) == 4
    replicas = [labels["deployment"] for labels, _ in found["ray_serve_replica_processing_queries"]]
    assert replicas == ["alder", "birch"]
    assert not [name for name in found if not name.startswith(("ray_blend_", "ray_serve_"))]


def test_types_and_descriptions_stay() -> None:
    described = [line for line in merged([ONE, TWO]).decode().splitlines() if line.startswith("#")]
    assert described == [line for line in ONE.splitlines() if line.startswith("#") and "ray_node" not in line]


def test_no_series_is_a_page_too() -> None:
    assert series(merged(["# HELP ray_node_cpu Percent.\n"])) == {}


def test_a_node_that_does_not_answer_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def exporter(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "one":
            return httpx2.Response(200, text=ONE)
        if request.url.host == "two":
            return httpx2.Response(500)
        raise httpx2.ConnectError("connection refused")

    def page_of(*hosts: str) -> bytes:
        page = MetricsPage(lambda: [f"http://{host}:1/metrics" for host in hosts], httpx2.MockTransport(exporter))
        return asyncio.run(page())

    assert series(page_of("one", "two", "three"))["ray_blend_requests_total"][0][1] == 3.0
    assert [record.args[0] for record in caplog.records if record.args] == [
        "http://two:1/metrics",
        "http://three:1/metrics",
    ]
    with pytest.raises(ApiError, match="no exporter of Ray's metrics answers"):
        page_of("two", "three")

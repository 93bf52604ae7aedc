"""The Grafana dashboard asks for metrics and labels that exist, of whatever Prometheus is chosen."""

import functools
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from llm_blender_ray.pipelines.serve.service_metrics import SERVICE_METRICS

DASHBOARD = json.loads((ROOT / "cluster/grafana.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]

# Ray Serve's own metrics, and their labels that the dashboard may use.
SERVE = {
    "serve_autoscaling_target_replicas": {"deployment"},
    "serve_replica_processing_queries": {"deployment"},
    "serve_deployment_queued_queries": {"deployment"},
}
BY_RAY = {"SessionName"}  # labels of every metric that Ray exports
SELECTOR = re.compile(r"ray_(\w+)(?:\{([^{}]*)\})?")


def labels() -> dict[str, set[str]]:
    """The labels of every series, by its name without `ray_`."""
    known = {name: set(names) for name, names in SERVE.items()}
    for metric in SERVICE_METRICS:
        if metric.kind == "histogram":
            known |= {f"{metric.name}_bucket": {*metric.labels, "le"}, f"{metric.name}_count": set(metric.labels)}
        else:
            known[metric.name] = set(metric.labels)
    return known


def queries() -> list[str]:
    variables = [item["definition"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]
    return variables + [target["expr"] for panel in GRAPHS for target in panel["targets"]]


@pytest.mark.parametrize("query", queries())
def test_every_query_is_of_metrics_and_labels_that_exist(query: str) -> None:
    selectors = SELECTOR.findall(query)
    assert selectors
    for name, matchers in selectors:
        assert name in labels(), f"no such metric: {name}"
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        for group in re.findall(r"\bby \(([^()]*)\)", query):
            asked |= {label.strip() for label in group.split(",")}
        asked |= set(re.findall(r"^label_values\(.*, (\w+)\)$", query))
        assert asked <= labels()[name] | BY_RAY
    assert query.count("(") == query.count(")")
    assert query.endswith(", SessionName)") or 'SessionName=~"$session"' in query


def test_every_metric_is_shown() -> None:
    shown = " ".join(queries())
    assert [metric.name for metric in SERVICE_METRICS if f"ray_{metric.name}" not in shown] == []


@functools.cache
def sources_of_serve() -> str:
    spec = importlib.util.find_spec("ray.serve")
    assert spec is not None
    assert spec.origin is not None
    return "".join(file.read_text(encoding="utf-8") for file in Path(spec.origin).parent.glob("_private/**/*.py"))


@pytest.mark.parametrize("name", SERVE)
def test_ray_serve_still_has_the_metric(name: str) -> None:
    assert f'"{name}"' in sources_of_serve()


def test_no_datasource_is_wired_in() -> None:
    queried = [item for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]
    targets = [target for panel in GRAPHS for target in panel["targets"]]
    for part in (*queried, *GRAPHS, *targets):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    (chosen,) = [item for item in DASHBOARD["templating"]["list"] if item["type"] == "datasource"]
    assert (chosen["name"], chosen["query"]) == ("datasource", "prometheus")


def test_every_variable_that_is_used_is_there() -> None:
    used = set(re.findall(r"\$\{?([a-z]\w*)\}?", json.dumps(DASHBOARD)))
    assert used == {item["name"] for item in DASHBOARD["templating"]["list"]}


def test_panels_have_ids_titles_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in GRAPHS:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_it_is_grafanas_last_classic_schema_and_belongs_to_no_installation() -> None:
    assert DASHBOARD["schemaVersion"] == 42  # the one that every Grafana from 12.2 on reads without a migration
    assert DASHBOARD["id"] is None

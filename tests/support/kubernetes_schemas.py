"""Schemas of Kubernetes (kubernetes-validate) and KubeRay (golden/): what a cluster would refuse or ignore."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
from paths import ROOT

KUBERNETES = "1.34"
KUBERAY = ROOT / "tests/golden/kuberay-v1.6.0.json"


@functools.cache
def definitions() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KUBERAY.read_text())
    return found


def check_document(document: dict[str, Any]) -> None:
    """Raise for a missing, unknown or wrong field of a document, pods of Ray's nodes included."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    schema = definitions()
    jsonschema.validate(document["spec"], {**schema, "$ref": f"#/definitions/{document['kind']}"})
    for pod in pods(document["spec"]):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | pod.get("metadata", {})}
        kubernetes_validate.validate(whole | {"spec": pod["spec"]}, KUBERNETES, strict=True)


def pods(spec: Any) -> Iterator[dict[str, Any]]:
    """Templates of pods."""
    for key, value in spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ():
        if key == "template":
            yield value
        else:
            yield from pods(value)

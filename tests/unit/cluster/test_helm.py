"""The Helm chart, rendered by Helm's code, is what Kubernetes and KubeRay take, and the manifest's service."""

from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from kubernetes_schemas import check_document
from paths import ROOT
from ray.serve.schema import ServeDeploySchema

from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.serve import Arguments

helm = pytest.importorskip("helm_python", reason="no wheel of Helm for this platform")

CHART = ROOT / "cluster/helm/llm-blender-ray"
EXAMPLE = yaml.safe_load((ROOT / "cluster/helm/example.yaml").read_text())
INGRESS = {"ingress": {"enabled": True, "host": "blend.test"}}


def rendered(**values: Any) -> dict[str, dict[str, Any]]:
    """The chart's documents by kind, each of them valid."""
    texts = helm.Chart.load(CHART).render(EXAMPLE | values, name="blend-service", namespace="team")
    found = [
        document
        for path, text in texts.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    for document in found:
        check_document(document)
    assert len({document["kind"] for document in found}) == len(found)
    return {document["kind"]: document for document in found}


def groups(documents: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = documents["RayService"]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(documents: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups(documents)]


def config_of(documents: dict[str, Any]) -> BlendConfig:
    serve = ServeDeploySchema.model_validate(yaml.safe_load(documents["RayService"]["spec"]["serveConfigV2"]))
    (application,) = serve.applications
    return BlendConfig.model_validate(Arguments.model_validate(application.args).config)


def test_helm_has_nothing_to_object() -> None:
    report = helm.lint(CHART, EXAMPLE, strict=True)
    assert report["errors"] == []
    assert {message["error"] for message in report["messages"]} <= {"icon is recommended"}


def test_the_examples_service_is_that_of_the_manifest() -> None:
    manifest = next(
        document
        for document in yaml.safe_load_all((ROOT / "cluster/kuberay/rayservice.yaml").read_text())
        if document["kind"] == "RayService"
    )
    documents = rendered(serviceAccount={"name": "blend"}, models={"claim": "blend-models"})
    service = documents["RayService"]
    assert service["metadata"].pop("labels")
    for pod in pods(documents):
        for container in pod["containers"]:
            assert container.pop("imagePullPolicy") == "IfNotPresent"
    ours, theirs = (yaml.safe_load(one["spec"].pop("serveConfigV2")) for one in (service, manifest))
    for node in ours["applications"][0]["args"]["config"]["ray"]["nodes"]:
        if node["num_gpus"] == 0:
            del node["num_gpus"]
    assert ours == theirs
    assert service == manifest


def test_all_that_a_pod_needs_is_there_or_named() -> None:
    documents = rendered()
    assert set(documents) == {"ServiceAccount", "PersistentVolumeClaim", "RayService"}
    for pod in pods(documents):
        assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
        claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if one["name"] == "models"]
        assert claims == [documents["PersistentVolumeClaim"]["metadata"]["name"]]
        assert "imagePullSecrets" not in pod and "nodeSelector" not in pod
    chosen = rendered(serviceAccount={"create": False}, models={"claim": "mine"})
    assert set(chosen) == {"RayService"}
    assert {pod["serviceAccountName"] for pod in pods(chosen)} == {"default"}


def test_image_secrets_and_nodes_are_chosen() -> None:
    worker = {"name": "gpu", "maxReplicas": 2, "cpu": 16, "memory": "128Gi", "gpus": 4}
    documents = rendered(
        image={"repository": "registry.test/blend", "tag": "1", "pullSecrets": ["registry"]},
        head={"nodeSelector": {"pool": "small"}},
        workers=[worker | {"nodeSelector": {"pool": "gpus"}}],
        env={"secret": "", "variables": [{"name": "HF_HUB_OFFLINE", "value": "1"}]},
        gcsFaultToleranceOptions={"redisAddress": "redis:6379"},
    )
    assert [pod["nodeSelector"] for pod in pods(documents)] == [{"pool": "small"}, {"pool": "gpus"}]
    for pod in pods(documents):
        (container,) = pod["containers"]
        assert (container["image"], pod["imagePullSecrets"]) == ("registry.test/blend:1", [{"name": "registry"}])
        assert "envFrom" not in container
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    (node,) = config_of(documents).ray.nodes
    assert (node.count, node.num_cpus, node.num_gpus) == (2, 16, 4)  # the plan knows what the group can grow to
    assert pods(documents)[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_keys_are_a_secrets_file_or_there_are_none() -> None:
    documents = rendered(keys={"secret": "mine"})
    assert config_of(documents).serve.keys_file == "/keys/keys"
    for pod in pods(documents):
        assert {"name": "keys", "secret": {"secretName": "mine"}} in pod["volumes"]
    without = rendered(keys={"secret": ""})
    assert config_of(without).serve.keys_file is None
    assert all([volume["name"] for volume in pod["volumes"]] == ["models"] for pod in pods(without))


def test_a_config_decides_against_the_chart() -> None:
    serve = {"keys_file": "/models/keys", "deadline_s": 30}
    config = EXAMPLE["config"] | {"serve": serve, "ray": {"nodes": [{"count": 1, "num_cpus": 8, "num_gpus": 8}]}}
    documents = rendered(config=config)
    used = config_of(documents)
    assert (used.serve.keys_file, len(used.ray.nodes)) == ("/models/keys", 1)
    options = yaml.safe_load(documents["RayService"]["spec"]["serveConfigV2"])["http_options"]
    assert options["request_timeout_s"] == 35


def test_an_ingress_has_tls_and_bounds() -> None:
    documents = rendered(**INGRESS)
    spec = documents["Ingress"]["spec"]
    assert spec["tls"] == [{"hosts": ["blend.test"], "secretName": "blend-tls"}]
    (rule,) = spec["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"] == {
        "name": "blend-service-serve-svc",
        "port": {"number": 8000},
    }
    bounds = documents["Ingress"]["metadata"]["annotations"]
    assert bounds["nginx.ingress.kubernetes.io/proxy-body-size"] == "1m"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"config": {}}, "models"),
        ({"image": {"repositry": "x"}}, "repositry"),
        ({"workers": [{"name": "gpu", "maxReplicas": 1, "cpu": 1}]}, "memory"),
        ({"ingres": {}}, "ingres"),
    ],
)
def test_values_that_are_wrong_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.HelmError, match=named):
        rendered(**values)


def test_the_schemas_refuse_what_a_cluster_would_ignore() -> None:
    service = rendered()["RayService"]
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["templates"] = {}
    with pytest.raises(ValidationError, match="templates"):
        check_document(service)

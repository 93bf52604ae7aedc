"""What runs the project on machines names only what exists, and all of it agrees: files, commands, ports, versions.

The schemas checked here come with packages (Ray's cluster launcher, Ray Serve's config, Kubernetes, our settings);
KubeRay's are in golden/.
"""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.scripts.scripts as ray_scripts
import typer.main
import yaml
from kubernetes_schemas import check_document, pods
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from llm_blender_ray.cluster.submission import FOLDERS
from llm_blender_ray.configs.loading import load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.cli.commands import app
from llm_blender_ray.pipelines.serve import Arguments
from llm_blender_ray.pipelines.serve.serve_config import IMPORT_PATH, PROXY_SLACK_S

CLUSTER = ROOT / "cluster"
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
IMAGE = "llm-blender-ray"

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and line[0] != "#"
)
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
DOCUMENTS = [(path.name, document) for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
LAUNCHER = CLUSTER / "vm" / "aws.yaml"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
PAGE = (CLUSTER / "README.md").read_text()
EVERYTHING = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*MANIFESTS, LAUNCHER, CLUSTER / "Dockerfile", CLUSTER / "README.md"]
}


def named(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in DOCUMENTS if document["kind"] == kind]


def clusters() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every Ray cluster's spec, with the document it is in."""
    where = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
    found = []
    for _, document in DOCUMENTS:
        if document["kind"] in where:
            spec = document["spec"]
            for key in where[document["kind"]]:
                spec = spec[key]
            found.append((document, spec))
    return found


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def configs() -> list[tuple[str, str]]:
    """Configs within the manifests: the name of the config map or service, and the text."""
    (service,) = named("RayService")
    return [
        *((one["metadata"]["name"], one["data"]["blend.yaml"]) for one in named("ConfigMap")),
        (service["metadata"]["name"], yaml.safe_dump(served()["applications"][0]["args"]["config"])),
    ]


def served() -> dict[str, Any]:
    """The service's Serve config."""
    (service,) = named("RayService")
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


# ---- KubeRay


def uncommented(text: str) -> str:
    """The manifest with its commented parts in force."""
    text = re.sub(r"^( *)# (?=(?:imagePullSecrets|nodeSelector|storageClassName): )", r"\1", text, flags=re.M)
    return re.sub(r"^# ---\n(?:#.*\n)+\Z", lambda part: re.sub(r"^# ?", "", part[0], flags=re.M), text, flags=re.M)


@pytest.mark.parametrize("change", [str, uncommented])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_and_kuberay_take_every_field(path: Path, change: Callable[[str], str]) -> None:
    for document in yaml.safe_load_all(change(path.read_text())):
        check_document(document)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_pod_can_have_a_private_image_and_chosen_nodes(path: Path) -> None:
    for document in yaml.safe_load_all(uncommented(path.read_text())):
        for pod in pods(document.get("spec", {})):
            assert pod["spec"]["imagePullSecrets"] and pod["spec"]["nodeSelector"]


def test_the_commented_ingress_has_tls_and_bounds_and_leads_to_the_service() -> None:
    (service,) = named("RayService")
    (ingress,) = (
        document
        for document in yaml.safe_load_all(uncommented((CLUSTER / "kuberay/rayservice.yaml").read_text()))
        if document["kind"] == "Ingress"
    )
    assert ingress["spec"]["tls"][0]["secretName"]
    assert "nginx.ingress.kubernetes.io/proxy-body-size" in ingress["metadata"]["annotations"]
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": f"{service['metadata']['name']}-serve-svc",
        "port": {"number": PORTS["serve"]},
    }


def test_there_is_one_of_each_kind() -> None:
    assert [len(named(kind)) for kind in ("RayCluster", "RayJob", "RayService")] == [1, 1, 1]
    assert {
        document["apiVersion"] for kind in ("RayCluster", "RayJob", "RayService") for document in named(kind)
    } == {"ray.io/v1"}


@pytest.mark.parametrize(("document", "spec"), clusters(), ids=lambda one: one.get("kind", "spec"))
def test_a_cluster_grows_from_a_head_without_work(document: dict[str, Any], spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == PINNED["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["gpu", "cpu"]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    gpu, cpu = (container(group)["resources"]["limits"] for group in spec["workerGroupSpecs"])
    assert "nvidia.com/gpu" in gpu and "nvidia.com/gpu" not in cpu
    opened = {port["name"]: port["containerPort"] for port in container(spec["headGroupSpec"])["ports"]}
    expected = PORTS if document["kind"] == "RayService" else {k: v for k, v in PORTS.items() if k != "serve"}
    assert opened == expected


@pytest.mark.parametrize(("document", "spec"), clusters(), ids=lambda one: one.get("kind", "spec"))
def test_what_a_pod_refers_to_is_there(document: dict[str, Any], spec: dict[str, Any]) -> None:
    accounts = {one["metadata"]["name"] for one in named("ServiceAccount")}
    claims = {one["metadata"]["name"] for one in named("PersistentVolumeClaim")}
    maps = {name for name, _ in configs()}
    for group in groups(spec):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] in accounts
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            elif "secret" in volume:
                assert f"create secret generic {volume['secret']['secretName']}" in PAGE
            else:
                assert volume["configMap"]["name"] in maps
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert f"HF_HOME={mounts['models']}" in DOCKERFILE
        (secret,) = (source["secretRef"] for source in container(group)["envFrom"])
        assert secret["optional"] and f"create secret generic {secret['name']}" in PAGE
        assert container(group)["resources"]["requests"] == container(group)["resources"]["limits"]


@pytest.mark.parametrize(("name", "text"), configs(), ids=lambda one: one.split("\n")[0])
def test_a_config_within_a_manifest_loads_knows_its_groups_and_fits(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(text)
    config = load(file, BlendConfig)
    (spec,) = (spec for document, spec in clusters() if document["metadata"]["name"] == name)
    limits = [(group["maxReplicas"], container(group)["resources"]["limits"]) for group in spec["workerGroupSpecs"]]
    assert [(one.count, one.num_cpus, one.num_gpus) for one in config.ray.nodes] == [
        (most, float(limit["cpu"]), float(limit.get("nvidia.com/gpu", 0))) for most, limit in limits
    ]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    planned = CliRunner().invoke(app, ["plan", str(file)])
    assert planned.exit_code == 0, planned.output


def test_the_job_runs_a_mounted_config_and_is_tried_again() -> None:
    (job,) = named("RayJob")
    spec = job["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program in PROJECT["scripts"]
    parsed(program, arguments)
    assert mounted(spec["rayClusterSpec"]["headGroupSpec"], arguments[1])
    assert spec["backoffLimit"] >= 1 and spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    config = yaml.safe_load(dict(configs())[job["metadata"]["name"]])
    assert config["input"].startswith("s3://") and config["output"].startswith("s3://")  # a new cluster finds it


def test_the_service_is_a_serve_config_that_holds_all_that_decides_an_update() -> None:
    serve = ServeDeploySchema.model_validate(served())
    assert serve.http_options.port == PORTS["serve"] and serve.http_options.host == "0.0.0.0"
    (application,) = serve.applications
    assert application.route_prefix == "/"
    # an edit of a file beside it would change nothing that Ray Serve or KubeRay compares
    config = BlendConfig.model_validate(Arguments.model_validate(application.args).config)
    assert serve.http_options.request_timeout_s == config.serve.deadline_s + PROXY_SLACK_S


def test_the_services_keys_are_a_file_of_their_own_secret() -> None:
    """Environment variables stay as they were when a process started; a secret's file changes."""
    (service,) = named("RayService")
    keys = Path(served()["applications"][0]["args"]["config"]["serve"]["keys_file"])
    for group in groups(service["spec"]["rayClusterConfig"]):
        (volume,) = (one for one in group["template"]["spec"]["volumes"] if "secret" in one)
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert mounts[volume["name"]] == str(keys.parent)
        assert f"create secret generic {volume['secret']['secretName']} --from-file={keys.name}" in PAGE


def test_the_services_import_path_exists() -> None:
    module, _, attribute = served()["applications"][0]["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    assert served()["applications"][0]["import_path"] == IMPORT_PATH


def mounted(group: dict[str, Any], path: str) -> bool:
    """Whether a config map's file is at a path of a group's pods."""
    pod = group["template"]["spec"]
    (where,) = (mount["mountPath"] for mount in container(group)["volumeMounts"] if mount["name"] == "config")
    (volume,) = (volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "config")
    (data,) = (one["data"] for one in named("ConfigMap") if one["metadata"]["name"] == volume)
    return Path(path).parent == Path(where) and Path(path).name in data


# ---- the cluster launcher


def test_the_launcher_file_is_one() -> None:
    given = yaml.safe_load(LAUNCHER.read_text())
    filled = prepare_config(given)
    validate_config(filled)
    assert not [name for name in filled if name.endswith("setup_commands") and filled[name]]  # nothing is installed
    kinds = given["available_node_types"]
    assert kinds[given["head_node_type"]]["resources"] == {"CPU": 0}
    assert [(kinds[name]["min_workers"], "GPU" in kinds[name]["resources"]) for name in ("gpu", "cpu")] == [
        (0, True),
        (0, False),
    ]
    start = given["head_start_ray_commands"][-1]
    assert f"--port={PORTS['gcs-server']}" in start and f"--dashboard-port={PORTS['dashboard']}" in start
    assert given["worker_start_ray_commands"][-1].endswith(f"$RAY_HEAD_IP:{PORTS['gcs-server']}")
    (token_path,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", "\n".join(given["docker"]["run_options"]))
    assert token_path in given["file_mounts"]


# ---- the image


def test_the_image_has_what_the_project_is() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M)
    sources = [source for line in copied for source in line.split()]
    assert all((ROOT / source).exists() for source in sources)
    assert set(FOLDERS) <= set(sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:].split("/")[0] for line in ignored if line.startswith("!")}
    assert ignored[1] == "*" and sent == set(sources)
    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.M)
    assert exposed and {int(port) for port in exposed[1].split()} == set(PORTS.values())
    assert re.search(r"^USER (?!root)", DOCKERFILE, re.M)
    python = re.search(r"^FROM python:(\d+)\.(\d+)", DOCKERFILE, re.M)
    assert python and f">={python[1]}.{python[2]}" == PROJECT["requires-python"]


@pytest.mark.parametrize(("device", "vllm"), [("cuda", True), ("cpu", False)])
def test_the_image_has_every_dependency(device: str, vllm: bool) -> None:
    command = re.search(r"^RUN (python -c .+?) > requirements.txt", DOCKERFILE, re.M | re.S)
    assert command
    listed = subprocess.run(
        ["bash", "-ec", command[1].replace("python", shlex.quote(sys.executable), 1)],
        env={"DEVICE": device},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    extras = PROJECT["optional-dependencies"]
    assert set(PROJECT["dependencies"]) < set(listed)
    assert all(
        set(extras[extra]) < set(listed) for extra in ("serve", "s3", "report", "train", "evaluation", "otel")
    )
    assert (set(extras["vllm"]) <= set(listed)) == vllm


@pytest.mark.parametrize("where", EVERYTHING)
def test_all_name_the_image_of_this_version(where: str) -> None:
    tags = re.findall(rf"{IMAGE}:([\w.]+)", EVERYTHING[where])
    assert set(tags) <= {PROJECT["version"]}


# ---- commands and files, wherever they are named


@pytest.mark.parametrize("where", EVERYTHING)
def test_every_file_named_exists(where: str) -> None:
    text = EVERYTHING[where]
    paths = re.findall(r"(?<![\w/.~-])((?:cluster|configs|kuberay|vm)/[\w./-]*\w)", text)
    for path in paths:
        assert (ROOT / path).exists() or (CLUSTER / path).exists(), path


@pytest.mark.parametrize("where", EVERYTHING)
def test_every_port_named_is_one_of_ours(where: str) -> None:
    text = EVERYTHING[where]
    ports = re.findall(
        r"(?:(?<=:)|(?<=port )|(?<=port=)|(?<=port-forward service/blend-head-svc ))(\d{4,5})\b", text
    )
    assert {int(port) for port in ports if int(port) < 65536} <= set(PORTS.values())


def commands() -> list[str]:
    """Every command of ours or of Ray's that a manifest or the page shows, in a block or as code."""
    joined = "\n".join(EVERYTHING.values()).replace("\\\n", " ")
    found = re.findall(r"^(?:#\s*|\s*- )?((?:blend|ray) [a-z].+)$|`((?:blend|ray) [a-z][^`]+)`", joined, re.M)
    return sorted({(plain or quoted).split("  #")[0] for plain, quoted in found})


def parsed(program: str, arguments: list[str]) -> None:
    """Fails when the command line doesn't take these arguments."""
    name, *rest = arguments
    group: Any = {"blend": typer.main.get_group(app), "ray": ray_scripts.cli}[program]
    group.commands[name].make_context(name, rest)


@pytest.mark.parametrize("line", [line for line in commands() if "..." not in line and len(line.split()) > 2])
def test_every_command_is_one_the_command_line_takes(line: str) -> None:
    program, *arguments = shlex.split(line)
    parsed(program, arguments)


def test_commands_are_found() -> None:
    used = {tuple(line.split()[:2]) for line in commands()}
    assert {("blend", "run"), ("blend", "submit"), ("ray", "start"), ("ray", "up"), ("ray", "down")} <= used

"""`blend submit` on a real cluster of three Ray nodes that wants a token; its client on connections that break.

What has a token is a process of its own: Ray reads its token once a process, and the tests' own Ray has another.
"""

import asyncio
import contextlib
import json
import os
import pty
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
import yaml
from aiohttp import web
from endpoint_server import EndpointServer, completion, in_a_thread
from ray.job_submission import JobStatus

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster import submission
from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.job_client import JobClient, connect
from llm_blender_ray.cluster.job_paths import CONFIG, local_paths, on_cluster
from llm_blender_ray.cluster.submission import follow, pack_upload
from llm_blender_ray.configs.loading import PRESETS, ConfigError, load, load_mapping
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.configs.training import RankerTraining

TOKEN = "a-token-of-more-than-enough-characters-for-ray"
KUBERAY = Path(submission.__file__).parent / "kuberay"
HELDOUT = PRESETS / "miniature" / "heldout.jsonl"
TWO_MODELS = [
    {"name": n, "engine": "transformers", "model": f"miniature/{n}", "device": "cpu", "num_cpus": 0.1}
    for n in ("alder", "birch")
]

# One process holds all nodes, and ends with this one: its stdin closes then.
NODES = """
import sys
from ray.cluster_utils import Cluster

ports = {"min_worker_port": 0, "max_worker_port": 0, "dashboard_agent_listen_port": 0}

def node(name, **settings):
    # Machines don't share a disk. With one folder for all, a node that unpacks the upload empties it first, while
    # the job imports from there.
    return {"runtime_env_dir_name": f"runtime_resources_{name}", **ports, **settings}

cluster = Cluster(
    initialize_head=True,
    head_node_args=node("head", num_cpus=0, include_dashboard=True, dashboard_host="127.0.0.1"),
)
for num_cpus in (2, 1):
    cluster.add_node(**node(num_cpus, num_cpus=num_cpus))
head = cluster.head_node
print("dashboard", head.address_info["webui_url"], head.get_session_dir_path(), flush=True)
sys.stdin.read()
cluster.shutdown()
"""

FOLLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from llm_blender_ray.cluster.job_client import connect
from llm_blender_ray.cluster.submission import follow
client = connect(sys.argv[1])
print("following", flush=True)
sys.exit(follow(client, sys.argv[2]))
"""


def environment(**token: str) -> dict[str, str]:
    """This one's, with another way to a token (none: the cluster's); `blend` and `ray` are on its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, **(token or {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})}


def blend(*arguments: str, **token: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "llm_blender_ray", *arguments],
        env=environment(**token),
        capture_output=True,
        text=True,
    )


@dataclass
class Jobs:
    """The cluster's job server, as any HTTP client sees it; and what all its nodes write on this machine's disk."""

    url: str
    session: Path

    def written(self, text: str) -> set[str]:
        """Files of the session that contain a text; one that Ray removes meanwhile contains none."""
        found = set()
        for folder, _, names in os.walk(self.session):
            for file in (Path(folder) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if file.is_file() and text.encode() in file.read_bytes():
                        found.add(str(file.relative_to(self.session)))
        return found

    def shown(self) -> str:
        """What Ray shows of jobs, and of the processes of all jobs."""
        lists = ("actors", "tasks", "workers", "runtime_envs")
        return "\n".join(
            self._get(path).text for path in ("/api/jobs/", *(f"/api/v0/{one}?detail=true" for one in lists))
        )

    def ids(self) -> set[str]:
        return {job["submission_id"] for job in self._get("/api/jobs/").json()}

    def status(self, job_id: str) -> str:
        return self._get(f"/api/jobs/{job_id}").json()["status"]

    def start(self, entrypoint: str) -> str:
        answer = requests.post(f"{self.url}/api/jobs/", json={"entrypoint": entrypoint}, headers=self._headers())
        answer.raise_for_status()
        return answer.json()["submission_id"]

    def stop(self, job_id: str) -> None:
        requests.post(f"{self.url}/api/jobs/{job_id}/stop", headers=self._headers()).raise_for_status()

    def _get(self, path: str) -> requests.Response:
        answer = requests.get(f"{self.url}{path}", headers=self._headers())
        answer.raise_for_status()
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    nodes = subprocess.Popen(
        [sys.executable, "-c", NODES],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert nodes.stdout
        lines = (line for line in nodes.stdout if line.startswith("dashboard "))
        _, dashboard, session = next(lines).split()
        yield Jobs(f"http://{dashboard}", Path(session))
    finally:
        nodes.communicate()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two of the miniature's models, by a file elsewhere: as a user's own config names them."""
    data = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    data["models"] = [{**model, "model": str(PRESETS / model["model"])} for model in TWO_MODELS]
    for part in ("ranker", "fuser"):
        data[part]["model"] = str(PRESETS / data[part]["model"])
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


# ---- on a cluster


@pytest.mark.slow
def test_a_run_is_the_same_as_a_job(jobs: Jobs, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--input", str(HELDOUT), "--output", str(out), "--limit", "3", "--set", "fuser.num_beams=1"]
    done = blend("submit", str(config), "--address", jobs.url, "--wait", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert {candidate["model"] for candidate in row["candidates"]} == {"alder", "birch"}
        assert row["fused"] and row["error"] is None
    assert "3 rows" in done.stdout  # the job's log
    assert TOKEN not in done.stdout + done.stderr


def test_a_named_variable_reaches_every_node_and_is_shown_nowhere(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint of a judge is called by an actor, and the head of this cluster runs none."""
    key = f"sk-{secrets.token_hex(16)}"
    monkeypatch.setenv("BLEND_TEST_KEY", key)
    rows = [{"instruction": "Hi", "candidates": [{"model": name, "text": name} for name in ("a", "b")]}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    async def verdict(body: dict[str, Any]) -> dict[str, Any]:
        return completion("[[A]]")

    with in_a_thread(EndpointServer(answer=verdict)) as server:
        llm = {
            "name": "j",
            "engine": "endpoint",
            "model": "m",
            "base_url": server.url,
            "api_key_env": "BLEND_TEST_KEY",
        }
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"ranker": {"kind": "judge", "llm": llm}}))
        done = blend(
            *("submit", "--address", jobs.url, "--wait", "--env", "BLEND_TEST_KEY", "rank"),
            *("--ranker", str(tmp_path / "judge.yaml"), "--input", str(tmp_path / "rows.jsonl")),
            *("--output", str(tmp_path / "ranked.jsonl"), "--strategy", "full"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    ranked = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert len(ranked) == 2 and all(row["scores"] and row["error"] is None for row in ranked)
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {key}"}
    assert "environment variable" not in done.stderr  # nothing is asked of the cluster's machines
    assert "environment.share" in {Path(name).name for name in jobs.written("")}  # so the disks were searched
    shown = jobs.shown()
    assert "BLEND_ENVIRONMENT_SHARE" in shown and "blend.yaml" in shown
    assert key not in shown + done.stdout + done.stderr
    assert not jobs.written(key)


def test_the_rayjobs_command_runs_and_its_failure_is_told(jobs: Jobs, config: Path, tmp_path: Path) -> None:
    """Its entry point as it stands, but for where the config is; here with rows that aren't there."""
    documents = yaml.safe_load_all((KUBERAY / "rayjob.yaml").read_text())
    (entrypoint,) = (one["spec"]["entrypoint"] for one in documents if one["kind"] == "RayJob")
    missing = tmp_path / "missing.jsonl"
    data = {**yaml.safe_load(config.read_text()), "input": str(missing), "output": str(tmp_path / "out")}
    config.write_text(yaml.safe_dump(data))
    job_id = jobs.start(entrypoint.replace("/config/blend.yaml", str(config)))
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, jobs.url, job_id], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"blend: {missing}: no such file" in done.stdout
    assert "failed with exit code 1" in done.stderr


def test_without_waiting_it_says_how_to_follow(jobs: Jobs, config: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    rows = ["--input", str(HELDOUT), "--output", str(tmp_path / "out")]
    done = blend(
        "submit",
        str(config),
        "--address",
        jobs.url,
        *rows,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
    )
    job_id = done.stdout.strip()
    assert done.returncode == 0 and job_id in jobs.ids()
    jobs.stop(job_id)
    shown = [line.partition(" it: ")[2] for line in done.stderr.splitlines()[-2:]]
    assert shown == [
        f"ray job logs --follow --address {jobs.url} {job_id}",
        f"ray job stop --address {jobs.url} {job_id}",
    ]
    for command in shown:
        subprocess.run(command.split(), env=environment(), check=True, capture_output=True)


def test_a_mistake_submits_nothing(jobs: Jobs, config: Path) -> None:
    before = jobs.ids()
    done = blend("submit", str(config), "--address", jobs.url, "--output", "out", "--set", "fuser.beams=2")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"blend: {config}: fuser.beams: unknown setting"]
    assert jobs.ids() == before


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token-of-more-than-enough-characters"}, "refuses"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "missing"}, "there is none"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token"),
    ],
    ids=["wrong", "missing", "off"],
)
def test_a_token_that_does_not_do_is_one_line(
    jobs: Jobs, config: Path, environment: dict[str, str], problem: str
) -> None:
    rows = ["--input", "s3://bucket/in/", "--output", "s3://bucket/out/"]
    done = blend("submit", str(config), "--address", jobs.url, *rows, **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert problem in line and "RAY_AUTH_TOKEN" in line
    assert "characters" not in line  # of the token


@dataclass
class Terminal:
    """A process that has a terminal, as a person's shell gives it."""

    process: subprocess.Popen
    screen: int
    seen: str = ""

    def wait_for(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self.screen, 4096).decode()  # fails when the process ends first

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)


@pytest.fixture
def following(jobs: Jobs) -> Iterator[Callable[[str], Terminal]]:
    opened: list[Terminal] = []

    def follow(job_id: str) -> Terminal:
        screen, keyboard = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", FOLLOW, jobs.url, job_id],
            env=environment(),
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
        )
        os.close(keyboard)
        opened.append(Terminal(process, screen))
        return opened[-1]

    yield follow
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)


def test_ctrl_c_asks_before_it_stops_a_job(jobs: Jobs, following: Callable[[str], Terminal]) -> None:
    job_id = jobs.start("echo begun; sleep 600")
    for answer, after in (("n\n", "RUNNING"), ("y\n", "STOPPED")):
        terminal = following(job_id)
        terminal.wait_for("begun")
        terminal.ctrl_c()
        terminal.wait_for("[y/N]")
        assert jobs.status(job_id) == "RUNNING"
        terminal.type(answer)
        assert terminal.process.wait() == 130
        assert jobs.status(job_id) == after


def test_a_second_ctrl_c_leaves_the_job_running(jobs: Jobs, following: Callable[[str], Terminal]) -> None:
    job_id = jobs.start("echo begun; sleep 600")
    terminal = following(job_id)
    terminal.wait_for("begun")
    terminal.ctrl_c()
    terminal.wait_for("[y/N]")
    terminal.ctrl_c()
    terminal.wait_for("the job keeps running")
    assert terminal.process.wait() == 130
    assert jobs.status(job_id) == "RUNNING"
    jobs.stop(job_id)


def test_without_a_terminal_ctrl_c_leaves_the_job_running(jobs: Jobs) -> None:
    job_id = jobs.start("echo begun; sleep 600")
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, jobs.url, job_id],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any("begun" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130 and "the job keeps running" in told
    assert jobs.status(job_id) == "RUNNING"
    jobs.stop(job_id)


# ---- what is uploaded


def _demo(*overrides: str) -> BlendConfig:
    config = load(PRESETS / "demo.yaml", BlendConfig, overrides)
    return config.model_copy(update={"input": "s3://rows/in/", "output": "s3://rows/out/"})


def test_the_upload_is_code_config_and_the_models_it_uses(tmp_path: Path) -> None:
    config = _demo(f"models={json.dumps(TWO_MODELS)}", "ray.address=auto", "ranker.strategy.kind=swiss")
    pack_upload(config, tmp_path)
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {
        "llm_blender_ray/__init__.py",
        "llm_blender_ray/pipelines/__main__.py",
        "llm_blender_ray/actors/records.py",
        "llm_blender_ray/cluster/session.py",
        "llm_blender_ray/configs/loading.py",
        CONFIG,
    } <= files
    models = {Path(name).parts[3] for name in files if name.startswith("llm_blender_ray/configs/miniature/")}
    assert models == {"alder", "birch", "ranker", "fuser"}
    assert not [name for name in files if "__pycache__" in name or name.startswith(("tests", "out", "."))]


def test_the_uploaded_config_is_the_one_that_was_checked(tmp_path: Path) -> None:
    config = _demo("ray.address=auto", "ranker.strategy={kind: swiss, rounds: 3}", "models.0.sampling.max_tokens=7")
    pack_upload(config, tmp_path)
    uploaded = load(tmp_path / CONFIG, BlendConfig)
    assert uploaded.ray.address is None  # the job's own cluster
    assert uploaded.models[0].model == str(tmp_path / "llm_blender_ray" / "configs" / "miniature" / "alder")
    given = json.loads(
        config.model_dump_json().replace(str(PRESETS), str(tmp_path / "llm_blender_ray" / "configs"))
    )
    given["ray"]["address"] = None
    assert json.loads(uploaded.model_dump_json()) == given


def test_a_training_config_travels_with_its_included_backbone(tmp_path: Path) -> None:
    settings = {
        "train": "s3://rows/train/",
        "output": "s3://models/mine/",
        "backbone": "miniature/ranker",
        "metrics": ["gpt4"],
        "optimization": {"learning_rate": 1e-4},
    }
    config = load_mapping(settings, RankerTraining, name="mine.yaml")
    pack_upload(config, tmp_path)
    uploaded = load(tmp_path / CONFIG, RankerTraining)
    assert uploaded.backbone == str(tmp_path / "llm_blender_ray" / "configs" / "miniature" / "ranker")
    assert (Path(uploaded.backbone) / "config.json").is_file()
    assert uploaded == config.model_copy(update={"backbone": uploaded.backbone})


def test_a_hub_config_uploads_code_alone(tmp_path: Path) -> None:
    pack_upload(load(PRESETS / "three-models.yaml", BlendConfig), tmp_path)
    assert not (tmp_path / "llm_blender_ray" / "configs" / "miniature").exists()
    assert load(tmp_path / CONFIG, BlendConfig) == load(PRESETS / "three-models.yaml", BlendConfig)


def test_too_much_to_upload_is_refused_by_its_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MAX_UPLOAD_MB", 1)
    with pytest.raises(
        ConfigError, match=r"MB to upload, more than 1; the largest is llm_blender_ray/configs/miniature/\S+ \("
    ):
        pack_upload(_demo(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_paths_are_the_clusters(tmp_path: Path) -> None:
    assert on_cluster("input", "s3://rows/in/", here=False) == "s3://rows/in/"
    assert on_cluster("input", "/data/in.jsonl", here=False) == "/data/in.jsonl"
    assert on_cluster("input", "in.jsonl", here=True) == str(Path("in.jsonl").absolute())
    for relative in ("in.jsonl", "./in/", "~/in.jsonl"):
        with pytest.raises(ConfigError, match=r"^input: .*s3://"):
            on_cluster("input", relative, here=False)
    mine = tmp_path / "model"
    config = _demo(f"fuser.model={mine}").model_copy(update={"output": "/data/out"})
    assert local_paths(config) == ["/data/out", str(mine)]


# ---- the client


@dataclass
class Breaking:
    """Speaks enough of Ray's job API to lose a follower in every way a network does."""

    log: str = "one\ntwo\nthree\n"
    code: int | None = 0
    tails: int = 0
    questions: int = 0
    stopped: bool = False
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0"})

    async def job(self, request: web.Request) -> web.Response:
        self.questions += 1
        if self.questions == 1 and request.transport:
            request.transport.abort()
        over = self.tails >= 3
        status = {0: JobStatus.SUCCEEDED}.get(self.code, JobStatus.FAILED) if over else JobStatus.RUNNING
        details = {"type": "SUBMISSION", "submission_id": "job", "status": status, "entrypoint": "x"}
        return web.json_response(
            {**details, "driver_exit_code": self.code if over else None, "message": "no\nnode"}
        )

    async def whole_log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        self.tails += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("one\n")
        if self.tails == 1 and request.transport:
            request.transport.abort()  # cut
            return socket
        await socket.send_str("two\n")
        return socket  # closed in good order before the job's end, as a proxy does it; the last time for good

    def __enter__(self) -> "Breaking":
        app = web.Application()
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/jobs/job", self.job)
        app.router.add_get("/api/jobs/job/logs", self.whole_log)
        app.router.add_get("/api/jobs/job/logs/tail", self.tail)
        self._runner = web.AppRunner(app)
        self._loop.run_until_complete(self._runner.setup())
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = self._runner.addresses[0][1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    def client(self) -> JobClient:
        return connect(f"http://127.0.0.1:{self.port}")


@pytest.mark.parametrize(("driver", "expected"), [(0, 0), (1, 1), (3, 3), (-9, 137), (None, 1)])
def test_a_log_is_printed_once_through_broken_connections(
    driver: int | None, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(submission, "RETRY_S", 0.001)
    with Breaking(code=driver) as server:
        assert follow(server.client(), "job") == expected
    printed = capsys.readouterr()
    assert printed.out == "one\ntwo\nthree\n"
    assert printed.err.splitlines()[0] == "blend: connection lost, trying again"
    if driver is None:
        assert "blend: job job failed: no node" in printed.err


def test_contact_that_stays_lost_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "RETRY_S", 0.001)
    monkeypatch.setattr(submission, "LOST_S", 0.0)
    with Breaking() as server:
        client = server.client()
    with pytest.raises(ClusterError, match=r"no answer .*; the job may still run\. to follow it: ray job logs"):
        follow(client, "job")


def test_a_job_the_cluster_does_not_know_is_one_line() -> None:
    with Breaking() as server, pytest.raises(ClusterError, match=r"HTTP 404: .*Not Found$"):
        server.client().get_job_info("another")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://", "ftp://host", "http://host:port"])
def test_an_address_that_is_no_dashboards_is_wrong_use(address: str) -> None:
    with pytest.raises(ConfigError, match="expected the dashboard's address, http://HOST:8265"):
        connect(address)


def test_where_nothing_or_something_else_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with Breaking() as server:
        port = server.port
        monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the address that was given counts
        assert isinstance(server.client(), JobClient)
        with pytest.raises(ClusterError, match="isn't Ray's dashboard"):
            connect(f"http://127.0.0.1:{port}/elsewhere/")
    with pytest.raises(BlendError, match="no answer"):
        connect(f"127.0.0.1:{port}")

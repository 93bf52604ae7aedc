"""Comparisons of `blend judge` lost or paid twice when it is killed; JSON in the last line.

    python -m llm_blender_ray.pipelines.bench.judge_kills --rows 200 --kills 3

A local HTTP server answers as a judge after a short time, and counts. The command judges rows of four answers;
SIGKILL ends it with all its processes at moments drawn with a seed, and the same command is repeated. Counted are
comparisons missing in the output, and pairs that the server answered more than once. Only calls whose reply was on
its way when the process died can be among these: at most `max_in_flight` for each kill.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import yaml

from llm_blender_ray.cluster.processes import descendants, wait_until
from llm_blender_ray.pipelines.quality.judgements import read_judgements
from llm_blender_ray.pipelines.rows.readers import read_rows

_ANSWERS = 4
_REPLY_S = 0.05
_VERDICTS = ("[[A]]", "[[B]]", "[[C]]")


class _Counting(ThreadingHTTPServer):
    """Judge over HTTP. `answered`: prompts whose reply was sent whole."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answered: Counter[str] = Counter()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client was killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Counting

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        time.sleep(_REPLY_S)
        choice = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": _VERDICTS[len(prompt) % 3]}
        usage = {"prompt_tokens": 100, "completion_tokens": 5}
        data = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        with suppress(ConnectionError):
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            with self.server.lock:
                self.server.answered[prompt] += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def kill_and_repeat(folder: Path, rows: int, kills: int, seed: int, max_in_flight: int) -> dict[str, Any]:
    """Judge rows, killed at random moments; see the module."""
    draw = random.Random(seed)
    with (folder / "in.jsonl").open("w") as file:
        for row in range(rows):
            texts = [f"answer {draw.random()}{' and more' * draw.randrange(9)}" for _ in range(_ANSWERS)]
            candidates = [{"model": f"m{i}", "text": text} for i, text in enumerate(texts)]
            file.write(json.dumps({"instruction": f"question {row}", "candidates": candidates}) + "\n")
    comparisons = rows * _ANSWERS * (_ANSWERS - 1)
    server = _Counting()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    llm = {"engine": "endpoint", "name": "judge", "model": "m", "base_url": url, "max_in_flight": max_in_flight}
    paths = {name: str(folder / f"{name}.jsonl") for name in ("in", "out")}
    config = {"judges": [{"llm": llm}], "input": paths["in"], "output": paths["out"], "ray": {"num_cpus": 2}}
    (folder / "judge.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "llm_blender_ray", "judge", str(folder / "judge.yaml")]

    def after(count: int) -> Callable[[], bool]:
        return lambda: server.answered.total() >= count

    at_kills = []
    for count in sorted(draw.sample(range(1, comparisons), kills)):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wait_until(after(count), process)
            at_kills.append(server.answered.total())
            for one in [*descendants(process), psutil.Process(process.pid)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    server.shutdown()
    found = sum(len(read_judgements(row)) for row in read_rows(paths["out"]))
    twice = sum(count - 1 for count in server.answered.values())
    return {
        "rows": rows,
        "comparisons": comparisons,
        "killed_after": at_kills,
        "lost": comparisons - found,
        "answered_twice": twice,
        "on_their_way_at_most": kills * max_in_flight,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Kill blend judge, count lost and repeated comparisons.")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-in-flight", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                kill_and_repeat(Path(folder), options.rows, options.kills, options.seed, options.max_in_flight)
            )
        )


if __name__ == "__main__":
    main()

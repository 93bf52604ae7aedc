"""A judge's process killed in the middle of a block, again and again: what was answered is kept, and paid once."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from endpoint_server import EndpointServer, completion, in_a_thread

from llm_blender_ray.cluster.processes import wait_until
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

ROWS, ANSWERS, KILLS = 4, 3, 3
ANSWERED = 5  # before each kill
COMPARISONS = ROWS * ANSWERS * (ANSWERS - 1)
# What a run's actor does with a block (`pipelines.bulk.worker`), without Ray.
ACTOR = """
import asyncio, sys
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.judges import JudgeConfig
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.reuse import Reuse
from llm_blender_ray.pipelines.bulk.stages import STAGES, StageSpec

root, url = sys.argv[1:]
llm = {"engine": "endpoint", "name": "j", "model": "m", "base_url": url, "max_in_flight": 4}
judge = JudgeConfig.model_validate({"judges": [{"llm": llm}]}).parts["j"]
store = CheckpointStore(root)
reuse = Reuse(StageSpec(place("j", judge, Capacity.machine(1)), "judge-j", scorer="s"), store)
pending = reuse.pending("block", store.rows("mark", "0"), None)
done = asyncio.run(STAGES["judge"](judge)(pending.asked, pending.known))
session = {"attempt": 0, "actor": "a", "started": 0.0, "ended": 1.0}
store.save_result("judge-j", "block", reuse.result("block", pending, done, session))
"""


def test_no_comparison_is_lost_and_none_is_paid_twice(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    rows = [
        {
            "instruction": f"question {row}",
            "candidates": [{"model": f"m{i}", "text": f"{i}"} for i in range(ANSWERS)],
        }
        for row in range(ROWS)
    ]
    store.save_rows("mark", "0", pa.Table.from_pylist([read_row(row, "") for row in rows], schema=ROW_SCHEMA))
    answered: Counter[str] = Counter()
    allowed = threading.Semaphore(0)

    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        while not allowed.acquire(blocking=False):  # a call without an answer costs nothing
            await asyncio.sleep(0.01)
        answered[body["messages"][0]["content"]] += 1
        return completion("[[A]]", usage={"prompt_tokens": 10, "completion_tokens": 1})

    @contextlib.contextmanager
    def actor(url: str) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen([sys.executable, "-c", ACTOR, str(tmp_path), url]) as process:
            try:
                yield process
            finally:
                process.kill()

    def kept() -> int:
        return len(store.replies("judge-j", "block", 0))

    for kill in range(1, KILLS + 1):
        with in_a_thread(EndpointServer(answer=answer)) as server, actor(server.url) as process:
            allowed.release(ANSWERED)
            assert wait_until(lambda of=kill: kept() == ANSWERED * of, process)
    with in_a_thread(EndpointServer(answer=answer)) as server, actor(server.url) as process:
        allowed.release(COMPARISONS)
        assert process.wait(60) == 0
    assert (len(answered), set(answered.values())) == (COMPARISONS, {1})
    result = store.result("judge-j", "block")
    assert result is not None
    counted = {name: result.account[name] for name in ("comparisons", "calls", "left_out")}
    assert counted == {"comparisons": COMPARISONS, "calls": COMPARISONS, "left_out": 0}
    assert result.account["prompt_tokens"] == 10 * COMPARISONS

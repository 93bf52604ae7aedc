"""Bulk runs with a budget: what a service bills is within it, and a higher one continues the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, completion, in_a_thread

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.schema import BlendConfig, RankerSection
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import run_blend, run_rank
from llm_blender_ray.pipelines.bulk.summary import FailedRunError

ROWS = 40
PRICES = {"far": {"input": 10, "output": 100}, "ranker": {"input": 1, "output": 10}}


async def reply(body: dict[str, Any]) -> dict[str, Any]:
    text = "[[A]]" if body["model"] == "judge" else f"answer to {body['messages'][-1]['content']}"
    return completion(text, usage={"prompt_tokens": 100, "completion_tokens": 50})


def billed(server: EndpointServer) -> float:
    """USD, by the service's own books."""
    calls = [request.body["model"] for request in server.requests]
    return sum({"far": 0.006, "judge": 0.0006}[model] for model in calls)


def blend(folder: Path, url: str, **more: Any) -> BlendConfig:
    def llm(name: str) -> dict[str, Any]:
        own = {"name": name, "engine": "endpoint", "model": name, "base_url": url, "num_cpus": 0.1}
        return own | {"max_error_rate": 1, "max_in_flight": 64, "sampling": {"max_tokens": 100}}

    settings = {
        "models": [{"name": "echo", "engine": "echo", "model": "m", "num_cpus": 0.1}, llm("far")],
        "ranker": {"kind": "judge", "llm": llm("judge")},
        "rows_per_block": 10,
        "input": str(folder / "in.jsonl"),
        "output": str(folder / "out.jsonl"),
        "prices": PRICES,
    }
    return BlendConfig.model_validate(settings | more)


@pytest.fixture(autouse=True)
def questions(tmp_path: Path) -> None:
    rows = [json.dumps({"id": f"r{i}", "prompt": f"question {i}"}) for i in range(ROWS)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))


@pytest.mark.usefixtures("ray_session")
def test_a_run_stops_at_its_budget_and_a_higher_one_continues_it(tmp_path: Path) -> None:
    with in_a_thread(EndpointServer(answer=reply)) as server:
        with pytest.raises(FailedRunError, match=r"budget\.usd_per_run 0\.1 has no room for more calls") as stopped:
            run_blend(blend(tmp_path, server.url, budget={"usd_per_run": 0.1}))
        assert 0.05 < billed(server) <= 0.1
        assert "budget spent: a call that may cost $" in "\n".join(stopped.value.details)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len(rows) == ROWS
        store, before = CheckpointStore(str(tmp_path / ".out.jsonl.blend")), len(server.requests)
        assert store.balances()["run"] / 1e9 == pytest.approx(billed(server))
        with pytest.raises(FailedRunError, match="has no room"):  # the same: nothing is asked again
            run_blend(blend(tmp_path, server.url, budget={"usd_per_run": 0.1}))
        assert len(server.requests) == before
        whole = run_blend(blend(tmp_path, server.url, budget={"usd_per_run": 5}))
        assert whole.manifest.budget is not None
        assert (
            whole.manifest.budget.spent_usd
            == pytest.approx(billed(server))
            == pytest.approx(store.balances()["run"] / 1e9)
        )
        assert whole.manifest.cost_usd == pytest.approx(billed(server))
        assert any(line.startswith(f"cost: ${billed(server):.4g}, ") for line in whole.details())
        assert whole.manifest.output.errors == whole.manifest.unpaid == 0
        asked = [request.body["model"] for request in server.requests]
        assert asked.count("far") == ROWS  # what was paid for is kept
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert all(len(row["ranking"]) == 2 and "cost_usd" not in row for row in rows)
        run_blend(blend(tmp_path, server.url, row_costs=True), update=True)  # of what is there already
        assert len(server.requests) == len(asked)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(billed(server))


@pytest.mark.usefixtures("ray_session")
def test_ranking_alone_keeps_to_the_budget_of_its_config(tmp_path: Path) -> None:
    candidates = [{"model": name, "text": f"answer {name}"} for name in "ab"]
    rows = [json.dumps({"id": f"r{i}", "prompt": f"question {i}", "candidates": candidates}) for i in range(ROWS)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    with in_a_thread(EndpointServer(answer=reply)) as server:
        config = blend(tmp_path, server.url)
        places = str(tmp_path / "in.jsonl"), str(tmp_path / "ranked.jsonl")

        def section(usd: float) -> RankerSection:
            return RankerSection(ranker=config.ranker, prices=config.prices, budget={"usd_per_run": usd})

        with pytest.raises(FailedRunError, match=r"budget\.usd_per_run 0\.02 has no room for more calls"):
            run_rank(section(0.02), *places)
        assert 0.01 < billed(server) <= 0.02
        whole = run_rank(section(1), *places)
        assert whole.manifest.cost_usd == pytest.approx(billed(server))
        assert len(server.requests) == 2 * ROWS  # what was paid for is kept


@pytest.mark.parametrize("prices", [{}, {"far": {"input": 1, "output": 1}}])
def test_a_budget_needs_the_price_of_every_endpoint(tmp_path: Path, prices: dict[str, Any]) -> None:
    name = "ranker" if prices else "far"
    with pytest.raises(BlendError, match=rf"the price of {name} is unknown .*; set prices\.{name}"):
        run_blend(blend(tmp_path, "http://127.0.0.1:9/v1", prices=prices, budget={"usd_per_run": 1}))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_damaged_record_of_what_was_spent_is_no_zero(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save_balances({"run": 7})
    assert store.balances() == {"run": 7}
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(BlendError, match="what was spent is unknown"):
        store.balances()

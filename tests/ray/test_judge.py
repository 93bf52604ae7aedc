"""`blend judge` on Ray: several judges over a service, failures that are asked about again, and nothing twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, completion, in_a_thread, respond

from llm_blender_ray.configs.judges import JudgeConfig
from llm_blender_ray.pipelines.bulk.judge import run_judge
from llm_blender_ray.pipelines.quality.judgements import read_outcomes
from llm_blender_ray.pipelines.rows.readers import read_rows

TEXTS = {"a": "one", "b": "three", "c": "seventeen"}


class Service(EndpointServer):
    """Judges by length; `down`: a text on which it fails."""

    down = "seventeen"

    async def _reply(self, request: Any, writer: Any) -> None:
        text = request.body["messages"][0]["content"]
        if request.body["model"] == "first" and self.down in text:
            await respond(503, {"error": {"message": "down"}})(writer)
            return
        left, right = (part.split("\n")[2] for part in text.partition("Answer A:")[2].split("Answer B:"))
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        await respond(200, completion("[[A]]" if len(left) > len(right) else "[[B]]", usage=usage))(writer)

    def calls(self) -> Counter[str]:
        """Calls by model since the last look."""
        found = Counter(request.body["model"] for request in self.requests)
        self.requests.clear()
        return found


@pytest.mark.usefixtures("ray_session")
def test_two_judges_a_retry_and_another_design(tmp_path: Path) -> None:
    candidates = [{"model": name, "text": text} for name, text in TEXTS.items()]
    rows = [{"id": f"r{i}", "instruction": f"p{i}", "candidates": candidates} for i in range(2)]
    rows.append({"id": "bad", "instruction": "p", "candidates": candidates, "error": "given"})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def config(url: str, **pairs: Any) -> JudgeConfig:
        own = {"engine": "endpoint", "base_url": url, "max_retries": 0, "breaker": None, "num_cpus": 0.1}
        judges = [{"llm": own | {"name": f"j-{model}", "model": model}} for model in ("first", "second")]
        judges[0]["llm"]["max_error_rate"] = 1
        paths = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
        return JudgeConfig.model_validate({"judges": judges, "pairs": pairs} | paths)

    with in_a_thread(Service()) as server:
        summary = run_judge(config(server.url))
        first, second = summary.manifest.stages
        assert (first.comparisons, first.left_out, first.failed, first.retryable) == (4, 8, 0, 2)
        assert (second.comparisons, second.left_out, second.asked) == (12, 0, 2)
        assert "j-first: no verdict on 8 of 12 comparisons (66.7%): 8 x 503: down" in summary.details()
        # once more for each failure, as judges of rankers do
        assert server.calls() == {"first": 4 + 2 * 8, "second": 12}
        assert [one["judge"] for one in summary.manifest.judges or ()] == ["j-first", "j-second"]

        server.down = "no such text"
        again = run_judge(config(server.url), retry_failed=True)
        assert server.calls() == {"first": 8}
        assert (again.manifest.stages[0].comparisons, again.manifest.stages[0].left_out) == (12, 0)

        run_judge(config(server.url, baseline="a"), update=True)  # pairs that are there already
        assert server.calls() == {}

    read = list(read_rows(str(tmp_path / "out.jsonl")))
    assert [row["error"] for row in read] == [None, None, "given"]
    outcomes = list(read_outcomes(read))
    assert Counter(one.judge for one in outcomes) == {"j-first": 8, "j-second": 8}
    assert {(one.left, one.right, one.preferred) for one in outcomes} == {
        ("a", "b", "right"),
        ("b", "a", "left"),
        ("a", "c", "right"),
        ("c", "a", "left"),
    }

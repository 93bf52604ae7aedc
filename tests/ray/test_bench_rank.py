"""`blend bench`: real rankers, small rows; the numbers that can be checked are checked, the rates only exist."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from llm_blender_ray.actors.scorers import load_scorer
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import EchoRanker, PairRanker
from llm_blender_ray.configs.strategies import Full, Strategy
from llm_blender_ray.pipelines.bench.machine import matrix_rate
from llm_blender_ray.pipelines.bench.pool import SIMULATED
from llm_blender_ray.pipelines.bench.pool import main as measure_pool
from llm_blender_ray.pipelines.bench.rank import ReplayScorer, agreement, describe_rank, main, play, read_workload

RANKER = PairRanker(model=str(PRESETS / "miniature" / "ranker"), device="cpu")
STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of five answers whose scores say that the longer is the better."""
    rows = [json.loads(line) for line in (PRESETS / "miniature" / "heldout.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        parts = row["output"].split()
        texts = [" ".join(parts[:count]) for count in range(len(parts) - 4, len(parts) + 1)]
        row["candidates"] = [{"model": f"m{i}", "text": t, "scores": {"length": i}} for i, t in enumerate(texts)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"instruction": "q", "candidates": [{"text": "one"}]}])))
    return path


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_what_is_measured(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategies = [STRATEGY.validate_python(text) for text in ("full:orders=one", "knockout", "reference")]
    main(RANKER, str(file), limit=None, top_k=2, strategies=strategies)
    result = last_line(capsys.readouterr().out)
    assert result["rows"] == 4 and result["candidates"] == 5
    lines = result["strategies"]
    assert list(lines) == ["full", "default", "full:orders=one", "knockout", "reference"]
    assert lines["full"]["forwards"] == 20 and lines["full"]["agreement"] == 1
    assert lines["full:orders=one"]["forwards"] == 10 and lines["reference"]["forwards"] == 8
    for line in lines.values():
        assert 0 <= line["agreement"] <= 1 and 0 <= line["scores"]["length"]["first"] <= 4
    for run in ("full", "default"):
        rates = result[run]
        assert all(value > 0 for name, value in rates.items() if name != "padding_share")
        assert rates["matrix_rate_share"] < 1
    assert 0 <= result["full"]["padding_share"] < 0.1


def test_a_replay_gives_what_the_scorer_gives(file: Path) -> None:
    rows = read_workload(str(file), None).rows
    scorer = load_scorer(RANKER)
    settings = RANKER.model_copy(update={"top_k": 2})
    full = play(settings, Full(), scorer, rows)
    replay = ReplayScorer(scorer.traits, rows, full.rankings)
    for text in ("focus", "swiss", "knockout", "sparse-refine", "bubble"):
        strategy = STRATEGY.validate_python(text)
        real, replayed = (play(settings, strategy, each, rows) for each in (scorer, replay))
        assert [ranking.order for ranking in real.rankings] == [ranking.order for ranking in replayed.rankings]
        assert real.forwards == replayed.forwards < full.forwards
        assert real.rounds == replayed.rounds
    assert agreement(full, full, 2) == 1


@pytest.mark.parametrize(
    "text", ["full", "full:orders=one", "swiss:rounds=2,confidence=0.9", "reference:reference=3"]
)
def test_a_strategy_is_told_as_it_is_given(text: str) -> None:
    assert describe_rank(STRATEGY.validate_python(text)) == text


def test_matrix_rate_is_that_of_a_machine() -> None:
    import torch

    assert 1e8 < matrix_rate(torch.float32, torch.device("cpu")) < 1e15


@pytest.mark.usefixtures("ray_session")
def test_pool(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure_pool(EchoRanker(kind="echo"), str(file), replicas=2, limit=1, simulated_s=0.0)
    result = last_line(capsys.readouterr().out)
    assert result["real"]["replicas"] == 2 and result["real"]["times_faster"] > 0
    assert [line["replicas"] for line in result["simulated"]] == list(SIMULATED)
    assert result["simulated"][0]["share_of_ideal"] == 1

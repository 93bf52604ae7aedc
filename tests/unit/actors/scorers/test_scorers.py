"""What every scorer in this process does alike: it ends its threads when it is closed, and no call in the midst."""

import asyncio
import threading
from pathlib import Path

import pytest
from tiny_models import save_classifier

from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.actors.scorers import Scorer, load_scorer
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import PairRanker, RewardModel

MATCHUPS = [Matchup(Prompt("1", "capital of France"), left, "Rome") for left in ("Paris", "Rome", "Oslo")]


@pytest.fixture(params=["pairranker", "reward"])
def scorer(request: pytest.FixtureRequest, tmp_path: Path) -> Scorer:
    if request.param == "reward":
        return load_scorer(RewardModel(kind="reward", model=str(save_classifier(tmp_path, "bert")), device="cpu"))
    return load_scorer(PairRanker(model=str(PRESETS / "miniature" / "ranker"), device="cpu"))


def test_closing_ends_the_threads_and_no_open_call(scorer: Scorer) -> None:
    others = set(threading.enumerate())  # those of other tests may end meanwhile

    async def main() -> None:
        expected = await scorer.score(MATCHUPS)
        assert set(threading.enumerate()) - others
        open_call = asyncio.create_task(scorer.score(MATCHUPS))
        await asyncio.sleep(0)  # it has begun
        await scorer.close()
        assert await open_call == expected
        with pytest.raises(RuntimeError, match="after shutdown"):
            await scorer.score(MATCHUPS)

    asyncio.run(main())
    assert not set(threading.enumerate()) - others

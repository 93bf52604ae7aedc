"""The scorer without a model: deterministic, antisymmetric, and free of torch."""

import asyncio
import itertools
import subprocess
import sys

from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt
from llm_blender_ray.actors.scorers import load_scorer
from llm_blender_ray.configs.schema import EchoRanker

PROMPT = Prompt("1", "Name a tree.")
TEXTS = ["An oak.", "The birch is a tree.", "Elm!", "A tall pine."]


def test_the_longest_answer_wins() -> None:
    ranker = Ranker(EchoRanker(kind="echo"))
    ranking = asyncio.run(ranker.rank_one(PROMPT, [Candidate("m", text) for text in TEXTS]))
    assert ranking.order == (1, 3, 0, 2) and ranking.comparisons == 12


def test_scores_are_deterministic_and_antisymmetric() -> None:
    pairs = [Matchup(PROMPT, left, right) for left, right in itertools.permutations(TEXTS, 2)]
    swapped = [Matchup(PROMPT, pair.right, pair.left) for pair in pairs]
    scorer = load_scorer(EchoRanker(kind="echo", comparison_s=1e-4))

    async def play() -> tuple[list, list, list]:
        return await scorer.score(pairs), await scorer.score(pairs), await scorer.score(swapped)

    first, again, turned = asyncio.run(play())
    assert first == again == [-score for score in turned] and 0 not in first


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from llm_blender_ray.actors.stages import Fuse, Generate, Rank\n"
        "from llm_blender_ray.configs.schema import EchoModel, EchoRanker\n"
        "Rank(EchoRanker(kind='echo')); Generate(EchoModel(name='m', engine='echo', model='e'))\n"
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

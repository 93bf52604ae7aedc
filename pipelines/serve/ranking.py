"""`/v1/rerank` and `/v1/compare`: the ranker by itself, over what the client brings."""

import math
from collections.abc import Sequence
from typing import Literal

from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, read_prompt
from llm_blender_ray.actors.stages import margin
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND
from llm_blender_ray.pipelines.serve.errors import invalid, unknown_model
from llm_blender_ray.pipelines.serve.protocol import MAX_ITEMS, CompareRequest, RerankRequest, TextInput, text_of
from llm_blender_ray.pipelines.serve.responses import (
    CompareAnswer,
    Document,
    RerankAnswer,
    RerankResult,
    RerankUsage,
)

RANKER_MODEL = "ranker"
RANKER_MODELS = (BLEND, BEST, RANKER_MODEL)  # names that clients may give the one ranker there is


def model_of(asked: RerankRequest | CompareRequest) -> str:
    """The name that the answer has. Raises ApiError."""
    if asked.model is not None and asked.model not in RANKER_MODELS:
        raise unknown_model(asked.model, RANKER_MODELS)
    return asked.model or RANKER_MODEL


def candidates_from_texts(texts: Sequence[TextInput]) -> list[Candidate]:
    """Texts as the ranker takes them."""
    return [Candidate(None, text_of(given)) for given in texts]


def read_rerank(asked: RerankRequest, id: str, serving: Serving) -> Prompt:
    """What the documents are to answer. Raises ApiError."""
    if len(asked.documents) > serving.limits.candidates:
        raise invalid("documents", f"at most {serving.limits.candidates} (serve.limits.candidates)")
    if not asked.query.strip():
        raise invalid("query", "nothing is asked")
    return Prompt(id, instruction=asked.query)


def reranked(asked: RerankRequest, id: str, ranking: Ranking) -> RerankAnswer:
    """The documents as the ranking has them."""
    shown = asked.return_documents is not False
    results = [
        RerankResult(
            index=at,
            relevance_score=_logistic(ranking.scores[at] or 0.0),
            document=Document(text=text_of(asked.documents[at])) if shown else None,
        )
        for at in ranking.order[: asked.top_n]
    ]
    usage = RerankUsage(comparisons=ranking.comparisons)
    return RerankAnswer(id=f"rerank-{id}", model=model_of(asked), results=results, usage=usage)


def _logistic(score: float) -> float:
    return 0.5 * (1 + math.tanh(score / 2))  # of no score does it overflow


def read_compare(asked: CompareRequest, id: str) -> Prompt:
    """What both candidates answer. Raises RowError."""
    row = asked.model_dump(include={"prompt", "instruction", "input", "messages"})
    return read_prompt({**row, "id": id}, most=MAX_ITEMS)


def compared(asked: CompareRequest, id: str, ranking: Ranking) -> CompareAnswer:
    """Which candidate is better, in numbers that `blend compare` gives, too."""
    difference = margin(ranking)
    better: Literal[0, 1] = 0 if difference > 0 else 1
    return CompareAnswer(
        id=f"compare-{id}",
        model=model_of(asked),
        preference=better if difference else None,
        margin=difference,
        comparisons=ranking.comparisons,
    )

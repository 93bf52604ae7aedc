"""`POST /v1/rerank` and `/v1/compare`: the ranker alone, on texts of the client."""

import functools
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from llm_blender_ray.actors.budget import BudgetError
from llm_blender_ray.actors.circuit_breaker import NotAskedError
from llm_blender_ray.actors.errors import PromptError, RowError, one_line, usage_of_error
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, read_prompt
from llm_blender_ray.actors.stages import margin
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.circuits import RANKER
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND
from llm_blender_ray.pipelines.serve.errors import ApiError, invalid, over_budget, retry_after_header, unknown_model
from llm_blender_ray.pipelines.serve.protocol import MAX_ITEMS, CompareRequest, RerankRequest, TextInput, text_of
from llm_blender_ray.pipelines.serve.response_parts import Usage
from llm_blender_ray.pipelines.serve.responses import (
    ERROR_RESPONSES,
    CompareAnswer,
    Document,
    RerankAnswer,
    RerankResult,
    RerankUsage,
)
from llm_blender_ray.pipelines.serve.service import Endpoint, Service, json_response
from llm_blender_ray.pipelines.serve.streaming import while_connected
from llm_blender_ray.pipelines.serve.telemetry import RequestRecord

RANKER_MODEL = "ranker"
RANKER_MODELS = (BLEND, BEST, RANKER_MODEL)  # accepted names of the ranker


def _rerank_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/rerank", operation_id="rerank", response_model=RerankAnswer, responses=ERROR_RESPONSES)
    async def rerank(asked: RerankRequest, request: Request) -> Response:
        """Order documents by how well they answer a query."""
        record: RequestRecord = request.state.record
        model, id = model_of(asked), request.state.id
        prompt = service.charged(read_rerank(asked, id, service.serving), record.caller)
        record.asks(model, prompt=prompt)
        documents = candidates_from_texts(asked.documents)
        work = functools.partial(service.blender.rerank, prompt, documents, asked.top_n)
        ranked = await while_connected(request.receive, _ranked(service, work, record))
        return json_response(reranked(asked, id, ranked))

    return router


def _compare_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/compare", operation_id="compare", response_model=CompareAnswer, responses=ERROR_RESPONSES)
    async def compare(asked: CompareRequest, request: Request) -> Response:
        """Compare two answers."""
        record: RequestRecord = request.state.record
        model, id = model_of(asked), request.state.id
        prompt = service.charged(read_compare(asked, id), record.caller)
        record.asks(model, prompt=prompt)
        work = functools.partial(service.blender.compare, prompt, candidates_from_texts(asked.candidates))
        ranked = await while_connected(request.receive, _ranked(service, work, record))
        return json_response(compared(asked, id, ranked))

    return router


RERANK = Endpoint("rerank", "/v1/rerank", _rerank_routes, reads_json=True, uses_models=True)
COMPARE = Endpoint("compare", "/v1/compare", _compare_routes, reads_json=True, uses_models=True)


async def _ranked(
    service: Service, ranking: Callable[[], Coroutine[Any, Any, Ranking]], record: RequestRecord
) -> Ranking:
    """Rank for a request of its own."""
    async with service.admission.slot(service.serving.deadline_s) as waited_s:
        record.waited(waited_s)
        began = time.monotonic()
        try:
            ranked = await ranking()
        except (RowError, PromptError):
            raise
        except BudgetError as error:
            record.used({RANKER: error.usage})
            raise over_budget(error) from error
        except TimeoutError as error:
            raise ApiError(503, "no ranking in time", code="no_ranking") from error
        except NotAskedError as error:
            wait = retry_after_header(error.retry_after_s)
            raise ApiError(503, f"no ranking: {error}", code="no_ranking", headers=wait) from error
        except Exception as error:  # whatever the ranker or its replicas raise
            record.used({RANKER: usage_of_error(error)})
            raise ApiError(503, f"no ranking: {one_line(error)}", code="no_ranking") from error
        record.ranked(ranked, time.monotonic() - began)
        return ranked


def model_of(asked: RerankRequest | CompareRequest) -> str:
    """Model name of the response.

    Raises:
        ApiError: The requested model is unknown.
    """
    if asked.model is not None and asked.model not in RANKER_MODELS:
        raise unknown_model(asked.model, RANKER_MODELS)
    return asked.model or RANKER_MODEL


def candidates_from_texts(texts: Sequence[TextInput]) -> list[Candidate]:
    """Texts as candidates."""
    return [Candidate(None, text_of(given)) for given in texts]


def read_rerank(asked: RerankRequest, id: str, serving: Serving) -> Prompt:
    """Prompt of a rerank request.

    Raises:
        ApiError: The request is malformed.
    """
    if len(asked.documents) > serving.limits.candidates:
        raise invalid("documents", f"at most {serving.limits.candidates} (serve.limits.candidates)")
    if not asked.query.strip():
        raise invalid("query", "nothing is asked")
    return Prompt(id, instruction=asked.query)


def reranked(asked: RerankRequest, id: str, ranking: Ranking) -> RerankAnswer:
    """The documents in the ranking's order."""
    shown = asked.return_documents is not False
    results = [
        RerankResult(
            index=at,
            relevance_score=_logistic(ranking.scores[at] or 0.0),
            document=Document(text=text_of(asked.documents[at])) if shown else None,
        )
        for at in ranking.order[: asked.top_n]
    ]
    tokens = _judge_usage(ranking)
    usage = RerankUsage(comparisons=ranking.comparisons, **(tokens.model_dump() if tokens else {}))
    return RerankAnswer(id=f"rerank-{id}", model=model_of(asked), results=results, usage=usage)


def _judge_usage(ranking: Ranking) -> Usage | None:
    """Tokens of an LLM that judges; None for other rankers."""
    return Usage.of(ranking.usage) if ranking.usage.calls else None


def _logistic(score: float) -> float:
    return 0.5 * (1 + math.tanh(score / 2))  # overflows for no score


def read_compare(asked: CompareRequest, id: str) -> Prompt:
    """Prompt of a compare request.

    Raises:
        RowError: The request is malformed.
    """
    row = asked.model_dump(include={"prompt", "instruction", "input", "messages"})
    return read_prompt({**row, "id": id}, most=MAX_ITEMS)


def compared(asked: CompareRequest, id: str, ranking: Ranking) -> CompareAnswer:
    """Margin and preference, equal to those of `blend compare`."""
    difference = margin(ranking)
    better: Literal[0, 1] = 0 if difference > 0 else 1
    return CompareAnswer(
        id=f"compare-{id}",
        model=model_of(asked),
        preference=better if difference else None,
        margin=difference,
        comparisons=ranking.comparisons,
        usage=_judge_usage(ranking),
    )

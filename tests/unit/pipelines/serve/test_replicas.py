"""Base LLMs that share an engine, in one replica of the service."""

import asyncio
from typing import Any

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs.schema import EchoModel
from llm_blender_ray.pipelines.serve.replicas import Generators

PROMPT = Prompt("p", "say it twice")


class Pair(EchoModel):
    """Two LLMs of one engine: one answers shorter."""

    @property
    def members(self) -> tuple[EchoModel, ...]:
        return self.one("base", 9), self.one("short", 1)

    def one(self, name: str, words: int) -> EchoModel:
        return EchoModel(engine="echo", name=name, model="m", sampling={"max_tokens": words})  # type: ignore[arg-type]


def test_each_llm_answers_by_its_name() -> None:
    async def main() -> None:
        replica = Generators(Pair(engine="echo", name="base", model="m"))
        found = [await replica.answer(PROMPT, 0, None, name) for name in ("base", "short")]
        assert [(one.model, one.text) for one in found] == [("base", "say it twice"), ("short", "say")]

        async def last(name: str) -> Any:
            return [piece async for piece in replica.stream(PROMPT, 0, None, name)][-1]

        assert [await last(name) for name in ("base", "short")] == found
        await replica.check_health()
        with pytest.raises(BlendError, match="no part of the service any more"):
            await replica.answer(PROMPT, 0, None, "removed")

    asyncio.run(main())


def test_one_llm_needs_no_name() -> None:
    replica = Generators(EchoModel(engine="echo", name="only", model="m"))
    assert asyncio.run(replica.answer(PROMPT)).text == "say it twice"

"""A base LLM as the pipelines see it: prompts in, candidates out, and never an exception for a prompt's sake."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_models import save_plain_model

from actors.errors import ModelLoadError
from actors.generator import Generator
from actors.records import Candidate, Prompt
from configs.schema import EndpointModel, Sampling, TransformersModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_model(tmp_path_factory.mktemp("plain"))


def make_generator(folder: Path, **settings: Any) -> Generator:
    given = {"sampling": Sampling(max_tokens=5), **settings}
    return Generator(
        TransformersModel(name="mine", engine="transformers", model=str(folder), device="cpu", **given)
    )


def answer(generator: Generator, *prompts: Prompt) -> list[Candidate]:
    async def main() -> list[Candidate]:
        try:
            return await asyncio.gather(*(generator.answer(prompt) for prompt in prompts))
        finally:
            await generator.close()

    return asyncio.run(main())


def test_candidate_carries_text_reason_and_counts(folder: Path) -> None:
    (candidate,) = answer(make_generator(folder), Prompt("1", instruction="numbers"))
    assert candidate.model == "mine"
    assert candidate.error is None
    assert candidate.text
    assert (candidate.finish_reason, candidate.completion_tokens) == ("length", 5)
    assert candidate.prompt_tokens == 2


def test_bad_prompt_is_its_candidate_s_error(folder: Path) -> None:
    good, bad = answer(
        make_generator(folder), Prompt("1", instruction="numbers"), Prompt("2", instruction="word " * 500)
    )
    assert good.error is None
    assert bad.text is None
    assert bad.error is not None and "context" in bad.error


def test_system_prompt_reaches_the_model(folder: Path) -> None:
    prompt = Prompt("1", instruction="numbers")
    (plain,) = answer(make_generator(folder), prompt)
    (told,) = answer(make_generator(folder, system_prompt="hello in Japanese"), prompt)
    assert plain.prompt_tokens is not None and told.prompt_tokens is not None
    assert told.prompt_tokens > plain.prompt_tokens


def test_unexpected_failure_is_an_error_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row that no reader would have let through: a turn without a role."""
    messages: Any = ({"content": "hi"},)
    generator = make_generator(folder, system_prompt="Be brief.")
    (candidate,) = answer(generator, Prompt("1", messages=messages))
    assert candidate.text is None
    assert candidate.error == "KeyError: 'role'"
    assert "mine failed on prompt 1" in caplog.text  # with its traceback


def test_cancelling_passes_through() -> None:
    async def main() -> None:
        listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)  # never answers
        port = listener.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        generator = Generator(EndpointModel(name="far", engine="endpoint", model="m", base_url=url))
        task = asyncio.create_task(generator.answer(Prompt("1", instruction="hi")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await generator.close()
        listener.close()

    asyncio.run(main())


def test_samples_are_of_the_seeds_that_follow(folder: Path) -> None:
    """Sample i of seed 3 is what seed 3 + i gives; the largest seed is followed by 0."""

    def drawn(seed: int, *samples: int) -> list[Candidate]:
        generator = make_generator(folder, sampling=Sampling(max_tokens=5, temperature=1.0, seed=seed))

        async def main() -> list[Candidate]:
            try:
                prompt = Prompt("1", instruction="numbers")
                return await asyncio.gather(*(generator.answer(prompt, sample) for sample in samples))
            finally:
                await generator.close()

        return asyncio.run(main())

    several = drawn(3, 0, 1, 2)
    assert len({candidate.text for candidate in several}) == 3
    assert several == [*drawn(3, 0), *drawn(4, 0), *drawn(5, 0)]
    assert drawn(2**63 - 1, 1) == drawn(0, 0)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.0, "seed": 1}, {"temperature": 0.7, "top_k": 1}], ids=str
)
def test_samples_that_would_be_equal_are_refused(sampling: dict[str, Any]) -> None:
    model = {"name": "a", "engine": "transformers", "model": "a", "sampling": sampling}
    TransformersModel.model_validate({**model, "samples": 1})
    with pytest.raises(ValidationError, match=r"all 4 would be equal; set sampling\.temperature above 0") as error:
        TransformersModel.model_validate({**model, "samples": 4})
    assert error.value.errors()[0]["loc"] == ("samples",)


def test_model_that_cannot_load_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no config"):
        make_generator(tmp_path)

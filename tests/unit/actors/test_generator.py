"""A base LLM as the pipelines see it: prompts in, candidates out, and never an exception for a prompt's sake."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, chunk, completion, hang, leave, respond, stream
from pydantic import ValidationError
from tiny_models import CONTEXT, make_tokenizer, save_plain_model

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.generator import Generator
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.configs.schema import EndpointModel, Sampling, SamplingOverrides, TransformersModel


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
    assert (bad.refused, good.refused) == ("too long", None)


def test_a_chat_that_the_template_refuses_is_not_one_that_is_too_long(tmp_path: Path) -> None:
    make_tokenizer("{{ raise_exception('roles must alternate') }}").save_pretrained(save_plain_model(tmp_path))
    (candidate,) = answer(make_generator(tmp_path), Prompt("1", instruction="numbers"))
    assert candidate.refused == "other"
    assert candidate.error is not None and "roles must alternate" in candidate.error


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
    assert candidate.refused is None
    assert "mine failed on prompt 1" in caplog.text  # with its traceback


def test_change_is_of_the_configured_sampling(folder: Path) -> None:
    """Only what it names; the seed of a sample is then counted from its own."""
    sampling = Sampling(max_tokens=5, temperature=1.0, seed=3)
    prompt = Prompt("1", instruction="numbers")

    async def main() -> list[Candidate]:
        configured, other = (
            make_generator(folder, sampling=sampling),
            make_generator(folder, sampling=sampling.model_copy(update={"seed": 9, "max_tokens": 3})),
        )
        try:
            change = SamplingOverrides(seed=8, max_tokens=3)
            return [
                await configured.answer(prompt, 1, change),
                await other.answer(prompt),
                await configured.answer(prompt, 1),
                await configured.answer(prompt, 0, SamplingOverrides(temperature=0.0)),
                await configured.answer(prompt, 7, SamplingOverrides(temperature=0.0)),
            ]
        finally:
            await configured.close()
            await other.close()

    changed, expected, unchanged, greedy, greedy_again = asyncio.run(main())
    assert changed == expected != unchanged
    assert changed.completion_tokens == 3
    assert greedy == greedy_again and greedy.error is None


def test_a_request_for_more_tokens_than_fit_gets_what_the_model_is_set_to(folder: Path) -> None:
    """Clients send 8,192 to models of any size; what is too long without that is still refused."""
    generator = make_generator(folder)
    change = SamplingOverrides(max_tokens=8192)

    async def main() -> tuple[Candidate, Candidate, list[str | Candidate], Candidate, Candidate]:
        try:
            return (
                await generator.answer(Prompt("1", "numbers")),
                await generator.answer(Prompt("1", "numbers"), change=change),
                [piece async for piece in generator.stream(Prompt("1", "numbers"), change=change)],
                await generator.answer(Prompt("1", "numbers"), change=SamplingOverrides(max_tokens=CONTEXT - 10)),
                await generator.answer(Prompt("1", "numbers " * CONTEXT), change=change),
            )
        finally:
            await generator.close()

    own, asked, pieces, fits, refused = asyncio.run(main())
    assert asked == own == pieces[-1] and own.completion_tokens == 5
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == own.text
    assert fits.completion_tokens is not None and fits.completion_tokens > 5
    assert refused.refused == "too long" and refused.error is not None and "context" in refused.error


@contextlib.asynccontextmanager
async def far(*faults: Fault, **more: Any) -> AsyncIterator[tuple[Generator, EndpointServer]]:
    """A generator whose LLM is behind a server with these faults."""
    async with EndpointServer(faults) as server:
        own = {"name": "far", "model": "m", "max_retries": 0}
        generator = Generator(EndpointModel(engine="endpoint", base_url=server.url, **own, **more))
        try:
            yield generator, server
        finally:
            await generator.close()


def streamed(*faults: Fault) -> list[str | Candidate]:
    async def main() -> list[str | Candidate]:
        async with far(*faults) as (generator, _):
            return [piece async for piece in generator.stream(Prompt("1", "hi"))]

    return asyncio.run(main())


def test_stream_is_the_answer_s_text_and_then_the_candidate() -> None:
    assert streamed() == ["hel", "lo", Candidate("far", "hello", None, "stop", 3, 2)]


@pytest.mark.parametrize("include", [False, True])
def test_reasoning_is_kept_for_rows_on_demand(include: bool) -> None:
    async def main() -> Candidate:
        thought = respond(200, completion("<think>3? 4?</think>Four."))
        async with far(thought, include_reasoning=include) as (generator, _):
            return await generator.answer(Prompt("1", "hi"))

    candidate = asyncio.run(main())
    assert (candidate.text, candidate.reasoning) == ("Four.", "3? 4?")
    kept = {"reasoning_content": "3? 4?", "reasoning_tokens": None}
    assert json.loads(candidate.extra or "null") == (kept if include else None)


def test_logprobs_are_kept_for_rows_beside_the_reasoning() -> None:
    answer = completion("<think>3?</think>4")
    answer["choices"][0]["logprobs"] = {"content": [{"token": "4", "logprob": -0.5, "top_logprobs": []}]}

    async def main() -> Candidate:
        async with far(respond(200, answer), include_reasoning=True, sampling={"logprobs": 0}) as (generator, _):
            return await generator.answer(Prompt("1", "hi"))

    row = asyncio.run(main()).to_row()
    assert json.loads(row["extra"]) == {
        "reasoning_content": "3?",
        "reasoning_tokens": None,
        "logprobs": [{"token": "4", "logprob": -0.5, "top_logprobs": []}],
    }


def test_stream_that_breaks_off_ends_with_the_error() -> None:
    piece, candidate = streamed(stream(chunk("hel"), then=leave))
    assert piece == "hel"
    assert isinstance(candidate, Candidate) and not candidate.refused
    assert candidate.text is None and candidate.error is not None and "broke" in candidate.error


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\ufeff", "<think>so</think>\n"])
def test_a_blank_answer_is_an_error(text: str) -> None:
    async def whole() -> Candidate:
        async with far(respond(200, completion(text))) as (generator, _):
            return await generator.answer(Prompt("1", "hi"))

    blank = Candidate("far", error="blank answer", rejected=True)
    assert asyncio.run(whole()) == blank
    assert streamed(stream(chunk(text, "stop")))[-1] == blank
    (*_, cut) = streamed(stream(chunk(text, "length")))
    assert isinstance(cut, Candidate) and cut.error == "blank answer, cut at sampling.max_tokens"


def test_refused_prompt_s_stream_is_a_refused_candidate() -> None:
    (candidate,) = streamed(respond(413, {"error": {"message": "too long"}}))
    assert isinstance(candidate, Candidate) and candidate.refused == "too long"


def test_stream_that_fails_unexpectedly_ends_with_the_error(folder: Path) -> None:
    generator = make_generator(folder, system_prompt="Be brief.")
    messages: Any = ({"content": "hi"},)

    async def main() -> list[str | Candidate]:
        try:
            return [piece async for piece in generator.stream(Prompt("1", messages=messages))]
        finally:
            await generator.close()

    (candidate,) = asyncio.run(main())
    assert isinstance(candidate, Candidate) and candidate.error == "KeyError: 'role'"


@pytest.mark.parametrize("cancel", [False, True], ids=["closed", "cancelled"])
def test_stream_that_is_left_stops_the_work(cancel: bool) -> None:
    async def main() -> None:
        async with far(stream(chunk("hel"), then=hang)) as (generator, server):
            pieces = generator.stream(Prompt("1", "hi"))
            assert await anext(pieces) == "hel"
            if cancel:
                task = asyncio.ensure_future(anext(pieces))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await pieces.aclose()
            await asyncio.wait_for(server.disconnected.wait(), 30)

    asyncio.run(main())


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


def test_no_temperature_is_that_of_the_api(folder: Path) -> None:
    """A local model draws at 1, and so may give several samples."""

    def drawn(temperature: float | None) -> Candidate:
        sampling = Sampling(max_tokens=5, temperature=temperature, seed=3)
        (candidate,) = answer(make_generator(folder, sampling=sampling, samples=2), Prompt("1", "numbers"))
        return candidate

    assert drawn(None) == drawn(1.0)

"""A chat LLM as a fuser, over a real HTTP server and with real weights: what it is told, and what is its answer."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from endings import followed, told_or
from endpoint_server import Chunks, EndpointServer, Fault, Request, chunk, completion, hang, leave, respond, stream
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_plain_model

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.errors import BlendError, GenerationError, PromptError, RejectedError
from llm_blender_ray.actors.fusers import Fuser, load_fuser
from llm_blender_ray.actors.fusers.llm_fuser import INSTRUCTION, task
from llm_blender_ray.actors.records import Message, Prompt
from llm_blender_ray.configs.schema import EndpointModel, LLMFuser, Sampling, SamplingOverrides, TransformersModel

T = TypeVar("T")
PROMPT = Prompt("1", "How many?", "apples")
CANDIDATES = ["Three.", "Four apples.", "5"]


def read_task(text: str) -> tuple[str, list[str], str]:
    """Prompt, answers and instruction, as a reader of Markdown's fences finds them."""
    first = text.index("\n```")
    fence = re.match("`+", text[first + 1 :])
    assert fence
    parts = re.split(f"^{fence[0]}$", text[first:], flags=re.MULTILINE)
    prompt, *answers = (part[1:-1] for part in parts[1::2])
    titles = [part.strip() for part in parts[2:-1:2]]
    assert titles == [f"Answer {number}:" for number in range(1, len(answers) + 1)]
    return prompt, answers, parts[-1]


def far(url: str, **more: Any) -> LLMFuser:
    own = {name: more.pop(name) for name in ("instruction",) if name in more}
    llm = EndpointModel(name="f", engine="endpoint", model="m", base_url=url, max_retries=0, **more)
    return LLMFuser(kind="chat", llm=llm, **own)


def ask(work: Callable[[Fuser], Awaitable[T]], *faults: Fault, **more: Any) -> tuple[T, list[Request]]:
    """What `work` gives with a fuser whose LLM is behind a server with these faults, and what that was sent."""

    async def main() -> tuple[T, list[Request]]:
        async with EndpointServer(faults) as server:
            fuser = load_fuser(far(server.url, **more))
            try:
                return await work(fuser), server.requests
            finally:
                await fuser.close()

    return asyncio.run(main())


def written(*texts: str, finish_reason: str = "stop") -> tuple[Fault, Fault]:
    """The same reply whole and as a stream of these pieces."""
    return respond(200, completion("".join(texts), finish_reason)), stream(
        *map(chunk, texts), chunk(finish_reason=finish_reason)
    )


def both(*faults: Fault) -> tuple[Completion | GenerationError, list[str], Completion | GenerationError]:
    """What `fuse`, and then what `stream` gives."""

    async def work(fuser: Fuser) -> tuple[Completion | GenerationError, list[str], Completion | GenerationError]:
        return await told_or(fuser.fuse(PROMPT, CANDIDATES)), *await followed(fuser.stream(PROMPT, CANDIDATES))

    return ask(work, *faults)[0]


def test_the_llm_is_shown_prompt_and_candidates_and_told_what_to_do() -> None:
    async def work(fuser: Fuser) -> tuple[Completion, tuple[list[str], object]]:
        return await fuser.fuse(PROMPT, CANDIDATES), await followed(fuser.stream(PROMPT, CANDIDATES))

    (answer, (pieces, last)), (whole, streamed) = ask(work)
    assert answer == last == Completion("hello", "stop", 3, 2)
    assert pieces == ["hel", "lo"]
    for request in (whole, streamed):
        (message,) = request.body["messages"]
        assert message["role"] == "user"
        prompt, answers, instruction = read_task(message["content"])
        assert (prompt, answers) == ("How many?\napples", CANDIDATES)
        assert instruction.endswith(INSTRUCTION)
        assert (request.body["temperature"], request.body["max_tokens"]) == (0.0, 512)


def test_instruction_and_system_prompt_are_the_settings() -> None:
    def work(fuser: Fuser) -> Awaitable[Completion]:
        return fuser.fuse(PROMPT, CANDIDATES)

    _, (request,) = ask(work, instruction="Sum {them} up in one word.", system_prompt="You are terse.")
    system, message = request.body["messages"]
    assert system == {"role": "system", "content": "You are terse."}
    assert message["content"].endswith(" Sum {them} up in one word.")
    assert INSTRUCTION not in message["content"]


def test_a_change_of_how_members_draw_is_not_the_fuser_s() -> None:
    change = SamplingOverrides(max_tokens=7, temperature=1.5, top_p=0.5, stop=("x",), seed=4)

    async def work(fuser: Fuser) -> None:
        await fuser.fuse(PROMPT, CANDIDATES, change)
        await followed(fuser.stream(PROMPT, CANDIDATES, change))

    _, requests = ask(work, sampling=Sampling(temperature=0.3, top_p=0.9, seed=1, max_tokens=99))
    for request in requests:
        names = ("max_tokens", "temperature", "top_p", "stop", "seed")
        assert [request.body[name] for name in names] == [7, 0.3, 0.9, ["x"], 4]


PIECES = ["`", "```", "\n", "````\n", "Answer 2:", "Prompt:", "{text}", "{", "}", "The answers are in order", " "]
TEXT = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=40))


@given(prompt=TEXT, candidates=st.lists(TEXT, min_size=1, max_size=4))
def test_texts_cannot_leave_their_fences(prompt: str, candidates: list[str]) -> None:
    for asked in (Prompt("", prompt), Prompt("", messages=(Message(role="user", content=prompt),))):
        assert read_task(task(asked, candidates, "Go."))[:2] == (prompt, candidates)


def test_a_chat_is_shown_whole() -> None:
    turns = (Message(role="system", content="Count."), Message(role="user", content="How many?"))
    chat = Prompt(
        "", messages=(*turns, Message(role="assistant", content="Of?"), Message(role="user", content="a"))
    )
    prompt, _, _ = read_task(task(chat, CANDIDATES))
    assert prompt == "SYSTEM: Count.\nUSER: How many?\nASSISTANT: Of?\nUSER: a"


@pytest.mark.parametrize("before", [["<think>3?", " 4?</think>\n"], [" ", "\n"], []])
def test_reasoning_and_blanks_before_an_answer_are_left_out(before: list[str]) -> None:
    whole, pieces, last = both(*written(*before, "Four", " it is.\n"))
    reasoning = "3? 4?" if before[:1] == ["<think>3?"] else None
    assert whole == last == Completion("Four it is.\n", "stop", reasoning=reasoning)
    thoughts = [piece.text for piece in pieces if isinstance(piece, ReasoningDelta)]
    assert "".join(thoughts) == (reasoning or "") and pieces[len(thoughts) :] == ["Four", " it is.\n"]


@pytest.mark.parametrize(
    ("texts", "finish_reason", "says"),
    [
        (["<think>so ", "and so"], "length", "the answer ends within its reasoning; raise sampling.max_tokens"),
        (["<think>so"], "stop", "the answer ends within its reasoning"),
        (["<think>so</think>", "\n"], "stop", "blank answer"),
        ([""], "stop", "blank answer"),
        ([" ", "\n\u200b", "\t"], "stop", "blank answer"),
    ],
)
def test_reply_without_an_answer_is_an_error(texts: list[str], finish_reason: str, says: str) -> None:
    whole, pieces, last = both(*written(*texts, finish_reason=finish_reason))
    for error in (whole, last):
        assert isinstance(error, RejectedError)  # a client's small max_tokens is no failure of the LLM
        assert str(error) == says
    assert not [piece for piece in pieces if isinstance(piece, str)]


def test_an_llm_that_fails_is_told() -> None:
    whole, pieces, last = both(
        respond(400, {"error": {"message": "no GPU left"}}), stream(chunk("Four"), then=leave)
    )
    assert isinstance(whole, GenerationError) and "no GPU left" in str(whole)
    assert isinstance(last, GenerationError) and pieces == ["Four"]


def test_too_long_a_task_is_the_prompt_s_error() -> None:
    whole, _, last = both(*[respond(413, {"error": {"message": "too long"}})] * 2 * len(CANDIDATES))
    assert isinstance(whole, PromptError) and isinstance(last, PromptError)


def test_a_task_that_is_too_long_is_asked_in_shorter_forms() -> None:
    """The prompt loses its middle first, then the last candidates are left out, and the answer tells how many."""
    prompt = Prompt("1", f"Begin. {'word ' * 300} The end?")

    async def work(fuser: Fuser) -> tuple[Completion, tuple[list[str], object]]:
        return await fuser.fuse(prompt, CANDIDATES), await followed(fuser.stream(prompt, CANDIDATES))

    refusal = respond(413, {"error": {"message": "too long"}})
    ((whole, (_, streamed)), requests) = ask(work, *[refusal] * 5)
    assert isinstance(streamed, Completion) and whole.candidates_read == 1
    assert streamed.candidates_read is None
    tasks = [request.body["messages"][-1]["content"] for request in requests[:7]]
    assert [len(read_task(text)[1]) for text in tasks] == [3, 3, 3, 3, 2, 1, 3]
    lengths = [len(read_task(text)[0]) for text in tasks]
    assert lengths[0] > lengths[1] > lengths[2] > lengths[3] == lengths[5]
    assert all(read_task(text)[0].startswith("Begin.") and "The end?" in text for text in tasks)


def test_pieces_come_as_they_are_written() -> None:
    async def main() -> list[str | Completion]:
        arrived = asyncio.Event()

        async def chunks(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            yield chunk("<think>hm</think>Four")
            await arrived.wait()
            yield chunk(".", "stop")

        server_chunks: Chunks = chunks
        async with EndpointServer(chunks=server_chunks) as server:
            fuser = load_fuser(far(server.url))
            pieces: list[str | Completion] = []
            async for piece in fuser.stream(PROMPT, CANDIDATES):
                pieces.append(piece)
                arrived.set()
            await fuser.close()
        return pieces

    answer = Completion("Four.", "stop", reasoning="hm")
    assert asyncio.run(main()) == [ReasoningDelta("hm"), "Four", ".", answer]


def test_closing_a_stream_stops_the_llm() -> None:
    async def main() -> None:
        async with EndpointServer([stream(chunk("Four"), then=hang)]) as server:
            fuser = load_fuser(far(server.url))
            pieces = fuser.stream(PROMPT, CANDIDATES)
            assert await anext(pieces) == "Four"
            await pieces.aclose()
            await asyncio.wait_for(server.disconnected.wait(), 30)
            await fuser.close()

    asyncio.run(main())


def local(folder: Path, context: int) -> LLMFuser:
    """An LLM of random weights in this process, of that context."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": context}))
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=1)
    llm = TransformersModel(name="t", engine="transformers", model=str(folder), device="cpu", sampling=sampling)
    return LLMFuser(kind="chat", llm=llm)


def test_with_weights_in_this_process(tmp_path: Path) -> None:
    fuser = load_fuser(local(save_plain_model(tmp_path), 4096))

    async def main() -> None:
        try:
            await fuser.check_health()
            whole = await fuser.fuse(PROMPT, CANDIDATES)
            assert whole.text and whole.completion_tokens == 12
            pieces, last = await followed(fuser.stream(PROMPT, CANDIDATES))
            assert last == whole and "".join(pieces) == whole.text and len(pieces) > 1
            other = await fuser.fuse(PROMPT, CANDIDATES, SamplingOverrides(seed=2, max_tokens=3))
            assert other.completion_tokens == 3 and not whole.text.startswith(other.text)
        finally:
            await fuser.close()
        with pytest.raises(GenerationError, match="closed"):
            await fuser.fuse(PROMPT, CANDIDATES)

    asyncio.run(main())


def test_a_task_beyond_the_context_is_told(tmp_path: Path) -> None:
    fuser = load_fuser(local(save_plain_model(tmp_path), 64))

    async def main() -> None:
        try:
            with pytest.raises(PromptError, match="context of 64 tokens"):
                await fuser.fuse(PROMPT, CANDIDATES)
            pieces, error = await followed(fuser.stream(PROMPT, CANDIDATES))
            assert not pieces and isinstance(error, PromptError)
        finally:
            await fuser.close()

    asyncio.run(main())


def test_its_health_is_the_engine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuser = load_fuser(local(save_plain_model(tmp_path), 64))

    async def broken() -> None:
        raise BlendError("simulated")

    async def main() -> None:
        monkeypatch.setattr(fuser._llm, "check_health", broken)  # type: ignore[attr-defined]
        with pytest.raises(BlendError, match="simulated"):
            await fuser.check_health()
        await fuser.close()

    asyncio.run(main())

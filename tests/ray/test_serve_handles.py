"""Handles as parts of a blend, on a real Ray Serve: what a replica says, raises and yields, and when it dies."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from serving import event_loop

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import GenerationError
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.configs.schema import SamplingOverrides

_T = TypeVar("_T")

PROMPT = Prompt("p", "Say it")


class Replica:
    """Behaves as the prompt's instruction says, and writes down in a folder what becomes of it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def _note(self, name: str) -> bool:
        """Whether this is the first time."""
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    async def _wait(self) -> None:
        self._note("begun")
        try:
            await asyncio.Event().wait()
        finally:
            self._note("cancelled")

    async def answer(self, prompt: Prompt, sample: int, change: SamplingOverrides | None) -> Candidate:
        match prompt.instruction:
            case "die once" if self._note("died"):
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                await self._wait()
            case "raise":
                raise GenerationError("no answer")
        return Candidate("m", f"{prompt.instruction} {sample} {change.seed if change else None}")

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None
    ) -> AsyncGenerator[str | Completion, None]:
        words = ["one ", "two ", "three"]
        if prompt.instruction == "say otherwise" and not self._note("said"):
            words = ["another ", "thing"]
        yield words[0]
        if prompt.instruction in ("die once", "say otherwise") and self._note("died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt.instruction == "wait":
            await self._wait()
        if prompt.instruction == "raise":
            raise GenerationError("it can't be said")
        for word in words[1:]:
            yield word
        yield Completion("".join(words), "stop", 1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def handle(ray_session: None, folder: Path) -> Iterator[Any]:
    from ray import cloudpickle, serve

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas can't import a test

    deployment = serve.deployment(Replica).options(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    serve.start(proxy_location="Disabled")
    yield serve.run(deployment.bind(str(folder)), name="parts", route_prefix=None)
    serve.shutdown()


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run it in a loop that goes on between tests: handles belong to it, and learn there which replicas are up."""
    return asyncio.run_coroutine_threadsafe(main, event_loop()).result()


@pytest.fixture(autouse=True)
def _nothing_noted(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


async def listed(items: AsyncGenerator[Any, None]) -> list[Any]:
    return [item async for item in items]


async def noted(folder: Path, name: str) -> None:
    """Return once a replica has noted it."""
    while not (folder / name).exists():
        await asyncio.sleep(0.01)


def test_what_is_asked_and_answered(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import RemoteMember

    member = RemoteMember("m", 1, handle)
    candidate = run(member.answer(Prompt("p", "hello"), 2, SamplingOverrides(seed=3)))
    assert candidate == Candidate("m", "hello 2 3")


def test_pieces_and_what_ends_them(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import RemoteFuser

    said = run(listed(RemoteFuser(handle).stream(PROMPT, ["a"])))
    assert said == ["one ", "two ", "three", Completion("one two three", "stop", 1, 3)]


def test_errors_keep_their_type_and_message(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import RemoteFuser, RemoteMember

    with pytest.raises(GenerationError, match=r"^no answer$"):
        run(RemoteMember("m", 1, handle).answer(Prompt("p", "raise")))
    with pytest.raises(GenerationError, match=r"^it can't be said$"):
        run(listed(RemoteFuser(handle).stream(Prompt("p", "raise"), [])))


def test_a_replica_that_dies_is_asked_again(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import RemoteFuser, RemoteMember

    dies = Prompt("p", "die once")
    assert run(RemoteMember("m", 1, handle).answer(dies)).text == "die once 0 None"
    _clear(handle)
    said = run(listed(RemoteFuser(handle).stream(dies, [])))
    assert "".join(piece for piece in said if isinstance(piece, str)) == "one two three"
    assert isinstance(said[-1], Completion)


def test_another_answer_is_no_continuation(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import PartError, RemoteFuser

    with pytest.raises(PartError, match="began another answer"):
        run(listed(RemoteFuser(handle).stream(Prompt("p", "say otherwise"), [])))


def test_who_kills_every_replica_gets_an_error(handle: Any) -> None:
    from llm_blender_ray.pipelines.serve.handles import PartError, RemoteMember

    with pytest.raises(PartError, match="its replicas died"):
        run(RemoteMember("m", 1, handle).answer(Prompt("p", "die")))


@pytest.mark.parametrize("streamed", [False, True])
def test_who_goes_away_cancels_the_replicas_work(handle: Any, folder: Path, streamed: bool) -> None:
    from llm_blender_ray.pipelines.serve.handles import RemoteFuser, RemoteMember

    waits = Prompt("p", "wait")

    async def main() -> None:
        call: Callable[[], Awaitable[Any]]
        if streamed:
            call = lambda: listed(RemoteFuser(handle).stream(waits, []))  # noqa: E731
        else:
            call = lambda: RemoteMember("m", 1, handle).answer(waits)  # noqa: E731
        task = asyncio.ensure_future(call())
        await noted(folder, "begun")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await noted(folder, "cancelled")

    run(main())


def _clear(handle: Any) -> None:
    """The replica in place of the dead one is up."""
    run(_answered(handle))


async def _answered(handle: Any) -> None:
    await handle.answer.remote(Prompt("p", "hello"), 0, None)

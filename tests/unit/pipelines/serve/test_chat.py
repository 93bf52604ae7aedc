"""Lines of a chat completion's stream, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator

from virtual_time import run

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.records import Blend, Candidate, Prompt
from llm_blender_ray.configs.schema import SamplingOverrides
from llm_blender_ray.pipelines.online.events import AnswerDelta, Answered, BlendResult, Event
from llm_blender_ray.pipelines.serve.chat import HEARTBEAT, LAST, Chat, lines
from llm_blender_ray.pipelines.serve.protocol import BlendOptions, ChatRequest
from llm_blender_ray.pipelines.serve.service import HEARTBEAT_S
from llm_blender_ray.pipelines.serve.service_metrics import ServiceMetric
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

PROMPT = Prompt("p", "Where is the treasure?")


def ignore(metric: ServiceMetric, value: float, labels: object = None) -> None:
    pass


def test_a_stream_without_lines_has_a_heartbeat_every_ten_seconds() -> None:
    async def members_answer() -> AsyncGenerator[tuple[int, Event], None]:
        for at in range(6):  # a line for none of them: the client did not ask for events
            await asyncio.sleep(7)
            yield 0, Answered(at, Candidate(f"m{at}", "gold"), 7)
        yield 0, AnswerDelta("old gold")
        await asyncio.sleep(9)
        yield 0, AnswerDelta("!")
        await asyncio.sleep(9)
        yield 0, BlendResult(Blend(PROMPT, ()), Completion("old gold!", "stop"), {})

    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        asked = ChatRequest(model="blend", messages=[{"role": "user", "content": "hello"}], stream=True)
        chat = Chat("id", asked, BlendOptions(details=False), PROMPT, SamplingOverrides(), loop.time())
        with Telemetry(meter=ignore).request("r", "chat") as record:
            record.status = 200
            stream = lines(chat, members_answer(), 0.0, record, HEARTBEAT_S)
            return [(loop.time(), line) async for line in stream]

    came = run(main())
    assert [time for time, line in came if line == HEARTBEAT] == [10, 20, 30, 40]  # none once there is text
    assert came[-1] == (60, LAST)

"""Time of a request, on virtual time."""

import asyncio

from virtual_time import run

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.pipelines.online.protocols import BlendRequest, Timeouts
from llm_blender_ray.pipelines.online.request_time import RequestTime

PROMPT = Prompt("", "q")


def test_shares_of_the_deadline_end_at_their_time() -> None:
    async def main() -> None:
        time = RequestTime(Timeouts(deadline_s=100, timeouts_s={"slow": 5}), BlendRequest(PROMPT, waited_s=20))
        await asyncio.sleep(16)
        assert (time.elapsed, time.left(), time.left(0.6), time.left(0.1)) == (16, 64, 32, 0)
        assert (time.part_left("slow"), time.part_left("other"), time.part_left("slow", 0.225)) == (5, 64, 2)

    run(main())


def test_a_part_s_total_is_that_of_the_settings() -> None:
    async def main() -> None:
        timeouts = Timeouts(deadline_s=100, generation_share=0.5, ranking_share=0.25, timeouts_s={"fuser": 5})
        time = RequestTime(timeouts, BlendRequest(PROMPT, deadline_s=1))
        await asyncio.sleep(0.5)
        assert [time.part_total(name) for name in ("a member", "ranker", "fuser")] == [50, 25, 5]
        assert time.left() == 0.5

    run(main())


def test_without_a_deadline_there_is_no_limit() -> None:
    async def main() -> None:
        time = RequestTime(Timeouts(timeouts_s={"slow": 5}), BlendRequest(PROMPT))
        assert (time.left(), time.part_left("a"), time.part_left("slow"), time.part_total("a")) == (
            None,
            None,
            5,
            None,
        )

    run(main())

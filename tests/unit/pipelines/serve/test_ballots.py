"""Votes: what is refused, what is kept, and that what is kept is read by the rest of the project."""

import asyncio
import json
import os
import pickle
import stat
from datetime import datetime
from pathlib import Path

import httpx2
import pytest
from fake_parts import fake_blender
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from serving import app_of, served

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend, Candidate, Message, Prompt, Ranking
from llm_blender_ray.pipelines.quality.evaluation import evaluate_uri
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.serve.ballots import (
    Ballots,
    UnknownAnswerError,
    Vote,
    VotedBeforeError,
    VoteError,
    VoteLostError,
)

LOGITS = ((None, 2.0, None), (-1.0, None, None), (None, None, None))


def blend(prompt: Prompt | None = None, fused: str | None = "fused text") -> Blend:
    return Blend(
        prompt or Prompt("", messages=(Message(role="user", content="Was heißt \u2028 ‚rot‘?"),)),
        (
            Candidate("alder", "rojo", finish_reason="stop", prompt_tokens=7, completion_tokens=2),
            Candidate("birch", "roja"),
            Candidate("cedar", error="too slow"),
        ),
        Ranking((0, 1), (1.5, -1.5, None), LOGITS, 2),
        fused,
        (0, 1),
    )


def vote(id: str = "r1", left: int | str = 0, right: int | str = "fused", preferred: str = "left") -> Vote:
    return Vote.model_validate({"id": id, "left": left, "right": right, "preferred": preferred})


def cast(ballots: Ballots, *votes: Vote, known: Blend | None = None) -> None:
    async def all_of_them() -> None:
        await ballots.remember("r1", known or blend())
        for one in votes:
            await ballots.cast(one)

    asyncio.run(all_of_them())


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "votes.jsonl"


def test_a_vote_is_a_row_of_the_rows_contract(file: Path) -> None:
    cast(Ballots(str(file)), vote(), vote(left=1, right=0, preferred="tie"))
    first, second = lines(file)
    at = first["vote"].pop("at")
    assert datetime.fromisoformat(at).utcoffset() is not None
    assert first["vote"] == {"left": 0, "right": "fused", "preferred": "left"}
    assert first["messages"] == [{"role": "user", "content": "Was heißt \u2028 ‚rot‘?"}]
    assert first["id"] == second["id"] == "r1"
    assert first["logits"] == [list(row) for row in LOGITS]
    assert first["candidates"][0] == {
        "model": "alder",
        "text": "rojo",
        "error": None,
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 2,
    }
    assert (first["ranking"], first["scores"], first["comparisons"]) == ([0, 1], [1.5, -1.5, None], 2)
    assert (first["fused"], first["fused_from"], first["error"]) == ("fused text", [0, 1], None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_it_is_read_as_any_row(file: Path) -> None:
    cast(Ballots(str(file)), vote(), known=blend(Prompt("", instruction="Translate", input="red")))
    cast(Ballots(str(file)), vote(left=0, right=1, preferred="right"))
    rows = list(read_rows(str(file)))
    assert [row["error"] for row in rows] == [None, None]
    assert (rows[0]["instruction"], rows[0]["input"], rows[0]["messages"]) == ("Translate", "red", None)
    assert rows[1]["instruction"] is None
    told = evaluate_uri(str(file))["votes"]
    assert told["ranker"] | {"interval": None} == {
        "agrees": 0,
        "of": 1,
        "undecided": 0,
        "share": 0.0,
        "interval": None,
    }
    assert told["blend"]["over_first"] == {"wins": 0, "ties": 0, "losses": 1}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (vote(id="r2"), "no answer to vote on under the id 'r2'"),
        (vote(left=2), "no text of candidate 2"),
        (vote(right=3), "no text of candidate 3"),
    ],
)
def test_what_is_not_there_cannot_be_voted_on(file: Path, wrong: Vote, told: str) -> None:
    with pytest.raises(UnknownAnswerError, match=told):
        cast(Ballots(str(file)), wrong)
    assert file.read_bytes() == b""


def test_a_blend_without_a_fused_answer(file: Path) -> None:
    with pytest.raises(UnknownAnswerError, match="no fused answer"):
        cast(Ballots(str(file)), vote(), known=blend(fused=None))


def test_a_pair_is_voted_on_once_whichever_side_is_left(file: Path) -> None:
    ballots = Ballots(str(file))
    cast(ballots, vote(left=0, right=1), vote(left=0))
    for again in (vote(left=0, right=1), vote(left=1, right=0, preferred="tie")):
        with pytest.raises(VotedBeforeError):
            asyncio.run(ballots.cast(again))
    assert len(lines(file)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"left": "fused"},  # against itself
        {"left": "0"},
        {"left": True},
        {"left": -1},
        {"left": 0.5},
        {"left": "blend"},
        {"preferred": "both"},
        {"id": ""},
        {"id": "x" * 129},
        {"comment": "nice"},
    ],
)
def test_what_is_no_vote(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Vote.model_validate({"id": "r1", "left": 0, "right": "fused", "preferred": "left"} | wrong)


def test_one_id_has_one_vote_a_pair_whatever_is_asked_under_it_again(file: Path) -> None:
    """Clients may choose the id. That holds after a restart, too, and past a line that was cut short."""
    ballots = Ballots(str(file))
    cast(ballots, vote())
    with pytest.raises(VotedBeforeError):
        cast(ballots, vote(preferred="right"))
    with file.open("ab") as votes:
        votes.write(b'{"id": "r1", "vote": {"le')
    with pytest.raises(VotedBeforeError):
        cast(Ballots(str(file)), vote())
    cast(Ballots(str(file)), vote(left=0, right=1))


def test_what_is_remembered_is_bounded_in_bytes(file: Path) -> None:
    ballots = Ballots(str(file), remembered_bytes=100_000)

    async def main() -> None:
        for id in ("r1", "r2", "r3"):
            await ballots.remember(id, blend(Prompt("", instruction=id + "x" * 40_000)))
        await ballots.remember("r3", blend(Prompt("", instruction="x" * 40_000)))  # in place of the other
        with pytest.raises(VoteError, match="vote_bytes"):
            await ballots.remember("r4", blend(Prompt("", instruction="x" * 100_000)))
        for id in ("r2", "r3"):
            await ballots.cast(vote(id=id))
        with pytest.raises(UnknownAnswerError):
            await ballots.cast(vote(id="r1"))

    asyncio.run(main())


def test_only_the_last_are_remembered(file: Path) -> None:
    async def many() -> None:
        ballots = Ballots(str(file), remembered=2)
        for id in ("a", "b", "a", "c"):
            await ballots.remember(id, blend())
        await ballots.cast(vote("a"))
        await ballots.cast(vote("c"))
        with pytest.raises(UnknownAnswerError):
            await ballots.cast(vote("b"))

    asyncio.run(many())
    assert [row["id"] for row in lines(file)] == ["a", "c"]


@given(cut=st.integers(min_value=1, max_value=600))
def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    file = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    cast(Ballots(str(file)), vote())
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-cut])
    cast(Ballots(str(file)), vote(left=1))
    rows = list(read_rows(str(file)))
    assert [row["error"] for row in (rows[0], rows[-1])] == [None, None]
    assert file.read_bytes().startswith(whole + whole[:-cut])  # nothing that was there is gone


def test_votes_at_the_same_time_are_all_kept_whole(file: Path) -> None:
    async def crowd() -> None:
        boxes = [Ballots(str(file)), Ballots(str(file))]  # as two services with one file
        for number in range(60):
            await boxes[number % 2].remember(f"r{number}", blend(fused="x" * 5000))
        await asyncio.gather(*(boxes[number % 2].cast(vote(f"r{number}")) for number in range(60)))

    asyncio.run(crowd())
    assert {row["id"] for row in lines(file)} == {f"r{number}" for number in range(60)}
    assert len(lines(file)) == 60


def test_of_two_at_once_on_one_pair_one_counts(file: Path) -> None:
    async def both() -> list[object]:
        ballots = Ballots(str(file))
        await ballots.remember("r1", blend())
        twice = (ballots.cast(vote()), ballots.cast(vote()))
        return await asyncio.gather(*twice, return_exceptions=True)

    kept, refused = asyncio.run(both())
    assert kept is None
    assert isinstance(refused, VotedBeforeError)
    assert len(lines(file)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a full disk")
def test_a_full_disk(file: Path) -> None:
    ballots = Ballots(str(file))
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(VoteLostError, match="the vote could not be written: No space left on device"):
        cast(ballots, vote())
    file.unlink()
    asyncio.run(ballots.cast(vote()))  # it may be cast again
    assert len(lines(file)) == 1


def test_half_a_line_is_taken_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballots = Ballots(str(file))
    cast(ballots, vote())
    before, write = file.read_bytes(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "write", lambda file, data: write(file, data[: len(data) // 2])
        )  # as a disk about to be full
        with pytest.raises(VoteLostError, match="No space left on device"):
            asyncio.run(ballots.cast(vote(left=1)))
    assert file.read_bytes() == before


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BlendError, match=r"^serve.votes .*/file/votes.jsonl: (Not a directory|File exists)$"):
        Ballots(str(tmp_path / "file" / "votes.jsonl"))
    with pytest.raises(BlendError, match="Is a directory"):
        Ballots(str(tmp_path))


@pytest.mark.parametrize("kind", [UnknownAnswerError, VotedBeforeError, VoteLostError])
def test_errors_travel_between_processes(kind: type[BlendError]) -> None:
    again = pickle.loads(pickle.dumps(kind("one line")))
    assert (type(again), str(again)) == (kind, "one line")


def test_over_http(file: Path) -> None:
    ballots = Ballots(str(file))
    asyncio.run(ballots.remember("r1", blend()))
    with served(app_of(fake_blender(), ballots=ballots)) as url:
        answer = httpx2.post(f"{url}/v1/votes", json=vote().model_dump())
    assert (answer.status_code, answer.json()) == (201, {"object": "vote", "id": "r1"})
    assert lines(file)[0]["vote"]["preferred"] == "left"

"""What failed is asked again and nothing else; equal blocks share what can't differ, and no failures."""

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from endpoint_server import EndpointServer, Fault, completion, respond

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import BlendConfig, EchoModel, GenFuser, Judge, PairRanker
from llm_blender_ray.pipelines.bulk import waves
from llm_blender_ray.pipelines.bulk.accounts import account_of
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index, Result
from llm_blender_ray.pipelines.bulk.commands import run_blend
from llm_blender_ray.pipelines.bulk.deduplication import copy_results, representatives
from llm_blender_ray.pipelines.bulk.failures import failure_lines
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.bulk.results import (
    columns_of,
    keep_earlier_results,
    merge_results,
    results_from_other_blocks,
    rows_to_ask,
    rows_to_rerun,
)
from llm_blender_ray.pipelines.bulk.retry import attempt_of, to_do
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.bulk.summary import FailedRunError
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

PROMPT = Prompt("id", "a question")
GOOD, BAD = Candidate("a", "yes"), Candidate("a", error="http://h/v1: 503: down")
REFUSED = Candidate("a", error="too long", refused="too long")
HERE = Capacity.machine(4)
COUNTS = {"prompt_tokens": 30, "completion_tokens": 20}


def step(name: str, settings: Any, **more: Any) -> StageSpec:
    return StageSpec(place(name, settings, HERE), f"{name}-key", **more)


ECHO = step("a", EchoModel(engine="echo", name="a", model="m"))
RANKER = step("ranker", PairRanker(model=str(PRESETS / "miniature" / "ranker"), num_cpus=0.1))


@pytest.mark.parametrize(
    ("record", "finished", "retry", "expected"),
    [
        (None, None, False, 0),
        ({}, 0, False, 0),
        ({}, 0, True, 1),  # of a run that is finished
        ({}, None, True, 1),  # of one that was killed
        ({"attempt": 1, "retrying": True}, 0, True, 1),  # killed before it touched anything
        ({"attempt": 1, "retrying": True}, None, True, 1),  # killed
        ({"attempt": 1, "retrying": True}, None, False, 1),  # killed, and the run gone on with
        ({"attempt": 1, "retrying": True}, 1, True, 2),  # finished, and again
        ({"attempt": 1, "retrying": False}, None, True, 2),  # an update after it was killed
        ({"attempt": 1, "retrying": True}, 1, False, 1),
    ],
)
def test_a_killed_retry_is_the_same_attempt(record: Any, finished: int | None, retry: bool, expected: int) -> None:
    manifest = None if finished is None else Manifest.model_construct(attempt=finished)
    assert attempt_of(record, manifest, retry=retry) == expected


class TestRows:
    """What becomes of the rows of one block."""

    def test_only_candidates_that_failed_are_asked_for(self) -> None:
        before = [Blend(PROMPT, ())] * 4
        rows = [(GOOD, GOOD), (BAD, GOOD), (REFUSED, GOOD), (BAD, REFUSED)]
        had = columns_of("generate", before, [Blend(PROMPT, row) for row in rows])
        asked = rows_to_rerun("generate", before, had, retry=True)
        assert (asked, rows_to_rerun("generate", before, had, retry=False)) == ([1, 3], [])
        seen = rows_to_ask("generate", "a", before, had)
        assert [blend.candidates for blend in seen] == rows
        new = Candidate("a", "now", completion_tokens=3)
        answers = [Blend(PROMPT, (*seen[row].candidates, new)) for row in asked]
        made = merge_results("generate", asked, had, columns_of("generate", [seen[row] for row in asked], answers))
        found = [[one["text"] or one["error"] for one in row] for row in made.column("candidates").to_pylist()]
        assert found == [["yes", "yes"], ["now", "yes"], ["too long", "yes"], ["now", "too long"]]
        assert (
            made.slice(0, 1).equals(had.slice(0, 1)) and rows_to_rerun("generate", before, made, retry=True) == []
        )

    def test_rows_keep_their_results_in_other_blocks(self) -> None:
        """Three rows of two earlier blocks, in another order, with one that is new and one that is there twice."""
        prompts = [Prompt(str(i), "a question") for i in range(4)]
        rows = [Blend(prompt, ()) for prompt in prompts]

        def drawn(*of: Blend) -> pa.Table:
            answers = [Blend(b.prompt, (Candidate("a", f"draw {b.prompt.id}"),)) for b in of]
            return columns_of("generate", of, answers)

        before = [rows[2], rows[3], rows[0], rows[0]]
        had = results_from_other_blocks("generate", before, [drawn(rows[0], rows[1]), drawn(rows[2])])
        assert had is not None and rows_to_rerun("generate", before, had, retry=False) == [1, 3]
        made = merge_results("generate", [1, 3], had, drawn(rows[3], Blend(Prompt("new", "a question"), ())))
        texts = [[one["text"] for one in row] for row in made.column("candidates").to_pylist()]
        assert texts == [["draw 2"], ["draw 3"], ["draw 0"], ["draw new"]]
        assert results_from_other_blocks("generate", [rows[3]], [drawn(rows[0])]) is None

    def test_a_ranking_of_other_candidates_is_not_kept(self) -> None:
        pair = Blend(PROMPT, (GOOD, Candidate("b", "no")))
        ranking = Ranking((1, 0), (0.1, 0.2), ((None, 1.0), (2.0, None)), 2)
        earlier = columns_of("rank", [pair], [Blend(PROMPT, pair.candidates, ranking)])
        other = Blend(PROMPT, (GOOD, Candidate("b", "another")))
        new = Blend(Prompt("new", "x"), pair.candidates)
        had = results_from_other_blocks("rank", [pair, new], [earlier])
        assert had is not None and rows_to_rerun("rank", [pair, new], had, retry=False) == [1]
        assert rows_to_rerun("rank", [other, new], had, retry=False) == [0, 1]
        made = merge_results(
            "rank", [1], had, columns_of("rank", [new], [Blend(new.prompt, new.candidates, ranking)])
        )
        assert made.column("ranking").to_pylist() == [[1, 0]] * 2

    def test_rows_are_ranked_again_that_failed_or_have_other_candidates(self) -> None:
        other = Candidate("b", "no")
        before = [Blend(PROMPT, (GOOD, other)), Blend(PROMPT, (BAD, other)), Blend(PROMPT, (GOOD, other))]
        ranking = Ranking((1, 0), (0.1, 0.2), ((None, 1.0), (2.0, None)), 2)
        alone = Ranking((1,), (None, 0.0), ((None, None), (None, None)), 0)
        after = [
            Blend(PROMPT, before[0].candidates, ranking),
            Blend(PROMPT, before[1].candidates, alone),
            Blend(PROMPT, before[2].candidates, error="ranking failed: down"),
        ]
        had = columns_of("rank", before, after)
        now = [before[0], Blend(PROMPT, (GOOD, other)), before[2]]
        assert rows_to_rerun("rank", now, had, retry=False) == [1]
        assert rows_to_rerun("rank", now, had, retry=True) == [1, 2]
        failed = Blend(PROMPT, (GOOD, other), error="ranking failed: again")
        made = merge_results(
            "rank", [1, 2], had, columns_of("rank", now[1:], [failed, Blend(PROMPT, (GOOD, other), ranking)])
        )
        assert made.column("ranking").to_pylist() == [[1, 0], [1], [1, 0]]  # the second keeps what it had
        assert made.column("error").to_pylist() == [None] * 3
        assert made.column("failed").to_pylist() == [None, "ranking failed: again", None]
        assert rows_to_rerun("rank", now, made, retry=True) == [1]
        account = account_of("rank", now, now, made.column("failed").to_pylist())
        assert (account["failed"], account["retryable"]) == (1, 1)

    def test_comparisons_left_out_are_made_again(self) -> None:
        before = [Blend(PROMPT, (GOOD, Candidate("b", "no")))]
        half = Ranking((1, 0), (0.1, 0.2), ((None, None), (2.0, None)), 2, unreadable=1)
        had = columns_of("rank", before, [Blend(PROMPT, before[0].candidates, half)])
        assert rows_to_rerun("rank", before, had, retry=True) == [0]

    def test_a_new_config_takes_over_what_a_slip_would_lose(self) -> None:
        """A third candidate has come in between, and the new ranking and fusion of the first row failed."""
        a, b, c = (Candidate(name, name * 2) for name in "abc")
        old = [Blend(PROMPT, (a, c)), Blend(PROMPT, (a, c))]
        ranking = Ranking((1, 0), (0.1, 0.2), ((None, -1.0), (1.0, None)), 2)
        ranked = columns_of("rank", old, [Blend(PROMPT, (a, c), ranking)] * 2)
        fused = columns_of("fuse", old, [Blend(PROMPT, (a, c), fused="cc!", fused_from=(1, 0))] * 2)
        now = [Blend(PROMPT, (a, b, c)), Blend(PROMPT, (b, c))]
        slipped = [Blend(blend.prompt, blend.candidates, error="it failed") for blend in now]
        row, other = keep_earlier_results("rank", now, columns_of("rank", now, slipped), ranked).to_pylist()
        assert (row["ranking"], row["scores"], row["error"], row["failed"]) == (
            [2, 0],
            [0.1, None, 0.2],
            None,
            "it failed",
        )
        assert row["logits"] == [[None, None, -1.0], [None] * 3, [1.0, None, None]]
        assert (other["ranking"], other["error"]) == (None, "it failed")  # its first candidate is gone
        row, other = keep_earlier_results("fuse", now, columns_of("fuse", now, slipped), fused).to_pylist()
        assert (row["fused"], row["fused_from"], row["error"]) == ("cc!", [2, 0], None)
        assert (other["fused"], other["error"]) == (None, "it failed")


def index_of(store: CheckpointStore, *texts: str, ids: str = "x") -> Index:
    """Blocks of one row; equal texts are equal blocks."""
    blocks = []
    for number, text in enumerate(texts):
        row = read_row({"id": ids + str(number), "prompt": text}, "")
        store.save_rows("mark", f"0-{number}", pa.Table.from_pylist([row], schema=ROW_SCHEMA))
        blocks.append(Block(f"0-{number}", 1, 0, text * 16, "", f"{ids}{number}"))
    return Index(tuple(blocks), "mark", pa.null())


def save(store: CheckpointStore, of: StageSpec, name: str, candidate: Candidate, **account: Any) -> None:
    before = [Blend(PROMPT, ())]
    after = [Blend(PROMPT, (candidate,))]
    found = account_of("generate", before, after) | {"actor": "x", "started": 1.0, "ended": 2.0} | account
    store.save_result(of.key, name, Result(columns_of("generate", before, after), found))


class TestSharing:
    def test_results_are_of_one_place(self, tmp_path: Path) -> None:
        store = CheckpointStore(str(tmp_path))
        names = index_of(store, "a", "b", "a").names
        assert len(set(names)) == 3
        moved = index_of(store, "c", "a", "b", "a")
        assert [name.partition("-")[0] for name in moved.names] == ["c" * 16, *(n.partition("-")[0] for n in names)]
        copies = Index((Block("1", 1, 0, "d", "", "same"), Block("2", 1, 0, "d", "", "same")), "", pa.null())
        assert len(set(copies.names)) == 2

    def test_of_equal_blocks_one_goes_first_where_nothing_is_drawn(self, tmp_path: Path) -> None:
        store = CheckpointStore(str(tmp_path))
        index = index_of(store, "a", "b", "a")
        work = StageGraph((ECHO, RANKER), ("a",))
        named = dict(zip(index.names, index.blocks, strict=True))
        first = representatives(named, work, work.steps, to_do(store, index, work, work.steps))
        assert first == {"a": set(index.names[:2]), "ranker": set(index.names[:2])}
        assert representatives(named, work, work.steps, {"a": {index.names[0]}, "ranker": set()}) == {}

    def test_copies_are_of_what_did_not_fail(self, tmp_path: Path) -> None:
        store = CheckpointStore(str(tmp_path))
        index = index_of(store, "a", "b", "a", "b")
        work = StageGraph((ECHO,), ("a",))
        save(store, ECHO, index.names[0], GOOD)
        save(store, ECHO, index.names[1], BAD)
        todo = to_do(store, index, work, work.steps)
        assert copy_results(store, index, work, work.steps, todo) == {"a": {index.names[2]}}
        assert todo == {"a": {index.names[3]}}
        copy = store.result(ECHO.key, index.names[2])
        assert copy is not None and copy.account["ended"] == copy.account["started"]

    @pytest.mark.parametrize(
        ("sampling", "drawn"),
        [
            ({}, False),
            ({"temperature": 0.7}, True),
            ({"temperature": 0.7, "seed": 1}, False),
            ({"temperature": None}, True),
            ({"temperature": 0.7, "top_k": 1}, False),
        ],
    )
    def test_what_is_drawn_is_shared_by_none(self, sampling: dict[str, Any], drawn: bool) -> None:
        llm = {"name": "a", "engine": "transformers", "model": "m", "device": "cpu", "sampling": sampling}
        config = BlendConfig.model_validate(
            {"models": [llm], "ranker": {"kind": "judge", "llm": llm | {"name": "j"}}, "fuser": {"model": "m"}}
        )
        member, judge = step("a", config.models[0]), step("ranker", config.ranker)
        fuser = step("fuser", config.fuser)
        work = StageGraph((member, judge, fuser), ("a",))
        assert isinstance(config.ranker, Judge) and isinstance(config.fuser, GenFuser)
        assert [work.shared(one) for one in work.steps] == [not drawn] * 3
        assert fuser.deterministic and StageGraph((ECHO, RANKER), ("a",)).shared(RANKER)


def test_a_retry_looks_where_something_failed_and_at_what_came_of_it(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    index = index_of(store, "a", "b", "c")
    steps = (ECHO, RANKER)
    for name, candidate in zip(index.names, (GOOD, BAD, GOOD), strict=True):
        save(store, ECHO, name, candidate)
        save(store, RANKER, name, GOOD)
    one, two, three = index.names
    assert to_do(store, index, StageGraph(steps, ("a",)), steps) == {"a": set(), "ranker": set()}
    first = StageGraph(steps, ("a",), attempt=1)
    assert to_do(store, index, first, steps) == {"a": {two}, "ranker": {two}}
    save(store, ECHO, two, BAD, attempt=1)  # then killed
    assert to_do(store, index, first, steps) == {"a": set(), "ranker": {two}}
    save(store, RANKER, two, GOOD, attempt=1)
    assert to_do(store, index, first, steps) == {"a": set(), "ranker": set()}
    assert to_do(store, index, StageGraph(steps, ("a",), attempt=2), steps) == {"a": {two}, "ranker": {two}}
    assert one != three


@dataclass
class Endpoint:
    """A server in a thread; `down`: texts on which a model fails, with the status."""

    url: str = ""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    down: dict[tuple[str, str], int] = field(default_factory=dict)

    def numbers(self) -> Counter[str]:
        """Requests by model; forgets them."""
        found: Counter[str] = Counter()
        for (model, _), count in self.asked.items():
            found[model] += count
        self.asked.clear()
        return found

    async def reply(self, body: dict[str, Any]) -> dict[str, Any] | Fault:
        model, text = body["model"], body["messages"][-1]["content"]
        self.asked[model, text] += 1
        for (of, word), status in self.down.items():
            if of == model and word in text:
                return respond(status, {"error": {"message": f"{model} is down"}})
        if model == "judge":
            left, _, right = text.partition("Answer A:")[2].partition("Answer B:")
            return completion("[[A]]" if left > right else "[[B]]", usage=COUNTS)
        return completion(f"{model}: {text.splitlines()[-1][:40]}", usage=COUNTS)


class _Failing(EndpointServer):
    async def _reply(self, request: Any, writer: Any) -> None:
        answer = await self.answer(request.body)
        await (answer if callable(answer) else respond(200, answer))(writer)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found, ready, loop = Endpoint(), threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with _Failing(answer=found.reply) as server:  # type: ignore[arg-type]
            found.url = server.url
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    yield found
    loop.call_soon_threadsafe(done.set)
    thread.join()


def blended(folder: Path, endpoint: Endpoint, **more: Any) -> BlendConfig:
    def llm(name: str) -> dict[str, Any]:
        own = {"name": name, "engine": "endpoint", "model": name, "base_url": endpoint.url, "max_retries": 0}
        return own | {"num_cpus": 0.1, "breaker": None, "max_error_rate": 1}

    settings = {
        "models": [{"name": "echo", "engine": "echo", "model": "m", "num_cpus": 0.1}, llm("far")],
        "ranker": {"kind": "judge", "llm": llm("judge")},
        "fuser": {"kind": "chat", "llm": llm("writer")},
        "rows_per_block": 4,
        "input": str(folder / "in.jsonl"),
        "output": str(folder / "out.jsonl"),
        "ray": {"num_cpus": 2},
    }
    return BlendConfig.model_validate(settings | more)


def calls(manifest: Manifest) -> dict[str, int]:
    """Calls of each endpoint by the manifest, which has the tokens of all of them."""
    stages = [stage for stage in manifest.stages if stage.name != "echo"]
    for stage in stages:
        assert (stage.prompt_tokens, stage.completion_tokens) == (30 * stage.calls, 20 * stage.calls)
        assert (stage.unreported_calls, stage.uncounted) == (0, 0)
    return {stage.name: stage.calls for stage in stages}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.usefixtures("ray_session")
def test_what_failed_is_asked_again_and_nothing_else(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member fails on one row, the judge on another, the fuser on a third; twice the retry is stopped."""
    rows = [json.dumps({"id": f"r{i}", "prompt": f"question {word}"}) for i, word in enumerate("abcdefgh")]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    output = tmp_path / "out.jsonl"
    config = blended(tmp_path, endpoint)
    endpoint.down = {("far", "question b"): 503, ("judge", "question c"): 429, ("writer", "question f"): 500}
    first = run_blend(config)
    assert endpoint.numbers() == {"far": 8, "judge": 2 * 6 + 2 * 2, "writer": 7}  # a failed one is asked twice
    assert calls(first.manifest) == {"far": 7, "ranker": 12, "fuser": 6}  # those that were answered
    before = lines(output)
    told = "\n".join(first.details())
    assert "far: no answer on 1 of 8 rows (12.5%): 1 x 503" in told.replace("it answered ", "")
    assert "ranker: no ranking of 1 of 8 rows" in told and "fuser: nothing fused of 1 of 7 rows" in told
    assert run_blend(config).resumed and not endpoint.asked

    endpoint.down = {("writer", "question f"): 500}
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise BlendError("killed")

        patch.setattr(waves, "write_output", killed)
        with pytest.raises(BlendError, match="killed"):
            run_blend(config, retry_failed=True)
    again = endpoint.numbers()
    assert again == {"far": 1, "judge": 2 + 2, "writer": 3}
    second = run_blend(config, retry_failed=True)
    assert not endpoint.asked  # the same attempt
    after = lines(output)
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [1, 2]
    row = json.loads(after[1])
    assert [one["model"] for one in row["candidates"]] == ["echo", "far"] and len(row["ranking"]) == 2
    assert row["fused"] and row["error"] is None and json.loads(after[2])["fused"]
    assert {stage.name: (stage.failed, stage.again) for stage in second.manifest.stages} == {
        "echo": (0, 0),
        "far": (0, 1),
        "ranker": (0, 2),
        "fuser": (1, 3),
    }
    assert calls(second.manifest) == {"far": 8, "ranker": 12 + 4, "fuser": 6 + 2}  # of all sessions
    endpoint.down = {}
    third = run_blend(config, retry_failed=True)
    assert endpoint.numbers() == {"writer": 1} and third.manifest.output.errors == 0
    assert not failure_lines(third.manifest)[:-1] and run_blend(config, retry_failed=True).nothing_failed
    assert not endpoint.asked


@pytest.mark.usefixtures("ray_session")
def test_an_earlier_output_as_input_is_asked_for_what_it_lacks(tmp_path: Path, endpoint: Endpoint) -> None:
    rows = [json.dumps({"id": f"r{i}", "prompt": f"question {word}"}) for i, word in enumerate("abc")]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    config = blended(tmp_path, endpoint, models=[blended(tmp_path, endpoint).models[1].model_dump()], fuser=None)
    endpoint.down = {("far", "question b"): 401}
    with pytest.raises(FailedRunError, match=r"max_error_rate 0\.1"):
        run_blend(config.model_copy(update={"max_error_rate": 0.1}))
    before = lines(tmp_path / "out.jsonl")
    assert json.loads(before[1])["error"].startswith("no candidate: far: ")
    endpoint.down = {}
    endpoint.asked.clear()
    run_blend(config.model_copy(update={"input": str(tmp_path / "out.jsonl"), "output": str(tmp_path / "2.jsonl")}))
    assert list(endpoint.asked) == [("far", "question b")]
    after = lines(tmp_path / "2.jsonl")
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [1]
    (candidate,) = json.loads(after[1])["candidates"]
    assert candidate["text"] and candidate["error"] is None and json.loads(after[1])["fused"] == candidate["text"]


@pytest.mark.usefixtures("ray_session")
def test_after_a_limit_the_rest_of_the_rows_is_all_that_is_asked_for(
    tmp_path: Path, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first hour: five rows, then all of them; each draw of a model is kept."""
    rows = [json.dumps({"id": f"r{i}", "prompt": f"question {word}", "n": i}) for i, word in enumerate("abcdefgh")]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    output = tmp_path / "out.jsonl"
    far = blended(tmp_path, endpoint).models[1].model_dump() | {"sampling": {"temperature": 1.0}}
    config = blended(tmp_path, endpoint, models=[far, far | {"name": "near", "model": "near"}])
    whole = run_blend(config.model_copy(update={"output": str(tmp_path / "whole.jsonl")}))
    endpoint.asked.clear()
    run_blend(config.model_copy(update={"limit": 5}))
    assert lines(output) == lines(tmp_path / "whole.jsonl")[:5]
    assert endpoint.numbers() == {"far": 5, "near": 5, "judge": 10, "writer": 5}

    capfd.readouterr()
    os.utime(tmp_path / "in.jsonl")
    rest = run_blend(config)
    assert endpoint.numbers() == {"far": 3, "near": 3, "judge": 6, "writer": 3}
    assert lines(output) == lines(tmp_path / "whole.jsonl")
    told = "limit: 5 -> not set: answers of 2 models kept, ranking kept, fusion kept, for 5 of 8 rows"
    assert f"blend: {output}: {told}" in capfd.readouterr().err
    assert [(stage.rows, stage.asked) for stage in rest.manifest.stages] == [(8, 8)] * 4
    assert rest.manifest.output.files[0].sha256 == whole.manifest.output.files[0].sha256
    assert run_blend(config).resumed

    fewer = config.model_copy(update={"limit": 2})
    with pytest.raises(BlendError, match=r"complete with 8 rows; limit 2 would leave fewer; --update writes only"):
        run_blend(fewer)
    assert lines(output) == lines(tmp_path / "whole.jsonl")


@pytest.mark.usefixtures("ray_session")
def test_equal_blocks_of_what_is_drawn_are_asked_for_each(tmp_path: Path, endpoint: Endpoint) -> None:
    """Greedy members are asked once for equal blocks; those that draw, for each."""
    rows = [{"id": f"{block}{word}", "prompt": f"question {word}"} for block in "xyz" for word in "abcd"]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    greedy = blended(tmp_path, endpoint).models[1].model_dump()
    draws = greedy | {"name": "draws", "model": "draws", "sampling": {"temperature": 1.0}}
    first = run_blend(blended(tmp_path, endpoint, models=[greedy, draws], fuser=None))
    found = endpoint.numbers()
    assert (found["far"], found["draws"]) == (4, 12)
    assert calls(first.manifest) == {"far": 4, "draws": 12, "ranker": found["judge"]}  # a copy is no call
    before = lines(tmp_path / "out.jsonl")
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"id": "new", "prompt": "question e"}))
    # the block size makes other blocks of all rows: they keep what was drawn for them
    run_blend(blended(tmp_path, endpoint, models=[greedy, draws], fuser=None, rows_per_block=5), update=True)
    found = endpoint.numbers()
    assert (found["far"], found["draws"]) == (1, 1)
    assert lines(tmp_path / "out.jsonl")[:-1] == before

"""GenFuser against the original's answers: the same input ids, the same text, however it is asked."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN, ROOT
from tokenizers import Tokenizer

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import GenerationError, ModelLoadError, PromptError
from llm_blender_ray.actors.fusers.genfuser import FuserTemplate, GenFuserModel
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.tokens import LiteralTokenizer, load_tokenizer_backend
from llm_blender_ray.configs.schema import GenFuser, SamplingOverrides

MINIATURE = ROOT / "configs" / "miniature" / "fuser"
ANSWERS = json.loads((GOLDEN / "genfuser.json").read_text())
CASES = ANSWERS["cases"]
FUSED = [case["fused_beam4_max24"] for case in CASES]
TOKENIZER = LiteralTokenizer(load_tokenizer_backend(GOLDEN / "checkpoints" / "gen_fuser"))


def load(**settings: Any) -> GenFuserModel:
    given = {
        "model": str(GOLDEN / "checkpoints" / "gen_fuser"),
        "device": "cpu",
        "num_beams": ANSWERS["num_beams"],
        "max_new_tokens": ANSWERS["max_new_tokens"],
        "max_length": ANSWERS["max_length"],
        "candidate_max_length": ANSWERS["candidate_maxlength"],
        "max_batch_size": 5,
    }
    return GenFuserModel(GenFuser(**given | settings))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def fuser(runner: asyncio.Runner) -> Iterator[GenFuserModel]:
    fuser = load()
    yield fuser
    runner.run(fuser.close())


@pytest.fixture(scope="module")
def greedy(runner: asyncio.Runner) -> Iterator[GenFuserModel]:
    """One beam, so that it streams."""
    fuser = load(num_beams=1)
    yield fuser
    runner.run(fuser.close())


def item(case: dict) -> tuple[Prompt, list[str]]:
    return Prompt("", case["instruction"], case["input"]), case["candidates"]


async def fused(fuser: GenFuserModel, *cases: dict, change: SamplingOverrides | None = None) -> list[Completion]:
    return await asyncio.gather(*(fuser.fuse(*item(case), change) for case in cases))


async def streamed(
    fuser: GenFuserModel, case: dict, change: SamplingOverrides | None = None
) -> tuple[list[str], Completion]:
    *pieces, completion = [piece async for piece in fuser.stream(*item(case), change)]
    assert isinstance(completion, Completion)
    return pieces, completion


UNSEEN = json.loads((GOLDEN / "genfuser_unknown.json").read_text())["cases"]


@pytest.mark.parametrize("case", [*CASES, *UNSEEN])
def test_input_ids(fuser: GenFuserModel, case: dict) -> None:
    assert fuser.template.input_ids(case["instruction"], case["input"], case["candidates"]) == case["input_ids"]


def test_fused_text_of_calls_at_once(fuser: GenFuserModel, runner: asyncio.Runner) -> None:
    answers = runner.run(fused(fuser, *CASES))
    assert [answer.text for answer in answers] == FUSED
    assert [answer.prompt_tokens for answer in answers] == [len(case["input_ids"]) for case in CASES]


def test_fused_text_alone(fuser: GenFuserModel, runner: asyncio.Runner) -> None:
    (answer,) = runner.run(fused(fuser, CASES[3]))
    assert answer.text == FUSED[3]
    assert fuser.fuse_all([item(CASES[3])]) == [FUSED[3]]


def test_fused_text_of_all_in_one_call(fuser: GenFuserModel) -> None:
    assert fuser.fuse_all([item(case) for case in CASES]) == FUSED
    assert fuser.fuse_all([]) == []


def test_a_search_comes_in_one_piece(fuser: GenFuserModel, runner: asyncio.Runner) -> None:
    pieces, completion = runner.run(streamed(fuser, CASES[0]))
    assert pieces == [completion.text] == FUSED[:1]


def test_one_beam_streams(greedy: GenFuserModel, runner: asyncio.Runner) -> None:
    async def main() -> list[tuple[list[str], Completion]]:
        return await asyncio.gather(*(streamed(greedy, case) for case in CASES))

    streams = runner.run(main())
    assert [completion for _, completion in streams] == runner.run(fused(greedy, *CASES))
    assert [completion.text for _, completion in streams] == greedy.fuse_all([item(case) for case in CASES])
    assert all("".join(pieces) == completion.text and len(pieces) > 5 for pieces, completion in streams)


@pytest.mark.parametrize("beams", ["fuser", "greedy"])
def test_a_request_may_shorten_the_answer(
    beams: str, runner: asyncio.Runner, request: pytest.FixtureRequest
) -> None:
    fuser: GenFuserModel = request.getfixturevalue(beams)
    (whole,) = runner.run(fused(fuser, CASES[0]))
    (short,) = runner.run(fused(fuser, CASES[0], change=SamplingOverrides(max_tokens=3)))
    assert (short.completion_tokens, short.finish_reason) == (3, "length")
    assert runner.run(fused(fuser, CASES[0], change=SamplingOverrides(max_tokens=1000))) == [whole]
    assert runner.run(fused(fuser, CASES[0], change=SamplingOverrides(temperature=2.0, seed=1, top_p=0.5))) == [
        whole
    ]

    stop = whole.text[10:13]
    change = SamplingOverrides(stop=("nowhere in it", stop))
    (cut,) = runner.run(fused(fuser, CASES[0], change=change))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.completion_tokens is not None and whole.completion_tokens is not None
    assert cut.completion_tokens < whole.completion_tokens
    pieces, completion = runner.run(streamed(fuser, CASES[0], change))
    assert "".join(pieces) == completion.text == cut.text


@pytest.mark.parametrize("num_beams", [1, 4])
def test_an_answer_that_the_model_ends(runner: asyncio.Runner, num_beams: int) -> None:
    """The included fuser, which was trained."""
    fuser = load(model=str(MINIATURE), num_beams=num_beams)
    case = {"instruction": "Answer.", "input": "", "candidates": ["1) Cairo", "1) Rome", "1) Cairo"]}
    pieces, completion = runner.run(streamed(fuser, case))
    runner.run(fuser.close())
    assert completion.text.startswith("1) ") and "".join(pieces) == completion.text
    assert completion.finish_reason == "stop"
    assert completion.completion_tokens is not None and completion.completion_tokens < ANSWERS["max_new_tokens"]


def test_more_candidates_than_the_tokenizer_has_markers() -> None:
    with pytest.raises(ModelLoadError, match=r"no <extra_id_100>, which a fuser with top_k 101 reads"):
        load(top_k=101)


def test_more_candidates_than_can_be_marked_are_refused(fuser: GenFuserModel, runner: asyncio.Runner) -> None:
    with pytest.raises(PromptError, match="<extra_id_100>"):
        runner.run(fuser.fuse(Prompt("", "do"), ["an answer"] * 101))


def test_a_closed_fuser_writes_no_more(runner: asyncio.Runner) -> None:
    fuser = load()
    runner.run(fuser.check_health())
    runner.run(fuser.close())
    with pytest.raises(GenerationError, match="closed"):
        runner.run(fuser.fuse(*item(CASES[0])))


@pytest.mark.parametrize("spelled", ["</s>", "<extra_id_0>", "<pad>", "<unk>"])
def test_text_that_spells_a_special_token_stays_text(fuser: GenFuserModel, spelled: str) -> None:
    plain = fuser.template.input_ids("do", "it", ["an answer"])
    marked = fuser.template.input_ids("do", "it", [f"an {spelled} answer"])
    special = [i for i in plain if i < 3 or i >= 2000]
    assert [i for i in marked if i < 2 or i >= 2000] == [i for i in special if i != 2]


def test_long_candidates_are_cut_and_the_input_is_bounded(fuser: GenFuserModel) -> None:
    long = "word " * 5000
    read = fuser.template.build(Prompt("", "do", "it"), [long] * 20)
    assert len(read.ids) <= ANSWERS["max_length"]
    assert (
        read.candidates is not None and 1 < read.candidates < 20
    )  # the last ones are left out, and nobody claims that they were read
    one = fuser.template.input_ids("do", "it", [long])
    assert len(one) < ANSWERS["candidate_maxlength"] + 80


REQUEST_IDS = 12  # fewer than the tokens of the request at the end of each input


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("", "word " * 1500),
        Prompt("", "Sum up.", "word " * 1500),
        Prompt("", "begin " + "word " * 1500 + "end", "word " * 1500),
        Prompt("", messages=tuple({"role": role, "content": "word " * 300} for role in ["user", "assistant"] * 3)),
    ],
    ids=["instruction", "input", "both", "chat"],
)
def test_a_long_prompt_leaves_the_candidates_and_the_request(fuser: GenFuserModel, prompt: Prompt) -> None:
    one, other = (fuser.template.build(prompt, [text, "b", "c"]) for text in ("Paris", "Oslo"))
    short = fuser.template.input_ids("do", "it", ["Paris", "b", "c"])
    assert one.ids != other.ids and (one.candidates, other.candidates) == (None, None)
    assert one.ids[-REQUEST_IDS:] == short[-REQUEST_IDS:]
    assert len(fuser.template.input_ids("", "", ["Paris", "b", "c"])) * 3 // 2 < len(one.ids) < 200


def test_a_long_chat_leaves_its_last_turn(fuser: GenFuserModel) -> None:
    def read(question: str) -> list[int]:
        history = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "yes"}]
        turns: Any = (*history, {"role": "user", "content": question})
        return fuser.template.build(Prompt("", messages=turns), ["a", "b"]).ids

    assert read("What is the capital of France?") != read("What is the past tense of go?")


def test_the_included_fuser_reads_its_candidates_whatever_the_prompt_s_length(runner: asyncio.Runner) -> None:
    fuser = load(model=str(MINIATURE), num_beams=1)
    cases = [
        {"instruction": "word " * 1500, "input": "", "candidates": [text] * 3}
        for text in ("1) Paris 2) went 3) fox", "1) Oslo 2) ran 3) owl")
    ]
    first, second = runner.run(fused(fuser, *cases))
    runner.run(fuser.close())
    assert "Paris" in first.text and "Oslo" in second.text


def test_a_fuser_tells_how_many_candidates_it_read(greedy: GenFuserModel, runner: asyncio.Runner) -> None:
    case = {"instruction": "do", "input": "it", "candidates": ["word " * 500] * 12}
    (whole,) = runner.run(fused(greedy, case))
    assert whole.candidates_read is not None and whole.candidates_read < 12
    assert runner.run(streamed(greedy, case))[1] == whole


@settings(max_examples=30)
@given(st.integers(8, 300), st.integers(0, 400), st.integers(0, 400), st.integers(1, 6), st.integers(1, 200))
def test_any_lengths_fit(limit: int, first: int, second: int, count: int, each: int) -> None:
    template = FuserTemplate(TOKENIZER, max_length=limit, candidate_max_length=128)
    read = template.build(Prompt("", "word " * first, "a { b " * second), ["word { " * each] * count)
    assert len(read.ids) <= limit and 1 <= (read.candidates or count) <= count


UNKNOWN = ["{", "~", "\n", "\U0001f389", "東"]  # characters that the tokenizer has no piece for


def test_an_unknown_piece_of_a_cut_candidate_stays_the_unknown_token(fuser: GenFuserModel) -> None:
    """What the original decodes as `<unk>`, it reads as the unknown token again."""
    text = " ".join(f"word {character}" for character in UNKNOWN * 40)
    backend = Tokenizer.from_file(str(GOLDEN / "checkpoints" / "gen_fuser" / "tokenizer.json"))
    unknown = backend.token_to_id("<unk>")
    whole = backend.encode(text, add_special_tokens=False).ids
    assert whole.count(unknown) > 100
    ids = fuser.template.input_ids("do", "it", [text])
    cut = whole[: ANSWERS["candidate_maxlength"]]
    assert ids.count(unknown) - fuser.template.input_ids("do", "it", ["word"]).count(unknown) == cut.count(unknown)

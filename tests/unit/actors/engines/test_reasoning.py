"""Reasoning before an answer: what of a text it is, and real models and servers that write it."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from endings import followed, told_or
from endpoint_server import EndpointServer, chunk, completion, respond, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, FACTS, make_tokenizer, save_chat_model

from llm_blender_ray.actors.detokenization import Detokenizer, Transcript
from llm_blender_ray.actors.engines import Completion, Engine, ReasoningDelta, load_engine
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.engines.reasoning import AnswerFilter
from llm_blender_ray.actors.engines.reasoning_formats import _FORMATS, REASONING_FORMATS, formats_of
from llm_blender_ray.actors.errors import GenerationError, PromptError, RejectedError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.reasoning import AUTO, FAMILIES
from llm_blender_ray.configs.schema import EndpointModel, ModelSettings, Sampling, TransformersModel, VLLMModel

OPENS = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
REASONING = "<think>Which one?</think>\n\n"
QUESTION = [Message(role="user", content="capital of France")]
GREEDY = Sampling(max_tokens=32)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Four.", "Four."),
        ("Four.\n", "Four.\n"),
        (" \n Four.", " \n Four."),
        ("<think>3? 4?</think>\n\nFour.", "Four."),
        ("\n<think>\n3? 4?\n</think>Four. ", "Four. "),
        ("<think>a</think> <think>b</think> Four.", "Four."),
        ("<think></think>Four.", "Four."),
        ("<think>a < b</thin></think>Four.", "Four."),
        ("<thinking> is the word.", "<thinking> is the word."),
        (" <thin", " <thin"),
        ("I <think>it is</think> four.", "I <think>it is</think> four."),
        ("<think>a</think>Four <think>b</think>.", "Four <think>b</think>."),
        ("<think>never ends", ""),
        ("<think>a</think> \n", ""),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_what_the_answer_is(text: str, answer: str) -> None:
    def read(cuts: list[int]) -> str:
        filter = AnswerFilter()
        ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        return "".join([*(filter.add(text[a:b]) for a, b in pairwise(ends)), filter.rest()])

    assert read([]) == read([*range(len(text))]) == answer
    for cut in range(len(text)):
        assert read([cut]) == read([cut, cut + 1]) == answer


def split(text: str, size: int = 0, **options: Any) -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces of this size; 0 for all of it."""
    filter = AnswerFilter(**options)
    reasoning = answer = ""
    for at in range(0, len(text), size or len(text)):
        answer += filter.add(text[at : at + (size or len(text))])
        reasoning += filter.take_reasoning()
    answer += filter.rest()
    return reasoning + filter.take_reasoning(), answer


HARMONY = "<|channel|>analysis<|message|>3? 4?<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[THINK]3? 4?[/THINK]Four.", "Four."),
        ("<seed:think>\n3? 4?\n</seed:think>\n\nFour.", "Four."),
        ("<reasoning>3? <think>4?</think></reasoning> Four.", "Four."),
        ("<thought>\n3?\n</thought>Four.", "Four."),
        ("<thinking>3?</thinking>\nFour.", "Four."),
        ("<longcat_think>3?</longcat_think>Four.", "Four."),
        ("◁think▷3? 4?◁/think▷Four.", "Four."),
        ("<|inner_prefix|>3?<|inner_suffix|>Four.", "Four."),
        ("<|START_THINKING|>3?<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>", "Four."),
        ("<|begin_of_thought|>3?<|end_of_thought|>\n<|begin_of_solution|>\nFour.", "Four."),
        ("Here is my thought process: 3? 4? Here is my response: Four.", "Four."),
        ("Here's my thought process:\n3?\nHere's my response:\nFour.", "Four."),
        ("Here are my reasoning steps:\n3?\n[BEGIN FINAL RESPONSE]\nFour.[END FINAL RESPONSE]\n", "Four."),
        (HARMONY + "<|channel|>final<|message|>Four.<|return|>", "Four."),
        (HARMONY + "<|channel|>final <|constrain|>json<|message|>{}<|end|>", "{}"),
        (HARMONY + HARMONY.removeprefix("<|start|>assistant") + "<|channel|>final<|message|>Four.", "Four."),
        (HARMONY.replace("analysis", "commentary") + "<|channel|>final<|message|>Four.", "Four."),
        ("<|start|>assistant" + HARMONY + "<|channel|>final<|message|>Four.", "Four."),
        ("<|channel|>final<|message|>Four.", "Four."),
        ("<|channel|>final<|message|>Say <|end|> or <|channel|>analysis<|message|>.", None),
        ("analysisThe user counts. 3? 4?assistantfinalFour.", "Four."),
        (HARMONY, ""),
        ("[THINK]3?", ""),
        ("Here is my thought process: there is none.", None),
        ("analysis is a branch of mathematics.", None),
        ("<thinking> is a tag.", None),
        ("The tags are [THINK] and [/THINK], <reasoning> and </reasoning>.", None),
        ("Say <|channel|>analysis<|message|>, then <|channel|>final<|message|>.", None),
        ("assistantfinal is no word, nor is analysis.", None),
        ("Four.<|return|>", None),
        ("<|channel|> is a token.", None),
    ],
)
def test_each_format_is_known_in_any_chunks(text: str, answer: str | None) -> None:
    """None: all of it is the answer, behind the mark of a final channel."""
    expected = text.removeprefix("<|channel|>final<|message|>") if answer is None else answer
    for size in (1, 2, 3, 5, 8, len(text)):
        filter = AnswerFilter()
        pieces = [filter.add(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*pieces, filter.rest()]) == expected


def test_a_common_beginning_that_is_cut_off_is_reasoning() -> None:
    """At its longest length nothing tells how it would have gone on."""
    filter = AnswerFilter()
    assert filter.add("Here is my thought process: 3? 4?") + filter.rest(cut=True) == ""
    assert filter.reasoning


MARKS = sorted({mark for f in REASONING_FORMATS for mark in (*f.begins, *f.ends, f.header, f.opening, *f.closing)})


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>\n3? 4?\n\n</think>\n\nFour.", "3? 4?"),
        ("<think></think>Four.", ""),
        ("<think> a </think> <think>\nb</think> Four.", "a\n\nb"),
        ("<think>a < b\n\nc</thin></think>Four.", "a < b\n\nc</thin>"),
        ("<think>never  ends \n", "never  ends"),
        ("[THINK]3? 4?[/THINK]Four.", "3? 4?"),
        ("<|START_THINKING|>3?<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>", "3?"),
        ("Here's my thought process:\n3? 4?\nHere's my response:\nFour.", "3? 4?"),
        ("Here is my thought process: there is none.", ""),
        (HARMONY + "<|channel|>final<|message|>Four.<|return|>", "3? 4?"),
        ("<|start|>assistant" + HARMONY + "<|channel|>commentary<|message|>And?<|end|>", "3? 4?\nAnd?"),
        ("<|channel|>final<|message|>Four.", ""),
        ("analysisThe user counts.assistantfinalFour.", "The user counts."),
        ("Four.", ""),
    ],
)
def test_what_the_reasoning_is(text: str, reasoning: str) -> None:
    assert {split(text, size)[0] for size in (0, 1, 2, 3, 5, 8)} == {reasoning}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_format(family: str) -> None:
    """Whose marks its answers are told apart by, also where a server's chat template has written the begin mark."""
    formats = formats_of(family)
    begin, end = formats[0].begins[0], f"{formats[0].ends[0]}{formats[0].header}"
    answer = f"{formats[0].opening}Four.{''.join(formats[0].closing[:1])}"
    assert split(f"{begin} 3? {end}\n{answer}", 3, formats=formats) == ("3?", "Four.")
    if not formats[0].tentative and not formats[0].inner:
        assert split(f"3? {end}\n{answer}", 3, formats=formats, implied=True) == ("3?", "Four.")
        assert split(f"{begin} 3? {end}\n{answer}", 3, formats=formats, implied=True) == ("3?", "Four.")
        assert split(" Four.", 3, formats=formats, implied=True) == ("", " Four.")  # it hasn't reasoned this time


def test_the_families_of_formats_are_those_of_configs() -> None:
    assert {family for format in _FORMATS for family in format.families} == set(FAMILIES)
    assert formats_of(AUTO) == formats_of("of vLLM alone") == REASONING_FORMATS
    with pytest.raises(ValueError, match="reasoning_parser"):
        TransformersModel(engine="transformers", name="m", model="m", reasoning_parser="deepseek")
    assert VLLMModel(engine="vllm", name="m", model="m", reasoning_parser="inkling").reasoning_parser == "inkling"


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([*MARKS, "<", "think>", "word", " ", "</", "\n"]), max_size=8),
    st.lists(st.integers(0, 200)),
    st.sampled_from(["", "<think>", "[THINK]", "<|channel|>analysis<|message|>"]),
    st.booleans(),
    st.sampled_from([AUTO, "deepseek_r1", "hunyuan_a13b", "seed_oss"]),
)
def test_where_a_text_is_cut_makes_no_difference(
    parts: list[str], cuts: list[int], opened: str, cut: bool, parser: str
) -> None:
    text = opened + "".join(parts)
    whole, streamed = (AnswerFilter(formats_of(parser), implied=parser != AUTO) for _ in range(2))
    ends = sorted({0, len(text), *(end for end in cuts if end < len(text))})
    pieces, thoughts = [], []
    for a, b in pairwise(ends):
        pieces.append(streamed.add(text[a:b]))
        thoughts.append(streamed.take_reasoning())
    assert "".join([*pieces, streamed.rest(cut=cut)]) == whole.add(text) + whole.rest(cut=cut)
    assert "".join([*thoughts, streamed.take_reasoning()]) == whole.take_reasoning()
    assert streamed.reasoning == whole.reasoning


@given(st.text(max_size=20), st.lists(st.sampled_from(MARKS), max_size=4))
def test_an_answer_may_mention_every_mark(text: str, marks: list[str]) -> None:
    answer = "Well, " + text.join(marks)
    filter = AnswerFilter()
    assert filter.add(answer) + filter.rest() == answer


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (OPENS, "<think>"),
        (OPENS.replace("<think>", "<think>\n"), "<think>"),
        (OPENS.replace("<think>", "[THINK]"), "[THINK]"),
        (OPENS.replace("<think>", "<|channel|>analysis<|message|>"), "<|channel|>analysis<|message|>"),
        (CHAT_TEMPLATE, ""),
        (OPENS.replace("<think>", "<think>\n\n</think>\n\n"), ""),  # Qwen3's, told not to
        ("{{ raise_exception('no') }}", ""),
        (None, ""),
    ],
)
def test_a_template_that_opens_the_reasoning_is_known(template: str | None, opens: str) -> None:
    """And begins the answer's text, so that everything after it reads the text alike."""
    chat, asked = ChatTokenizer(make_tokenizer(template)), [Message(role="user", content="?")]
    if template and "raise" in template:
        with pytest.raises(PromptError):
            chat.prompt(asked)
    else:
        assert chat.prompt(asked).opened == opens


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (["<|start|>", "<|channel|>", "<|message|>", "<|return|>"], HARMONY + "<|channel|>final<|message|>Four."),
        (["[THINK]", "[/THINK]"], "[THINK]3? 4?[/THINK]Four."),
        (["<think>", "</think>"], "<think>3? 4?</think>Four."),
    ],
)
@pytest.mark.parametrize("is_special", [True, False])
def test_marks_that_are_special_tokens_are_seen(special: list[str], text: str, is_special: bool) -> None:
    """Decoders leave out special tokens, and then nothing would tell reasoning from the answer."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(special, special_tokens=is_special)
    chat = ChatTokenizer(tokenizer)
    assert chat.marks_reasoning is is_special
    decode = Detokenizer(chat.decoder(), tokenizer.get_vocab())
    ids = tokenizer(f"{text}<|pad|>" if "<|end|>" in text else f"{text}<|end|>")["input_ids"]
    whole, streamed, transcript = AnswerFilter(), AnswerFilter(), Transcript(decode)
    assert whole.add(decode.text(ids)) + whole.rest() == "Four."
    assert "".join([*(streamed.add(transcript.push(i)) for i in ids), streamed.rest()]) == "Four."


def test_other_special_tokens_are_left_out() -> None:
    chat = ChatTokenizer(make_tokenizer())
    assert not chat.marks_reasoning
    assert chat.decoder()(chat.tokenizer("<|user|>Four.<|end|>")["input_ids"]) == "Four."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("reasoning"), ["capital of France"], reasoning=REASONING)


@pytest.fixture(params=[CHAT_TEMPLATE, OPENS], ids=["the LLM writes <think>", "the template does"])
def reasoner(request: pytest.FixtureRequest, folder: Path) -> Callable[..., TransformersModel]:
    """Settings of an LLM that reasons before each answer."""
    make_tokenizer(request.param).save_pretrained(folder)

    def made(**more: Any) -> TransformersModel:
        own = {"name": "r", "model": str(folder), "device": "cpu", "sampling": GREEDY}
        return TransformersModel(engine="transformers", **own, **more)

    return made


def both(model: ModelSettings, sampling: Sampling = GREEDY) -> tuple[Completion | GenerationError, list[str]]:
    """How the answer ends, which is the same whole and streamed; and the stream's pieces."""

    async def main() -> tuple[Completion | GenerationError, list[str]]:
        engine = load_engine(model)
        try:
            return await _both(engine, sampling)
        finally:
            await engine.close()

    return asyncio.run(main())


async def _both(engine: Engine, sampling: Sampling) -> tuple[Completion | GenerationError, list[str]]:
    whole = await told_or(engine.generate(QUESTION, sampling))
    pieces, last = await followed(engine.stream(QUESTION, sampling))
    assert str(last) == str(whole) and type(last) is type(whole)
    if isinstance(whole, Completion):
        assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)) == (
            whole.reasoning or ""
        )
    return whole, [piece for piece in pieces if isinstance(piece, str)]


def test_a_real_model_s_reasoning_is_left_out(reasoner: Callable[..., TransformersModel]) -> None:
    answer, pieces = both(reasoner())
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason) == (FACTS["capital of France"], "stop")
    assert answer.reasoning == "Which one?"
    assert "".join(pieces) == answer.text
    tokens = make_tokenizer()(answer.text)["input_ids"]
    assert answer.completion_tokens is not None and answer.completion_tokens > len(tokens) + 5  # all were written


def test_it_is_kept_where_the_settings_say_so(reasoner: Callable[..., TransformersModel]) -> None:
    answer, pieces = both(reasoner(keep_reasoning=True))
    assert isinstance(answer, Completion)
    assert answer.text == f"{REASONING}{FACTS['capital of France']}"
    assert "".join(pieces) == answer.text


def test_tokens_of_reasoning_are_counted_apart(reasoner: Callable[..., TransformersModel]) -> None:
    answer, _ = both(reasoner())
    assert isinstance(answer, Completion) and answer.completion_tokens and answer.reasoning_tokens
    assert answer.reasoning_tokens == answer.completion_tokens - tokens(f"\n\n{answer.text}<|end|>")


@pytest.mark.parametrize("budget", [0, 1, 3, 100])
def test_reasoning_ends_where_its_budget_is_used_up(
    reasoner: Callable[..., TransformersModel], budget: int
) -> None:
    """The end mark is written for the LLM, and its answer follows; in any batch, whole or streamed."""
    model = reasoner(keep_reasoning=True)
    sampling = GREEDY.model_copy(update={"thinking_token_budget": budget})

    async def main() -> list[Completion]:
        engine = load_engine(model)
        try:
            alone = await engine.generate(QUESTION, sampling)
            calls = (engine.generate(QUESTION, one) for one in (sampling, GREEDY, sampling))
            first, free, second = await asyncio.gather(*calls)
            _, streamed = await followed(engine.stream(QUESTION, sampling))
            assert alone == first == second == streamed and free.text.startswith(REASONING)
            return [alone, free]
        finally:
            await engine.close()

    answer, free = asyncio.run(main())
    if budget == 100:
        assert answer == free
        return
    thought, end, _ = answer.text.partition("</think>")
    assert end and "<think>Which one".startswith(thought)
    opened = len(free.text) > 0 and free.completion_tokens == tokens(f"{free.text}<|end|>")  # by the LLM
    assert tokens(thought.removeprefix("" if opened else "<think>")) == max(
        budget, tokens("<think>") if opened else 0
    )


def tokens(text: str) -> int:
    return len(make_tokenizer()(text)["input_ids"])


def test_an_answer_that_does_not_get_beyond_its_reasoning_is_none(
    reasoner: Callable[..., TransformersModel],
) -> None:
    error, pieces = both(reasoner(), Sampling(max_tokens=6))
    assert isinstance(error, RejectedError) and not pieces  # a client's small max_tokens is no failure of the model
    assert str(error) == "the answer ends within its reasoning; raise sampling.max_tokens"


@pytest.mark.parametrize(
    ("texts", "parser", "pieces", "reasoning"),
    [
        (["<th", "ink>3?", " 4?</think", ">\n", "Four", " it is."], AUTO, ["Four", " it is."], "3? 4?"),
        (["<", "thi"], AUTO, ["<thi"], None),
        ([" ", "Four"], AUTO, [" Four"], None),
        (["3?", " 4?</think", ">\n", "Four", " it is."], "qwen3", ["Four", " it is."], "3? 4?"),
        (["Four", " it is."], "qwen3", ["Four it is."], None),
    ],
)
def test_a_server_s_reasoning_is_no_part_of_the_answer(
    texts: list[str], parser: str, pieces: list[str], reasoning: str | None
) -> None:
    async def main() -> tuple[Completion | GenerationError, list[str]]:
        whole = respond(200, completion("".join(texts)))
        async with EndpointServer([whole, stream(*map(chunk, texts), chunk(finish_reason="stop"))]) as server:
            own = {"name": "e", "model": "m", "max_retries": 0, "reasoning_parser": parser}
            model = EndpointModel(engine="endpoint", base_url=server.url, **own)
            engine = load_engine(model)
            try:
                return await _both(engine, GREEDY)
            finally:
                await engine.close()

    assert asyncio.run(main()) == (Completion("".join(pieces), "stop", reasoning=reasoning), pieces)

"""The decoding thread: what shares a batch, what breaks one, who is told what and when.

Real small models, causal and seq2seq, with random weights. A hook in the model stands still where a test needs the
thread to be at a certain step.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_steps import Steps
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from tiny_models import FACTS, save_plain_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from llm_blender_ray.actors.decoding import BatchDecoder
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError, GenerationError, PromptError, RejectedError
from llm_blender_ray.actors.weights import load_model, load_tokenizer
from llm_blender_ray.configs.schema import Sampling

GEN_FUSER = GOLDEN / "checkpoints" / "gen_fuser"
GREEDY = Sampling(max_tokens=12)
LONG = Sampling(max_tokens=100)
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load(auto_class: Any, folder: Path) -> Loaded:
    model = load_model(auto_class, folder, device=torch.device("cpu"), dtype=torch.float32)
    return model, load_tokenizer(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(AutoModelForCausalLM, save_plain_model(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def seq2seq() -> Loaded:
    return load(AutoModelForSeq2SeqLM, GEN_FUSER)


@pytest.fixture(params=["causal", "seq2seq"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return request.getfixturevalue(request.param)


def detokenizer(tokenizer: PreTrainedTokenizerBase) -> Detokenizer:
    decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Detokenizer(decode, tokenizer.get_vocab())


def make(loaded: Loaded, **options: Any) -> BatchDecoder:
    model, tokenizer = loaded
    given = {"name": "decode t", "pad_id": 0, "max_batch_size": 8, "smaller": "max_tokens", **options}
    return BatchDecoder(model, detokenizer(tokenizer), **given)


def ids_of(loaded: Loaded, *texts: str) -> list[list[int]]:
    return [loaded[1](text)["input_ids"] for text in texts]


def run(decoder: BatchDecoder, main: Callable[[], Any]) -> Any:
    """What `main()` gives; the decoder is closed then."""

    async def closing() -> Any:
        try:
            return await main()
        finally:
            await decoder.close()

    return asyncio.run(closing())


async def gather(decoder: BatchDecoder, prompts: list[list[int]], sampling: Sampling = GREEDY) -> list[Any]:
    calls = (decoder.complete(ids, sampling) for ids in prompts)
    return await asyncio.gather(*calls, return_exceptions=True)


async def followed(decoder: BatchDecoder, ids: list[int], sampling: Sampling) -> tuple[list[str], Completion]:
    *pieces, completion = [piece async for piece in decoder.stream(ids, sampling)]
    assert isinstance(completion, Completion)
    return pieces, completion


@pytest.fixture
def batches(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the prompts of every batch: those prefilled together."""
    model = loaded[0]
    lengths: list[list[int]] = []
    generate = model.generate

    def counting(*, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.get("past_key_values") is None:
            lengths.append(attention_mask.sum(dim=1).tolist())
        return generate(attention_mask=attention_mask, **options)

    monkeypatch.setattr(model, "generate", counting)
    return lengths


@pytest.fixture
def steps(loaded: Loaded) -> Iterator[Callable[[int], Steps]]:
    made: list[Steps] = []

    def at(step: int) -> Steps:
        made.append(Steps(loaded[0], step))
        return made[-1]

    yield at
    for one in made:
        one.remove()


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@settings(max_examples=15)
@given(data=st.data())
def test_streams_are_the_answers_in_pieces(kind: str, data: st.DataObject, request: pytest.FixtureRequest) -> None:
    """Greedy and sampled, with stop strings, in a batch with others: as if alone and not followed."""
    loaded: Loaded = request.getfixturevalue(kind)
    prompts = data.draw(
        st.lists(st.lists(st.integers(5, len(loaded[1]) - 1), min_size=1, max_size=9), min_size=1, max_size=5)
    )
    stop = data.draw(st.lists(st.text("aeiou n", min_size=1, max_size=2), max_size=2).map(tuple))
    sampling = Sampling(max_tokens=16, temperature=data.draw(st.sampled_from([0.0, 0.7])), stop=stop, seed=3)
    decoder = make(loaded)

    async def main() -> tuple[list[tuple[list[str], Completion]], list[Completion]]:
        streams = asyncio.gather(*(followed(decoder, ids, sampling) for ids in prompts[1:]))
        others = asyncio.create_task(decoder.complete(prompts[0], sampling))
        return [*await streams, ([], await others)], [await decoder.complete(ids, sampling) for ids in prompts]

    together, alone = run(decoder, main)
    assert [completion for _, completion in together] == [*alone[1:], alone[0]]
    for pieces, completion in together[:-1]:
        assert "".join(pieces) == completion.text and all(pieces)
        assert not any(end in completion.text for end in stop)


def test_requests_made_together_are_decoded_together(loaded: Loaded, batches: list[list[int]]) -> None:
    decoder = make(loaded, max_batch_size=8)
    run(decoder, lambda: gather(decoder, ids_of(loaded, *FACTS)))
    sizes = [len(batch) for batch in batches]
    assert sizes == [8, 8, 4] if loaded[0].config.is_encoder_decoder else (sizes[0], sum(sizes)) == (8, len(FACTS))


def test_prompts_of_like_length_share_a_batch(loaded: Loaded, batches: list[list[int]]) -> None:
    decoder = make(loaded, max_batch_size=2)
    run(decoder, lambda: gather(decoder, [[9] * length for length in (3, 30, 4, 31, 5)]))
    assert batches[0] == [3, 4] and sorted(itertools.chain(*batches)) == [3, 4, 5, 30, 31]
    assert batches[1:] == [[30, 31], [5]] or not loaded[0].config.is_encoder_decoder


def test_prompts_are_prefilled_some_at_a_time(loaded: Loaded, batches: list[list[int]]) -> None:
    """The answers of others wait for a prefill; where none can join, there is nothing to wait for."""
    decoder = make(loaded)
    lengths = [6, 60, 400, 50, 401, 6]
    run(decoder, lambda: gather(decoder, [[9] * length for length in lengths]))
    whole = [[6, 6, 50, 60, 400, 401]]
    assert batches == (whole if loaded[0].config.is_encoder_decoder else [[6, 6, 50, 60], [400, 401]])


def test_requests_of_other_settings_share_a_batch_where_they_can(loaded: Loaded, batches: list[list[int]]) -> None:
    decoder = make(loaded)
    samplings = [GREEDY, LONG, GREEDY.model_copy(update={"seed": 1})]
    run(decoder, lambda: asyncio.gather(*(decoder.complete([9] * 3, sampling) for sampling in samplings)))
    assert batches == ([[3, 3], [3]] if loaded[0].config.is_encoder_decoder else [[3, 3, 3]])


def test_answers_of_different_seeds_are_decoded_together(loaded: Loaded, batches: list[list[int]]) -> None:
    """And each is what it is alone, whatever its neighbours' seeds; one without a seed takes nothing from them."""
    decoder = make(loaded)
    seeds = [1, None, 2, 1, 3, None]
    samplings = [Sampling(max_tokens=12, temperature=1.0, seed=seed) for seed in seeds]
    (ids,) = ids_of(loaded, "numbers")

    async def main() -> tuple[list[Completion], list[Completion]]:
        together = await asyncio.gather(*(decoder.complete(ids, one) for one in samplings))
        return together, [await decoder.complete(ids, one) for one in samplings]

    together, alone = run(decoder, main)
    assert [len(batch) for batch in batches] == [6, *[1] * 6]
    seeded = [i for i, seed in enumerate(seeds) if seed is not None]
    assert [together[i] for i in seeded] == [alone[i] for i in seeded]
    assert together[0] == together[3]
    assert len({answer.text for answer in (*together, alone[1], alone[5])}) == 7  # 3 seeded, 4 draws without a seed


def test_a_token_without_embedding_is_the_prompt_s_own_error(loaded: Loaded) -> None:
    decoder = make(loaded)
    first, second = run(decoder, lambda: gather(decoder, [[9], [len(loaded[1]) + 1000]]))
    assert isinstance(first, Completion)
    assert isinstance(second, PromptError) and "embedding" in str(second)


def scarce(model: PreTrainedModel, most_rows: int, most_tokens: int, from_step: int = 1) -> Any:
    """Memory for so many rows of so many tokens: a hook that must be removed."""
    steps = 0

    def limit(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal steps
        steps += 1
        rows, length = (kwargs["input_ids"] if "input_ids" in kwargs else kwargs["decoder_input_ids"]).shape
        if (steps >= from_step and rows > most_rows) or length > most_tokens:
            raise torch.OutOfMemoryError("simulated")

    return model.register_forward_pre_hook(limit, with_kwargs=True)


def test_batch_that_breaks_is_decoded_one_by_one(causal: Loaded) -> None:
    """Memory for one row at a time, and for short prompts only: the long one fails alone."""
    decoder = make(causal)
    prompts = ids_of(causal, "a fox", "word " * 20, "numbers")

    async def main() -> tuple[list[Any], list[Any]]:
        plenty = await gather(decoder, prompts)
        hook = scarce(causal[0], most_rows=1, most_tokens=20)
        try:
            return plenty, await gather(decoder, prompts)
        finally:
            hook.remove()

    plenty, left = run(decoder, main)
    decoder.check()
    assert all(isinstance(answer, Completion) for answer in plenty)
    assert [left[0], left[2]] == [plenty[0], plenty[2]]
    assert isinstance(left[1], RejectedError) and not isinstance(left[1], PromptError)
    assert "memory doesn't hold this prompt; lower max_tokens" in str(left[1])


@pytest.mark.parametrize("seed", [5, None])
def test_streams_of_a_batch_that_breaks_go_on_where_they_were(
    causal: Loaded, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the sixth token there is memory for one row only. Without a seed, too, what follows fits what was told."""
    decoder = make(causal)
    model, tokenizer = causal
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=seed)
    prompts = ids_of(causal, "a fox", "numbers", "past of go")
    generate, written = model.generate, []

    def recording(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        output = generate(input_ids, **options)
        written.append(detokenizer(tokenizer).text(output[0, input_ids.shape[1] :].tolist()))
        return output

    monkeypatch.setattr(model, "generate", recording)

    async def main() -> list[tuple[list[str], Completion]]:
        hook = scarce(model, most_rows=1, most_tokens=100, from_step=6)
        try:
            return await asyncio.gather(*(followed(decoder, ids, sampling) for ids in prompts))
        finally:
            hook.remove()

    answers = run(decoder, main)
    assert all("".join(pieces) == completion.text for pieces, completion in answers)
    again = [
        completion for _, completion in answers if completion.completion_tokens > 5
    ]  # others had ended by then
    assert [completion.text for completion in again] == written
    assert seed is None or len(written) == len(prompts)


def test_a_broken_accelerator_is_told(causal: Loaded) -> None:
    decoder = make(causal)
    decoder.check()

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    hook = causal[0].register_forward_pre_hook(fail)
    try:
        (answer,) = run(decoder, lambda: gather(decoder, [[9]]))
    finally:
        hook.remove()
    assert isinstance(answer, GenerationError) and "device-side assert" in str(answer)
    with pytest.raises(BlendError, match="the GPU fails in this process"):
        decoder.check()


def test_pieces_come_while_the_model_writes(loaded: Loaded, steps: Callable[[int], Steps]) -> None:
    decoder, still = make(loaded), steps(20)

    async def main() -> list[str | Completion]:
        stream = decoder.stream([9, 10, 11], LONG)
        pieces = [await anext(stream)]  # would not come while the model stands still
        still.go_on()
        return [*pieces, *[piece async for piece in stream]]

    *pieces, completion = run(decoder, main)
    assert still.count > 20 and "".join(pieces) == completion.text


def test_an_answer_does_not_wait_for_the_others_of_its_batch(loaded: Loaded, steps: Callable[[int], Steps]) -> None:
    decoder = make(loaded)
    prompts = ids_of(loaded, "a fox", "numbers")

    async def main() -> tuple[Completion, bool, Completion]:
        first, second = [await decoder.complete(ids, LONG) for ids in prompts]
        letter = next(c for c in first.text[:20] if c not in second.text)
        sampling = LONG.model_copy(update={"stop": (letter,)})
        still = steps(40)
        slow = asyncio.create_task(decoder.complete(prompts[1], sampling))
        quick = await decoder.complete(prompts[0], sampling)
        waits = not slow.done()
        still.go_on()
        assert (await slow).text == second.text
        return quick, waits, first

    quick, waits, first = run(decoder, main)
    assert waits and quick.finish_reason == "stop" and first.text.startswith(quick.text)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_abandoned_answers_are_not_finished(
    loaded: Loaded, steps: Callable[[int], Steps], follow: bool, num_beams: int
) -> None:
    """The model would write 100 tokens; with its only caller gone it stops at the next one."""
    decoder, still = make(loaded), steps(20)
    sampling = LONG.model_copy(update={"num_beams": num_beams})

    async def main() -> None:
        call = followed(decoder, [9, 10], sampling) if follow else decoder.complete([9, 10], sampling)
        task = asyncio.create_task(call)
        await asyncio.wrap_future(still.reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        still.go_on()

    run(decoder, main)  # closing waits for the batch
    assert still.count == 20


OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {7: 30.0}},
    {"min_tokens": 9, "stop": ("e",)},
    {"num_beams": 3},
    {"logprobs": 2},
    {"temperature": 1.3, "min_p": 0.05, "seed": 3, "logprobs": 1},
]


def test_options_of_one_answer_are_no_other_s(loaded: Loaded) -> None:
    """Of requests of all lengths at once each gets what it gets alone; the beams of one prompt share a search."""
    decoder = make(loaded)
    samplings = [Sampling.model_validate({"max_tokens": 12, **options}) for options in OPTIONS]
    samplings += [samplings[5].nth(1), samplings[5].nth(2)]
    (prompt,) = ids_of(loaded, "a fox")

    async def main() -> None:
        alone = [await decoder.complete(prompt, sampling) for sampling in samplings]
        longer = [[9, *prompt, *prompt[:at]] for at in range(len(samplings))]
        calls = [decoder.complete(ids, sampling) for ids, sampling in zip(longer, samplings, strict=True)]
        calls += [decoder.complete(prompt, sampling) for sampling in samplings]
        together = (await asyncio.gather(*calls))[len(samplings) :]
        for sampling, expected, found in zip(samplings, alone, together, strict=True):
            assert replace(found, logprobs=None) == replace(expected, logprobs=None), sampling
            for one, other in zip(found.logprobs or (), expected.logprobs or (), strict=True):
                assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert len(one.top_logprobs) == len(other.top_logprobs)
        counted = [(completion.logprobs is not None) for completion in alone]
        assert counted == [sampling.logprobs is not None for sampling in samplings]
        assert all(len(one.logprobs or ()) == one.completion_tokens for one in alone if one.logprobs)
        assert len({completion.text for completion in (alone[0], alone[5], *alone[8:])}) == 4

    run(decoder, main)


def test_a_closed_stream_is_abandoned(loaded: Loaded, steps: Callable[[int], Steps]) -> None:
    decoder, still = make(loaded), steps(20)

    async def main() -> None:
        stream = decoder.stream([9, 10], LONG)
        await anext(stream)
        await asyncio.wrap_future(still.reached)
        await stream.aclose()
        still.go_on()

    run(decoder, main)
    assert still.count == 20


def test_what_is_abandoned_while_it_waits_is_never_decoded(
    loaded: Loaded, batches: list[list[int]], steps: Callable[[int], Steps]
) -> None:
    decoder, still = make(loaded), steps(3)

    async def main() -> None:
        first = asyncio.create_task(decoder.complete([9], GREEDY))
        await asyncio.wrap_future(still.reached)
        waiting = [asyncio.create_task(decoder.complete([9] * length, GREEDY)) for length in (2, 3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        still.go_on()
        await asyncio.gather(first, waiting[1])

    run(decoder, main)
    assert batches == [[1], [3]]


def test_a_caller_whose_loop_is_closed_harms_nobody(loaded: Loaded, steps: Callable[[int], Steps]) -> None:
    decoder, still = make(loaded), steps(20)
    loop = asyncio.new_event_loop()
    stream = decoder.stream([9, 10], LONG)
    loop.run_until_complete(anext(stream))
    still.reached.result(timeout=60)
    loop.close()
    still.go_on()
    (answer,) = run(decoder, lambda: gather(decoder, [[9]]))
    assert isinstance(answer, Completion)
    asyncio.run(stream.aclose())


def test_closing_fails_what_is_open_and_what_comes_later(loaded: Loaded, steps: Callable[[int], Steps]) -> None:
    decoder, still = make(loaded, max_batch_size=2), steps(20)

    async def main() -> list[Any]:
        calls = [decoder.complete([9] * 2, LONG), followed(decoder, [9] * 2, LONG)]
        calls += [decoder.complete([9] * 9, LONG), followed(decoder, [9] * 9, LONG)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.wrap_future(still.reached)  # with two of them
        closing = asyncio.create_task(decoder.close())
        await asyncio.wait(tasks[2:])
        still.go_on()
        await closing
        return [*await asyncio.gather(*tasks, return_exceptions=True), *await gather(decoder, [[9]])]

    results = run(decoder, main)
    assert [type(result) for result in results] == [GenerationError] * 5
    assert still.count == 20


def test_closing_what_was_never_asked(loaded: Loaded) -> None:
    decoder = make(loaded)
    run(decoder, lambda: asyncio.sleep(0))


def test_with_beams_the_answer_is_one_piece(seq2seq: Loaded) -> None:
    """And the one that transformers finds; a stop string cuts it."""
    model, tokenizer = seq2seq
    decoder = make(seq2seq)
    prompts = ids_of(seq2seq, "a fox", "past of write", "numbers")
    text_of = detokenizer(tokenizer)
    outputs = [model.generate(torch.tensor([ids]), num_beams=3, max_new_tokens=12) for ids in prompts]
    texts = [text_of.text(output[0, 1:].tolist()) for output in outputs]

    async def main() -> tuple[list[Any], list[Any]]:
        beams = GREEDY.model_copy(update={"num_beams": 3})
        together = await asyncio.gather(*(followed(decoder, ids, beams) for ids in prompts))
        cut = [beams.model_copy(update={"stop": (completion.text[2],)}) for _, completion in together]
        stopped = [await followed(decoder, ids, sampling) for ids, sampling in zip(prompts, cut, strict=True)]
        return together, stopped

    together, stopped = run(decoder, main)
    assert [(pieces, completion.text) for pieces, completion in together] == [([text], text) for text in texts]
    for text, (pieces, completion) in zip(texts, stopped, strict=True):
        assert (completion.text, completion.finish_reason) == (text[: text.index(text[2])], "stop")
        assert pieces == [completion.text][: bool(completion.text)]

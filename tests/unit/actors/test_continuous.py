"""Continuous batching: requests join and leave a running batch, and each answer is what it is alone.

Real small models with random weights: full attention, sliding windows in every layer and in some, and a cache whose
rows can't be joined. A hook in the model stands still where a test needs the thread to be at a certain step.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from decoding_steps import Steps
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm_blender_ray.actors.continuous import can_join
from llm_blender_ray.actors.decoding import BatchDecoder
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.configs.schema import Sampling

TOKENIZER = make_tokenizer(chat_template=None)
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.2,  # far-apart logits
    "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "full": LlamaConfig(**SIZES),
    "sliding": MistralConfig(**SIZES, sliding_window=8),
    "mixed": Gemma3TextConfig(**SIZES, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "recurrent": MambaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        initializer_range=0.5,
        eos_token_id=TOKENIZER.eos_token_id,
    ),
}
LONG = Sampling(max_tokens=60)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


@pytest.fixture(scope="module")
def full() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS["full"]).eval()


@pytest.fixture(scope="module", autouse=True)
def failures() -> Iterator[list[Exception]]:
    """None may happen: what fails together is decoded one by one, which gives the right answers too."""
    found: list[Exception] = []
    recover = BatchDecoder._recover

    def recording(decoder: BatchDecoder, batch: list[Any], error: Exception) -> None:
        found.append(error)
        recover(decoder, batch, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchDecoder, "_recover", recording)
        yield found


def make(model: PreTrainedModel, max_batch_size: int = 4) -> BatchDecoder:
    decode = partial(TOKENIZER.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    detokenizer = Detokenizer(decode, TOKENIZER.get_vocab())
    return BatchDecoder(
        model, detokenizer, name="decode t", pad_id=0, max_batch_size=max_batch_size, smaller="max_tokens"
    )


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(5, len(TOKENIZER) - 1), min_size=1, max_size=20),
        st.builds(
            Sampling,
            max_tokens=st.integers(1, 24),
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_k=st.sampled_from([None, 20]),
            stop=st.lists(st.text("aeiou n", min_size=1, max_size=2), max_size=1).map(tuple),
            seed=st.integers(0, 3),
            repetition_penalty=st.sampled_from([1.0, 1.5]),
            presence_penalty=st.sampled_from([0.0, 1.0]),
            logprobs=st.sampled_from([None, 0]),
        ),
        st.integers(0, 4),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=8, deadline=None)
@given(requests=REQUESTS)
def test_an_answer_is_what_it_is_alone(
    model: PreTrainedModel, failures: list[Exception], requests: list[tuple[list[int], Sampling, int]]
) -> None:
    """Whenever it joins, whoever is there, whatever their settings; also as a stream, and if its neighbour leaves.

    A request waits for so many pieces of the first one's stream before it begins; the last one is cancelled.
    """
    decoder = make(model)
    (first, _, _), *others = requests
    begun = [asyncio.Event() for _ in range(5)]

    async def lead() -> None:
        pieces = 0
        async for _ in decoder.stream(first, LONG):
            begun[min(pieces, 4)].set()
            pieces += 1
        for event in begun:
            event.set()

    async def join(ids: list[int], sampling: Sampling, after: int) -> Completion:
        await begun[after].wait()
        *pieces, completion = [piece async for piece in decoder.stream(ids, sampling)]
        assert isinstance(completion, Completion) and "".join(map(str, pieces)) == completion.text
        return completion

    async def main() -> None:
        leading = asyncio.create_task(lead())
        joined = [asyncio.create_task(join(*request)) for request in others]
        await begun[0].wait()
        joined[-1].cancel()
        together = await asyncio.gather(*joined[:-1])
        await leading
        alone = [await decoder.complete(ids, sampling) for ids, sampling, _ in others[:-1]]
        await decoder.close()
        for one, other in zip(together, alone, strict=True):
            assert replace(one, logprobs=None) == replace(other, logprobs=None)
            assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-3)  # other sums round otherwise

    asyncio.run(main())
    assert not failures


def logprobs(completion: Completion) -> list[float]:
    return [token.logprob for token in completion.logprobs or ()]


def test_a_short_request_overtakes_a_long_one(full: PreTrainedModel) -> None:
    """The long one is at its 20th token of 60 when the short one arrives, which ends before it."""
    decoder, still = make(full), Steps(full, 20)
    order: list[str] = []

    async def answer(name: str, ids: list[int], sampling: Sampling) -> Completion:
        completion = await decoder.complete(ids, sampling)
        order.append(name)
        return completion

    async def main() -> tuple[Completion, Completion, Completion, Completion]:
        long = asyncio.create_task(answer("long", [9, 10, 11], LONG))
        await asyncio.wrap_future(still.reached)
        short = asyncio.create_task(answer("short", [12, 13], Sampling(max_tokens=5)))
        await asyncio.sleep(0)  # it is submitted
        still.go_on()
        together = await asyncio.gather(long, short)
        at = still.count
        alone = await decoder.complete([9, 10, 11], LONG), await decoder.complete([12, 13], Sampling(max_tokens=5))
        await decoder.close()
        assert at == 60 + 1  # one prefill more than alone: the short one's other tokens cost no step
        return *together, *alone

    try:
        long, short, long_alone, short_alone = asyncio.run(main())
    finally:
        still.remove()
    assert order == ["short", "long"]
    assert (long, short) == (long_alone, short_alone)
    assert long.completion_tokens == 60


def test_a_cancelled_request_frees_its_place(full: PreTrainedModel) -> None:
    """Two places: the third request gets the second one's while the first is at its 10th token."""
    decoder, still = make(full, max_batch_size=2), Steps(full, 10)

    async def main() -> None:
        long, cancelled = (asyncio.create_task(decoder.complete([9, i], LONG)) for i in (10, 11))
        third = asyncio.create_task(decoder.complete([12], Sampling(max_tokens=3)))
        await asyncio.wrap_future(still.reached)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        still.go_on()
        await third
        assert not long.done()
        await long
        await decoder.close()

    try:
        asyncio.run(main())
    finally:
        still.remove()


def test_positions_that_depend_on_the_longest_row_are_not_shared() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    dynamic = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, rope_parameters=rope))
    assert not can_join(dynamic)
    assert can_join(AutoModelForCausalLM.from_config(CONFIGS["mixed"]))

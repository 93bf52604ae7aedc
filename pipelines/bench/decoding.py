"""`make bench-decoding`: the transformers engine with and without continuous batching, in turns, on one model.

A mixed batch (prompts of several lengths, answers of several limits): tokens/s and CPU seconds. A short request
that arrives while a long answer is written: seconds to its first piece and to its end. JSON comes last.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_blender_ray.actors.decoding import BatchDecoder
from llm_blender_ray.actors.detokenization import Detokenizer
from llm_blender_ray.actors.dtypes import resolve_dtype
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.weights import load_config, load_model, load_tokenizer, locate, resolve_device
from llm_blender_ray.configs.sampling import Sampling
from llm_blender_ray.pipelines.miniature.published import fetch_llm

_PUBLISHED = "smollm2-135m-instruct"
_TURNS = 3
_LIMITS = (8, 16, 32, 64, 128)  # max_tokens of the mixed batch, in turns
_LONG = Sampling(max_tokens=200)
_SHORT = Sampling(max_tokens=8)
_LETTER = "Dear neighbours, the bridge over the mill stream is closed this week. "
_QUESTIONS = (
    "What is the capital of France?",
    "Write a Python function that returns the larger of two numbers.",
    f"{_LETTER * 4}Which bridge is closed?",
    f"{_LETTER * 20}Which bridge is closed, and for how long?",
)


async def mixed(decoder: BatchDecoder, requests: Sequence[tuple[list[int], Sampling]]) -> list[Completion]:
    """Answer all requests, made at once."""
    return await asyncio.gather(*(decoder.complete(ids, sampling) for ids, sampling in requests))


async def short_under_load(decoder: BatchDecoder, long: list[int], short: list[int]) -> tuple[float, float]:
    """Seconds to the first piece of a short answer and to its end, asked once a long answer has begun."""
    begun = asyncio.Event()

    async def write() -> None:
        async for _ in decoder.stream(long, _LONG):
            begun.set()

    writing = asyncio.create_task(write())
    await begun.wait()
    start = time.perf_counter()
    seconds = [time.perf_counter() - start async for _ in decoder.stream(short, _SHORT)]
    await writing
    return seconds[0], seconds[-1]


def measure(
    model: str, *, device_name: str = "auto", dtype: str = "auto", requests: int = 24, max_batch_size: int = 32
) -> dict[str, Any]:
    """Measure a causal model.

    Args:
        model: Folder or hub id.
        device_name: As `TransformersModel.device`.
        dtype: As `TransformersModel.dtype`.
        requests: Of the mixed batch.
        max_batch_size: As `TransformersModel.max_batch_size`.

    Returns:
        The figures, by whether batching is continuous.

    Raises:
        ModelLoadError: The model can't be used.
    """
    folder, device = locate(model), resolve_device(device_name)
    loaded = load_model(
        AutoModelForCausalLM,
        folder,
        device=device,
        dtype=resolve_dtype(dtype, device, load_config(folder).dtype),
    )
    chat = ChatTokenizer(load_tokenizer(folder))
    prompts = [chat.encode([Message(role="user", content=text)]) for text in _QUESTIONS]
    batch = [
        (ids, Sampling(max_tokens=limit))
        for ids, limit in itertools.islice(
            zip(itertools.cycle(prompts), itertools.cycle(_LIMITS), strict=False), requests
        )
    ]

    async def turn(continuous: bool) -> tuple[dict[str, float], list[Completion]]:
        decoder = BatchDecoder(
            loaded,
            Detokenizer(chat.decoder(), chat.tokenizer.get_vocab()),
            name="bench",
            pad_id=0,
            max_batch_size=max_batch_size,
            smaller="--max-batch-size",
            continuous=continuous,
        )
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            completions = await mixed(decoder, batch)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            first, whole = await short_under_load(decoder, prompts[1], prompts[0])
        finally:
            await decoder.close()
        tokens = sum(completion.completion_tokens or 0 for completion in completions)
        return {
            "mixed_tokens_per_s": tokens / wall,
            "mixed_cpu_s": cpu,
            "short_first_piece_s": first,
            "short_answer_s": whole,
        }, completions

    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    texts: dict[bool, list[Completion]] = {}
    asyncio.run(turn(True))  # kernels are chosen, memory is allocated
    for _ in range(_TURNS):
        for continuous in found:
            figures, texts[continuous] = asyncio.run(turn(continuous))
            found[continuous].append(figures)
    medians = {
        continuous: {name: statistics.median(one[name] for one in turns) for name in turns[0]}
        for continuous, turns in found.items()
    }
    return {
        "model": model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "requests": requests,
        "tokens": sum(completion.completion_tokens or 0 for completion in texts[True]),
        "batch_after_batch": medians[False],
        "continuous": medians[True],
        "equal_answers": sum(a == b for a, b in zip(texts[False], texts[True], strict=True)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"folder or hub id of a causal LLM (default: {_PUBLISHED})")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--max-batch-size", type=int, default=32)
    given = parser.parse_args()
    figures = measure(
        given.model or str(fetch_llm(_PUBLISHED, Path("out/real"))),
        device_name=given.device,
        dtype=given.dtype,
        requests=given.requests,
        max_batch_size=given.max_batch_size,
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""`run.sh` of the GPU bundle, and `make bench-gpu`: ranker, fuser and LLM of published sizes on one GPU, JSON last.

Weights are random: speed and memory don't depend on what they are. Needs torch and transformers, but neither Ray
nor the network, so that it runs on a machine where nothing can be installed. Every measurement that fails is named
in the JSON, and the others go on.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DebertaV2Config, DebertaV2Model, LlamaConfig, PreTrainedModel, T5Config

from llm_blender_ray.actors.engines import load_engine
from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.pairrm.deberta import PlainMarkerEncoder, marker_encoder, sequence_flops
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs.llms import TransformersModel
from llm_blender_ray.configs.sampling import Sampling
from llm_blender_ray.configs.schema import GenFuser
from llm_blender_ray.pipelines.bench.machine import matrix_rate, timed

_ROOT = Path(__file__).resolve().parents[2]
_MARKERS = 3  # tokens that PairRanker's head reads of a pair
ORIGINAL_BATCH = 8  # `Blender.rank(batch_size=8)`
REPEATS = 5


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of what is measured.

    Attributes:
        deberta: Of the ranker's encoder.
        t5: Of the fuser.
        llama: Of the LLM.
        pairs: Lengths in tokens of the pairs of one batch, by its name.
        inputs: Prompts of the fuser and of the LLM.
        answer_tokens: Tokens of each answer.
    """

    deberta: dict[str, Any]
    t5: dict[str, Any]
    llama: dict[str, Any]
    pairs: dict[str, list[int]]
    inputs: int
    answer_tokens: int


_V3 = {
    "position_buckets": 256,
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
}


def _shape(hidden: int, intermediate: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    """A transformer's size, by the names of its config."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def published_sizes() -> ModelSizes:
    """PairRM's encoder (DeBERTa-v3-large), GenFuser (Flan-T5-XL) and an LLM of 1.1 B parameters (TinyLlama)."""
    lengths = random.Random(0)
    return ModelSizes(
        deberta=_V3 | _shape(1024, 4096, 24, 16, vocab_size=128100),
        t5={"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
        llama=_shape(2048, 5632, 22, 32, num_key_value_heads=4, max_position_embeddings=2048),
        pairs={"16 of 2048": [2048] * 16, "32 of 256 to 768": [lengths.randrange(256, 769) for _ in range(32)]},
        inputs=32,
        answer_tokens=128,
    )


def small_sizes() -> ModelSizes:
    """Sizes that show in seconds on a CPU that everything runs."""
    return ModelSizes(
        deberta=_V3 | _shape(64, 128, 2, 2, vocab_size=1000),
        t5={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        llama=_shape(64, 128, 2, 4, num_key_value_heads=2, max_position_embeddings=1024),
        pairs={"2 of 256": [256] * 2, "4 of 32 to 96": [32, 96, 50, 64]},
        inputs=4,
        answer_tokens=8,
    )


def measure_pairrm(sizes: ModelSizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """PairRanker's forward, of our encoder and of transformers' (the original's), on the same weights and pairs.

    Returns:
        By batch and encoder: forwards/s, share of the device's matrix rate, peak GiB, and the largest difference
        from transformers' float32 forward of each pair alone, in its first pairs.
    """
    config = DebertaV2Config(**sizes.deberta)
    torch.manual_seed(0)
    with device:
        base = DebertaV2Model(config).eval()
    rate = matrix_rate(dtype, device)
    results: dict[str, Any] = {"matrix_tflops": rate / 1e12}
    exact = PlainMarkerEncoder(base, device=device, dtype=torch.float32)
    for name, lengths in sizes.pairs.items():
        tokens = random.Random(0)
        ids = [[tokens.randrange(5, config.vocab_size) for _ in range(length)] for length in lengths]
        markers = [[0, length // 3, 2 * length // 3] for length in lengths]
        few = range(min(4, len(ids)))
        expected = torch.cat([exact.at_markers([ids[i]], [markers[i]]) for i in few])
        flops = sum(sequence_flops(config, length, _MARKERS) for length in lengths)
        results[name] = {}
        for which in ("ours", "transformers"):
            results[name][which] = _measure_encoder(which, config, base, ids, markers, expected, dtype, device)
            results[name][which]["matrix_rate_share"] = (
                flops * results[name][which]["forwards_per_s"] / len(ids) / rate
            )
    return results


def _measure_encoder(
    which: str,
    config: DebertaV2Config,
    base: DebertaV2Model,
    ids: Sequence[list[int]],
    markers: Sequence[list[int]],
    expected: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    with device:
        copy = DebertaV2Model(config).eval()
    copy.load_state_dict(base.state_dict())
    if which == "ours":
        encoder = marker_encoder(copy, device=device, dtype=dtype)
        parts = [list(range(len(ids)))]
    else:
        encoder = PlainMarkerEncoder(copy, device=device, dtype=dtype)
        parts = [
            list(range(len(ids)))[start : start + ORIGINAL_BATCH] for start in range(0, len(ids), ORIGINAL_BATCH)
        ]

    def forward() -> torch.Tensor:
        return torch.cat([encoder.at_markers([ids[i] for i in part], [markers[i] for i in part]) for part in parts])

    difference = (forward()[: len(expected)].float() - expected).abs().max().item()
    with _peak_memory(device) as peak:
        seconds = statistics.median(timed(forward, device) for _ in range(REPEATS))
    return {"forwards_per_s": len(ids) / seconds, "peak_GiB": peak(), "largest_difference": difference}


def measure_fuser(sizes: ModelSizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """GenFuser with 4 beams: answers/s, and tokens/s of all beams."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _ROOT / "tests" / "golden" / "checkpoints" / "gen_fuser"
        config = T5Config.from_pretrained(tokenizer)
        config.update(sizes.t5 | {"num_decoder_layers": sizes.t5["num_layers"]})
        _save_random(transformers.T5ForConditionalGeneration, config, tokenizer, Path(folder), device, dtype)
        fuser = GenFuserModel(
            GenFuser(
                model=folder,
                device=device.type,
                dtype=_name(dtype),
                max_batch_size=sizes.inputs,
                max_new_tokens=sizes.answer_tokens,
            )
        )
    words = random.Random(0)
    text = partial(_text, words, 120)
    items = [(Prompt("", text(), ""), [text() for _ in range(3)]) for _ in range(sizes.inputs)]
    fuse = partial(fuser.fuse_all, items, min_new_tokens=sizes.answer_tokens)
    fuse()
    with _peak_memory(device) as peak:
        seconds = timed(fuse, device)
    asyncio.run(fuser.close())
    tokens = sizes.inputs * sizes.answer_tokens * 4
    return {"answers_per_s": sizes.inputs / seconds, "beam_tokens_per_s": tokens / seconds, "peak_GiB": peak()}


def measure_engine(sizes: ModelSizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The transformers engine, all prompts at once: tokens/s of the answers."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _ROOT / "configs" / "miniature" / "alder"
        config = LlamaConfig.from_pretrained(tokenizer)
        config.update(sizes.llama | {"head_dim": sizes.llama["hidden_size"] // sizes.llama["num_attention_heads"]})
        _save_random(transformers.LlamaForCausalLM, config, tokenizer, Path(folder), device, dtype)
        settings = TransformersModel(
            name="llm", engine="transformers", model=folder, device=device.type, dtype=_name(dtype)
        )
        engine = load_engine(settings)
    words = random.Random(0)
    prompts = [_text(words, 40) for _ in range(sizes.inputs)]

    async def answer(prompts: Sequence[str]) -> int:
        sampling = Sampling(max_tokens=sizes.answer_tokens)
        calls = [engine.generate([{"role": "user", "content": prompt}], sampling) for prompt in prompts]
        return sum(completion.completion_tokens or 0 for completion in await asyncio.gather(*calls))

    async def measured() -> dict[str, Any]:
        await answer(prompts[:2])
        begin = time.perf_counter()
        tokens = await answer(prompts)
        seconds = time.perf_counter() - begin
        await engine.close()
        return {"tokens_per_s": tokens / seconds, "tokens": tokens, "prompts": len(prompts)}

    with _peak_memory(device) as peak:
        result = asyncio.run(measured())
    return result | {"peak_GiB": peak()}


def _save_random(
    model: type[PreTrainedModel],
    config: Any,
    tokenizer: Path,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Write a model of random weights with a published tokenizer's files."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            random_model = model(config)
    finally:
        torch.set_default_dtype(before)
    random_model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        if not (folder / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, folder)


def _text(words: random.Random, count: int) -> str:
    return " ".join(
        words.choice(("the", "river", "runs", "and", "seven", "names", "are", "new")) for _ in range(count)
    )


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """The most GiB that torch has had of the device in the block; None on a CPU."""
    if device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) / 2**30


def main() -> None:
    """Measure; print one line of JSON, and exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models: shows only that everything runs")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = small_sizes() if arguments.small else published_sizes()
    halves = [torch.float16, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sizes": asdict(sizes),
    }
    work = {f"ranker {_name(dtype)}": partial(measure_pairrm, sizes, device, dtype) for dtype in halves}
    work["fuser"] = partial(measure_fuser, sizes, device, halves[-1])
    work["engine"] = partial(measure_engine, sizes, device, halves[-1])
    failed = False
    for name, measure in work.items():
        begin = time.perf_counter()
        try:
            results[name] = measure()
        except Exception as error:  # the others are worth having
            results[name] = {"error": f"{type(error).__name__}: {one_line(error)}"}
            failed = True
        results[name]["seconds"] = time.perf_counter() - begin
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    print(json.dumps(results))
    sys.exit(failed)


if __name__ == "__main__":
    main()

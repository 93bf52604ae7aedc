"""Workload of `make bench-original`: rows, and a ranker in the layout that the original reads.

Where none are given, both are generated. The ranker has the shape of DeBERTa-v3-xsmall (12 layers, 384 wide,
6 heads) with random weights, whose values do not affect the time. The rows are the included prompts' words in texts
as long as real ones, so that their batches are padded like real ones.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, DebertaV2Config

from llm_blender_ray import configs
from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.given_candidates import read_candidates
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.pooling import MarkerPooling
from llm_blender_ray.actors.pairrm.tokenization import MARKERS, PairBudget, PairTokenizer
from llm_blender_ray.actors.ranker import CandidateRow
from llm_blender_ray.actors.records import Candidate, Prompt, read_prompt
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.pipelines.rows.readers import read_rows

PAD_TOKEN, CLS, SEP, UNKNOWN, MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"
VOCABULARY = 8192  # 1.5 tokens a word of English; DeBERTa's 128,000 take 1.3
SHARPNESS = 1.6  # of attention: plain random weights average over all tokens, and all candidates look alike
HEAD_SCALE = 60.0  # gives margins of about 1
HELDOUT = Path(configs.__file__).parent / "miniature" / "heldout.jsonl"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of texts in tokens: log-normal, and longer together where a prompt asks for more.

    The figures are those of the answers of 11 LLMs to AlpacaEval's 805 instructions.
    """

    source_median: float = 27
    source_spread: float = 0.86  # standard deviation of the logarithm, as the ones below
    candidate_median: float = 120
    row_spread: float = 0.87  # between rows
    candidate_spread: float = 0.75  # within a row


@dataclass(frozen=True, slots=True)
class WorkloadShape:
    """Shape of a generated ranker. Its budgets give pairs of 230 tokens on average, on all rows."""

    layers: int = 12
    hidden: int = 384
    heads: int = 6
    intermediate: int = 1536
    source_max_length: int = 128
    candidate_max_length: int = 80


class OriginalRow(TypedDict):
    """A row as the original's worker takes it."""

    source: str
    candidates: list[str]


def make_rows(
    count: int, *, seed: int = 0, candidates: int = 11, lengths: Lengths = Lengths()
) -> list[CandidateRow]:
    """Generate rows whose texts are words of the included held-out prompts in random order."""
    given = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
    words = [word for row in given for word in f"{row['input']} {row['output']}".split() if word.isalpha()]
    rng = random.Random(f"bench rows {seed}")

    def text(log_median: float, spread: float) -> str:
        return " ".join(rng.choices(words, k=max(1, round(rng.lognormvariate(log_median, spread)))))

    rows: list[CandidateRow] = []
    for i in range(count):
        prompt = Prompt(id=f"bench/{i}", instruction=text(math.log(lengths.source_median), lengths.source_spread))
        log_median = rng.gauss(math.log(lengths.candidate_median), lengths.row_spread)
        answers = (text(log_median, lengths.candidate_spread) for _ in range(candidates))
        rows.append((prompt, tuple(Candidate(f"llm-{n}", answer) for n, answer in enumerate(answers))))
    return rows


def take_rows(uri: str, count: int, *, seed: int = 0) -> list[CandidateRow]:
    """Draw up to `count` rows of a file that the original can rank too, in the file's order.

    The original requires the same number of candidates in every row (that of the first here), a text in each, and
    no marker in any.

    Raises:
        BlendError: No row is left.
    """
    usable: list[CandidateRow] = []
    for given in read_rows(uri):
        if given["error"] is not None:
            continue
        prompt, candidates = read_prompt(given), read_candidates(given)
        texts = [*prompt.texts(), *(candidate.text for candidate in candidates)]
        if len(candidates) != (len(usable[0][1]) if usable else max(2, len(candidates))):
            continue
        if all(text is not None and not any(marker in text for marker in MARKERS) for text in texts):
            usable.append((prompt, candidates))
    if not usable:
        raise BlendError(f"{uri}: no row with two or more candidates, each with a text; give MixInstruct-like rows")
    drawn = random.Random(f"bench rows {seed}").sample(range(len(usable)), min(count, len(usable)))
    return [usable[i] for i in sorted(drawn)]


def as_original(rows: Iterable[CandidateRow]) -> list[OriginalRow]:
    """The rows as the original's worker takes them; the original concatenates instruction and input."""
    return [
        {"source": "".join(prompt.texts()), "candidates": [candidate.text or "" for candidate in candidates]}
        for prompt, candidates in rows
    ]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE on the texts, with DeBERTa's special tokens and PairRanker's markers."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD_TOKEN, CLS, SEP, UNKNOWN, MASK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(marker, normalized=True, special=False) for marker in MARKERS])
    return backend


def make_ranker(
    rows: Sequence[CandidateRow], folder: Path, *, seed: int = 0, shape: WorkloadShape = WorkloadShape()
) -> Path:
    """Write a ranker with random weights and a tokenizer that knows the rows' words; returns the folder."""
    texts = [text for row in as_original(rows) for text in (row["source"], *row["candidates"])]
    budget = PairBudget(shape.source_max_length, shape.candidate_max_length)
    tokenizer = PairTokenizer(train_tokenizer(texts), budget, cls=CLS, sep=SEP, pad=PAD_TOKEN)
    config = DebertaV2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        initializer_range=1 / math.sqrt(shape.hidden),
        max_position_embeddings=512,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_id,
        layer_norm_eps=1e-7,
        # where DeBERTa-v3 differs from transformers' defaults
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    )
    markers = MarkerPooling(tokenizer.source_id, tokenizer.left_id, tokenizer.right_id)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = PairRMNetwork(AutoModel.from_config(config, dtype=torch.float32), markers)
        for name, weight in network.named_parameters():
            if name.endswith(("query_proj.weight", "key_proj.weight")):
                weight.mul_(SHARPNESS)
        output_layer = network.head_layer[-1]
        assert isinstance(output_layer, torch.nn.Linear)
        output_layer.weight.mul_(HEAD_SCALE)
    return _save(network, tokenizer, folder)


def copy_ranker(model: str, folder: Path) -> Path:
    """Write a ranker in the original's layout.

    Args:
        model: Local folder or hub id, in any published layout.
        folder: Where to write it.

    Returns:
        The folder.

    Raises:
        ModelLoadError: The ranker cannot be loaded.
    """
    network, tokenizer = load_pairrm(model)
    if not isinstance(tokenizer, PairTokenizer):
        raise ModelLoadError(f"{model}: the original package has rankers on encoders only")
    return _save(network, tokenizer, folder)


def _save(network: PairRMNetwork, tokenizer: PairTokenizer, folder: Path) -> Path:
    """Write the original's layout, all of it in one folder: `config.json`, `model.safetensors`, `backbone/`.

    transformers 4 has to read it, so the tokenizer's class is one that both versions have.
    """
    backbone = folder / "backbone"
    encoder = network.pretrained_model
    with quiet():  # hides a progress bar
        encoder.save_pretrained(backbone)
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.cls} $A {tokenizer.sep}",
        special_tokens=[(tokenizer.cls, tokenizer.cls_id), (tokenizer.sep, tokenizer.sep_id)],
    )
    backend.save(str(backbone / "tokenizer.json"))
    _write_json(
        backbone / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "cls_token": tokenizer.cls,
            "sep_token": tokenizer.sep,
            "pad_token": tokenizer.pad,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write_json(
        folder / "config.json",
        {
            "ranker_type": "pairranker",
            "model_type": encoder.config.model_type,
            "model_name": backbone.name,
            "source_maxlength": tokenizer.budget.source_max_length,
            "candidate_maxlength": tokenizer.budget.candidate_max_length,
            "n_tasks": network.n_tasks,
            "drop_out": network.dropout,
        },
    )
    save_file(
        {name: weight.contiguous() for name, weight in network.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

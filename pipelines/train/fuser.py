"""Training of a GenFuser: a seq2seq LLM learns to write the reference from the prompt and its best candidates.

The input is built as for fusion (`actors.fusers.genfuser.FuserTemplate`); the loss covers the reference alone.
"""

import functools
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.fusers.genfuser import FuserTemplate
from llm_blender_ray.actors.merged_adapters import load_merged, merge_adapter
from llm_blender_ray.actors.tokens import LiteralTokenizer, load_tokenizer_backend
from llm_blender_ray.actors.weights import load_tokenizer, locate, quiet, resolve_device
from llm_blender_ray.configs.training import Counterfactuals, FuserTraining
from llm_blender_ray.pipelines.quality.metrics import Metric, read_named_metrics
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.train.counterfactual import counterfactual_row
from llm_blender_ray.pipelines.train.examples import IGNORED, Example, mask, pad
from llm_blender_ray.pipelines.train.failures import LossWatch, check_finite, find_leak, print_warnings, refuse
from llm_blender_ray.pipelines.train.generation import GenerationCallback, HeldoutGeneration, generation_warnings
from llm_blender_ray.pipelines.train.loop import is_main_process, print_results, run_trainer
from llm_blender_ray.pipelines.train.lora import add_lora, merge_trained, save_adapter, trained_quantization
from llm_blender_ray.pipelines.train.model_card import write_model_card
from llm_blender_ray.pipelines.train.prepare import Preparation, TrainingData
from llm_blender_ray.pipelines.train.process import TrainingProcess
from llm_blender_ray.pipelines.train.rows import CandidateFilter, TrainingRow, training_row
from llm_blender_ray.pipelines.train.run import run_training

FEW_ANSWERS, FEW_TOKENS = 8, 32  # written after a training without `generation`, to see whether there is text
COUNTED_ROWS = 1000  # for the rows with values to swap


def best_first(row: TrainingRow, metric: str | None) -> list[str]:
    """Candidate texts by the row's `ranking`, else by `metric`, else as given.

    Raises:
        BlendError: A candidate lacks the metric.
    """
    order: Sequence[int] = range(len(row.texts))
    if row.ranking is not None:
        order = row.ranking
    elif metric is not None:
        scores = row.scores([metric])
        order = sorted(order, key=lambda i: scores[i], reverse=True)
    return [row.texts[i] for i in order]


class FusionDataset(Dataset[Example]):
    """Data set of fuser inputs and references; rows are tokenized on access."""

    def __init__(
        self, rows: Sequence[TrainingRow], tokenizer: LiteralTokenizer, eos_id: int, config: FuserTraining
    ) -> None:
        """Start.

        Args:
            rows: The rows to learn from (`fusion_row`).
            tokenizer: The fuser's tokenizer.
            eos_id: Token id that ends a reference.
            config: Lengths, `top_k` and the metric that orders candidates.

        Raises:
            BlendError: The tokenizer lacks the separators of the input template.
        """
        for separator in ("</s>", *(f"<extra_id_{i}>" for i in range(config.top_k))):
            try:
                tokenizer.id_of(separator)
            except KeyError:
                raise BlendError(
                    f"{config.model}: its tokenizer has no {separator}, which separates candidates; take a T5"
                ) from None
        self._tokenizer = tokenizer
        self._eos_id = eos_id
        self._template = FuserTemplate(
            tokenizer, max_length=config.max_length, candidate_max_length=config.candidate_max_length
        )
        self._rows = rows
        self._config = config

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        texts = best_first(row, self._config.metric)[: self._config.top_k]
        output = self._tokenizer.encode(row.reference or "")[: self._config.output_max_length - 1]
        return {
            "input_ids": self._template.build(row.prompt, texts).ids,
            "labels": [*output, self._eos_id],
        }


def fusion_row(
    row: Mapping[str, Any],
    wanted: CandidateFilter,
    metric: str | None,
    counterfactual: Counterfactuals | None = None,
) -> TrainingRow:
    """A row of `read_rows` as one that a fuser learns from.

    Args:
        row: The row.
        wanted: Which candidates.
        metric: Orders them.
        counterfactual: Which values are swapped; None: none.

    Raises:
        BlendError: It lacks a reference, a candidate or the score that orders them.
    """
    found = training_row(row, wanted)
    if found.reference is None:
        raise BlendError(f"row {found.prompt.id}: output is missing; the fuser learns to write it")
    if not found.texts:
        raise BlendError(f"row {found.prompt.id}: no candidate with a text to fuse")
    best_first(found, metric)
    return counterfactual_row(found, counterfactual) if counterfactual else found


def token_is_right(logits: Any, labels: Tensor) -> Tensor:
    """Per position of the references: 1 for a correct most likely token, 0 for a wrong one, -1 for padding."""
    scores = logits[0] if isinstance(logits, tuple) else logits  # the rest are the encoder's states
    return torch.where(labels == IGNORED, -1, (scores.argmax(dim=-1) == labels).int())


@quiet()
def run_fuser_training(config: FuserTraining) -> dict[str, float]:
    """Train a fuser and save it in `config.output`.

    Returns:
        The last held-out loss and token accuracy; empty without held-out rows.

    Raises:
        BlendError: A row cannot be learnt from.
        ModelLoadError: The model cannot be used.
    """
    return run_training(config, prepare_fusions, train_on_fusions, title="fuser")


def prepare_fusions(config: FuserTraining, preparation: Preparation) -> TrainingData:
    """Prepare the rows that a fuser learns from or is evaluated on.

    Raises:
        BlendError: A row cannot be learnt from.
    """
    wanted = CandidateFilter(config.candidate_models, config.decoding_methods)
    convert = functools.partial(fusion_row, wanted=wanted, metric=config.metric)
    key: list[Any] = [wanted.key(), config.metric]
    learn, learn_key = convert, key
    if config.counterfactual:
        learn = functools.partial(convert, counterfactual=config.counterfactual)
        learn_key = [*key, config.counterfactual.model_dump()]
        _count_counterfactual(config, convert)
    train = preparation.rows("train", config.train, None, learn, learn_key)
    if not config.heldout:
        return TrainingData(train, None)
    heldout = preparation.rows("heldout", config.heldout, config.heldout_limit, convert, key)
    return TrainingData(train, heldout, find_leak("fuser", train.rows(), heldout.rows(), config.on_failure))


def _count_counterfactual(config: FuserTraining, convert: Callable[..., TrainingRow]) -> None:
    """Print how many of the first rows have values that can be swapped.

    Raises:
        BlendError: None has.
    """
    first = list(read_rows(config.train, COUNTED_ROWS))
    every = Counterfactuals(share=1.0)
    able = sum(convert(row) != convert(row, counterfactual=every) for row in first)
    if not able:
        raise BlendError(
            f"counterfactual: no value to swap in the first {len(first):,} rows: no candidate has another number "
            "or name in the place of one of the reference, nor, in a short reference, another word"
        )
    print(f"fuser: values to swap in {able:,} of the first {len(first):,} rows", file=sys.stderr, flush=True)


def train_on_fusions(config: FuserTraining, data: TrainingData, process: TrainingProcess) -> dict[str, float]:
    """Train a fuser on prepared rows, in each process of a training; `run_fuser_training` has the rest."""
    with process.started():
        torch.manual_seed(config.optimization.seed)
        folder = locate(config.model)
        model = _load(config, folder)
        names = load_tokenizer(folder)
        if names.eos_token_id is None or names.pad_token_id is None:
            raise ModelLoadError(f"{folder}: its tokenizer lacks an end or a padding token")
        tokenizer = LiteralTokenizer(load_tokenizer_backend(folder))
        dataset = FusionDataset(data.train.rows(), tokenizer, names.eos_token_id, config)
        heldout_rows = data.heldout.rows() if data.heldout else None
        heldout = FusionDataset(heldout_rows, tokenizer, names.eos_token_id, config) if heldout_rows else None
        if config.lora:
            model = add_lora(model, config.model, config.lora)
        metrics = read_named_metrics(config.generation.metrics) if config.generation else {}

    def collate(batch: Sequence[Example]) -> dict[str, Tensor]:
        ids = [example["input_ids"] for example in batch]
        labels = pad([example["labels"] for example in batch], IGNORED)
        tensors = {"input_ids": pad(ids, names.pad_token_id), "attention_mask": mask(ids), "labels": labels}
        if config.label_smoothing:  # the Trainer computes the loss then, and gives the model no labels
            tensors["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        return tensors

    watch = LossWatch("fuser")
    generation = _generation(config, heldout, heldout_rows, tokenizer, names.pad_token_id, metrics)
    writes = [GenerationCallback("fuser", generation)] if generation and config.generation else []
    trained, measured = run_trainer(
        model,
        dataset,
        heldout,
        collate,
        config.optimization,
        process.checkpoints,
        title="fuser",
        run=config,
        right_or_not=token_is_right,
        callbacks=[watch, *writes],
        label_smoothing=config.label_smoothing,
    )
    if is_main_process():
        check_finite("fuser", trained)
        answers = generation.answers(trained) if generation else []
        warnings = watch.warnings() + ([data.leak] if data.leak else [])
        warnings += generation_warnings(answers, generation.references) if generation else []
        if generation and writes:
            measured |= {f"generated_{name}": score for name, score in generation.scores(answers).items()}
        if config.on_failure == "fail":
            refuse("fuser", warnings)
        with process.result() as output:
            _save(config, trained, output)
            _copy_tokenizer(folder, output)
            examples = {"train": len(dataset), "heldout": len(heldout) if heldout else 0}
            findings = [f"warning: {warning}" for warning in warnings]
            write_model_card(config, output, examples=examples, measured=measured, findings=findings)
        print_results("fuser", config.output, measured)
        print_warnings("fuser", warnings)
    return measured


def _load(config: FuserTraining, folder: Path) -> Any:
    """The model to train."""
    quantization = trained_quantization(config)
    return load_merged(
        AutoModelForSeq2SeqLM,
        folder,
        device=resolve_device("auto") if quantization else torch.device("cpu"),
        dtype=torch.float32,
        quantization=quantization,
    )


def _save(config: FuserTraining, model: Any, folder: Path) -> None:
    """Write the result: a whole model, or an adapter."""
    if config.lora and not config.lora.merge:
        save_adapter(model, folder)
        return
    if config.lora:

        def merge_saved(adapter: Path) -> PreTrainedModel:
            whole = load_merged(
                AutoModelForSeq2SeqLM, locate(config.model), device=torch.device("cpu"), dtype=torch.float32
            )
            return merge_adapter(whole, adapter)

        model = merge_trained(model, config.lora, merge_saved)
    model.to(getattr(torch, config.dtype)).save_pretrained(folder)


def _generation(
    config: FuserTraining,
    heldout: FusionDataset | None,
    rows: Sequence[TrainingRow] | None,
    tokenizer: LiteralTokenizer,
    pad_id: int,
    metrics: Mapping[str, Metric],
) -> HeldoutGeneration | None:
    """What the fuser writes answers to: the rows of the settings, or a few for signs of failure."""
    if heldout is None or rows is None:
        return None
    count = min(len(heldout), config.generation.rows if config.generation else FEW_ANSWERS)
    longest = config.output_max_length
    return HeldoutGeneration(
        inputs=[heldout[i]["input_ids"] for i in range(count)],
        references=[rows[i].reference or "" for i in range(count)],
        decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
        pad_id=pad_id,
        max_new_tokens=longest if config.generation else min(longest, FEW_TOKENS),
        batch_size=config.optimization.batch_size,
        metrics=metrics,
    )


def _copy_tokenizer(source: Path, output: Path) -> None:
    """Copy the files: transformers 5 writes T5's tokenizer without its normalizer (see `actors.tokens`)."""
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
        "tokenizer.json",
    ):
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)

"""Training of a PairRanker on rows with scored candidates, as in LLM-Blender (arXiv 2306.02561, section 3).

Pairs of a row's candidates, each on a random side; `losses` has what is minimized.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.merged_adapters import merge_adapter
from llm_blender_ray.actors.pairrm.checkpoints import (
    create_pairrm,
    is_pairranker,
    save_adapted_pairrm,
    save_pairrm,
)
from llm_blender_ray.actors.pairrm.network import PairRMNetwork
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenization, PairTokenizer
from llm_blender_ray.actors.weights import quiet
from llm_blender_ray.configs.training import PairSampling, RankerTraining
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.train.dev_score import ChoiceMetrics, full_pairs, logits_only
from llm_blender_ray.pipelines.train.examples import IGNORED, Example, mask, pad
from llm_blender_ray.pipelines.train.failures import LossWatch, check_finite, find_leak, print_warnings, refuse
from llm_blender_ray.pipelines.train.heldout import heldout_pairs, measure_heldout
from llm_blender_ray.pipelines.train.judged_pairs import read_judged_pairs
from llm_blender_ray.pipelines.train.loop import is_main_process, print_results, run_trainer
from llm_blender_ray.pipelines.train.lora import (
    adapt_ranker,
    drop_frozen_weights,
    merge_trained,
    save_adapter,
    trained_quantization,
)
from llm_blender_ray.pipelines.train.losses import RankerLoss, pair_is_right
from llm_blender_ray.pipelines.train.model_card import write_model_card
from llm_blender_ray.pipelines.train.pair_losses import InstructGPT, PairLoss
from llm_blender_ray.pipelines.train.pairs import TrainingPair, scored_pairs
from llm_blender_ray.pipelines.train.prepare import Preparation, StoredSplit, TrainingData
from llm_blender_ray.pipelines.train.process import TrainingProcess
from llm_blender_ray.pipelines.train.rows import CandidateFilter, TrainingRow, training_row
from llm_blender_ray.pipelines.train.run import run_training


class PairDataset(Dataset[Example]):
    """Data set of pairs, tokenized on access: the tokens of a large set do not fit in memory."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        pairs: Sequence[TrainingPair],
        tokenizer: PairTokenization,
        metrics: Sequence[str] = (),
    ) -> None:
        """Start.

        Args:
            rows: The rows to learn from.
            pairs: Pairs of their texts.
            tokenizer: The ranker's tokenizer.
            metrics: Names of the scores that examples have beside their difference, where the loss reads them.
        """
        self._rows = rows
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._metrics = metrics

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self._pairs[index]
        row = self._rows[pair.row]
        source = self._tokenizer.encode_source(*row.prompt.turns())
        left, right = (self._tokenizer.encode_candidate(row.texts[i], len(source)) for i in (pair.left, pair.right))
        example = {
            "input_ids": self._tokenizer.join(source, left, right),
            "labels": pair.lead,
            "weights": pair.weight,
        }
        if self._metrics:
            scores = row.scores(self._metrics)
            example["scores"] = [scores[pair.left], scores[pair.right]]
        if isinstance(self._tokenizer, PairTokenizer):  # the parts of the others are not aligned
            reference = self._tokenizer.encode_candidate(row.reference or "", len(source))
            aligned = _aligned(left, reference) + _aligned(right, reference)
            return example | {"reference_ids": [IGNORED] * len(source) + aligned}
        return example


def _aligned(candidate: list[int], reference: list[int]) -> list[int]:
    """Reference ids at each text token of the candidate; IGNORED at markers, and everywhere if lengths differ."""
    if len(candidate) != len(reference):
        return [IGNORED] * len(candidate)
    return [IGNORED, IGNORED, *reference[2:-1], IGNORED]


@quiet()
def run_ranker_training(config: RankerTraining) -> dict[str, float]:
    """Train a ranker and save it in `config.output`.

    Returns:
        The last held-out loss and pairwise accuracy; empty without held-out rows.

    Raises:
        BlendError: A row cannot be learnt from.
        ModelLoadError: The backbone cannot be used.
    """
    return run_training(config, prepare_pairs, train_on_pairs, title="ranker")


def prepare_pairs(config: RankerTraining, preparation: Preparation) -> TrainingData:
    """Prepare rows and the pairs of them that a ranker learns from or is evaluated on.

    Raises:
        BlendError: A row cannot be learnt from.
    """
    train = _split(config, preparation, "train", config.train, config.pairs)
    if not config.heldout:
        return TrainingData(train, None)
    chooses = config.optimization.select_by == "dev_score"
    every_kind = PairSampling(sampling="all_pair", per_row=config.pairs.per_row)  # easy and hard pairs alike
    sampling = None if chooses else every_kind
    heldout = _split(config, preparation, "heldout", config.heldout, sampling, config.heldout_limit)
    return TrainingData(train, heldout, find_leak("ranker", train.rows(), heldout.rows(), config.on_failure))


def train_on_pairs(config: RankerTraining, data: TrainingData, process: TrainingProcess) -> dict[str, float]:
    """Train a ranker on prepared pairs, in each process of a training; `run_ranker_training` has the rest."""
    loss = _loss(config)
    with process.started():
        torch.manual_seed(config.optimization.seed)
        network, tokenizer = _create(config)
        chooses = config.optimization.select_by == "dev_score" and data.heldout is not None
        if config.auxiliary.wanted and not isinstance(tokenizer, PairTokenizer):
            raise BlendError(f"{config.backbone}: auxiliary losses need an encoder; set both weights to 0")
        if loss.of_sides and not network.pooling.scores_sides:
            raise BlendError(
                f"{config.backbone}: a ranker on a causal LM scores pairs, and loss: {loss.kind} scores of "
                "candidates; set loss to instructgpt or bradley_terry, or take an encoder"
            )
        read = config.metrics if loss.of_scores else ()
        dataset = PairDataset(data.train.rows(), data.train.pairs(), tokenizer, read)
        heldout_rows = data.heldout.rows() if data.heldout else ()
        evaluated = data.heldout.pairs() if data.heldout else ()
        heldout = PairDataset(heldout_rows, evaluated, tokenizer, read) if data.heldout else None
        compared = _compared(config, heldout_rows, evaluated) if data.heldout and is_main_process() else []
        before = None
        if config.judgements and compared and is_pairranker(config.backbone):
            before = measure_heldout(config.backbone, heldout_rows, compared)
            print(f"ranker, before training: {before.line()}", flush=True)
        model = RankerLoss(network, config.auxiliary, loss)
        if config.lora:
            adapt_ranker(network, tokenizer, config)
            if not config.optimization.sharding:
                drop_frozen_weights(model)

    def collate(batch: Sequence[Example]) -> dict[str, Tensor]:
        ids = [example["input_ids"] for example in batch]
        tensors = {
            "input_ids": pad(ids, tokenizer.pad_id),
            "attention_mask": mask(ids),
            "labels": torch.tensor([example["labels"] for example in batch]),
        }
        if config.judgements:
            tensors["weights"] = torch.tensor([example["weights"] for example in batch])
        if loss.of_scores:
            tensors["scores"] = torch.tensor([example["scores"] for example in batch])
        if "reference_ids" in batch[0]:
            tensors["reference_ids"] = pad([example["reference_ids"] for example in batch], IGNORED)
        return tensors

    watch = LossWatch("ranker")
    trained, measured = run_trainer(
        model,
        dataset,
        heldout,
        collate,
        config.optimization,
        process.checkpoints,
        title="ranker",
        run=config,
        right_or_not=logits_only if chooses else pair_is_right,
        metrics=ChoiceMetrics(heldout_rows, evaluated, config.metrics) if chooses else None,
        callbacks=[watch],
    )
    if is_main_process():
        check_finite("ranker", trained.network)
        with process.result() as folder:
            _save(config, trained.network, tokenizer, folder)
            findings: list[str] = []
            warnings = watch.warnings() + ([data.leak] if data.leak else [])
            if compared:
                result = measure_heldout(str(folder), heldout_rows, compared)
                findings.append(f"in both orders: {result.line()}")
                if before:
                    findings.append(f"by training: {result.gain_line(before)}")
                warnings += result.warnings()
            if config.on_failure == "fail":
                refuse("ranker", warnings)
            examples = {"train": len(dataset), "heldout": len(heldout) if heldout else 0}
            lines = [*findings, *(f"warning: {warning}" for warning in warnings)]
            write_model_card(config, folder, examples=examples, measured=measured, findings=lines)
        print_results("ranker", config.output, measured)
        for finding in findings:
            print(f"ranker, {finding}", flush=True)
        print_warnings("ranker", warnings)
    return measured


def _create(config: RankerTraining, *, quantized: bool = True) -> tuple[PairRMNetwork, PairTokenization]:
    """The ranker to train."""
    return create_pairrm(
        config.backbone,
        PairBudget(config.source_max_length, config.candidate_max_length),
        n_tasks=len(config.metrics) or 1,
        dropout=config.dropout,
        quantization=trained_quantization(config) if quantized else None,
    )


def _save(config: RankerTraining, network: PairRMNetwork, tokenizer: PairTokenization, folder: Path) -> None:
    """Write the result: a whole ranker, or an adapter."""
    if config.lora and not config.lora.merge:
        save_adapter(network.pretrained_model, folder)
        save_adapted_pairrm(network, tokenizer, folder)
        return
    if config.lora:
        network.pretrained_model = merge_trained(
            network.pretrained_model,
            config.lora,
            lambda adapter: merge_adapter(_create(config, quantized=False)[0].pretrained_model, adapter),
        )
    save_pairrm(network, tokenizer, folder, dtype=getattr(torch, config.dtype))


def _split(
    config: RankerTraining,
    preparation: Preparation,
    name: str,
    uri: str,
    sampling: PairSampling | None,
    limit: int | None = None,
) -> StoredSplit:
    """A split with the pairs of a sampling; None: all pairs in both orders."""
    seed = config.optimization.seed
    if judgements := config.judgements:
        key = [fingerprint(uri, limit), judgements.model_dump(mode="json"), seed]
        return preparation.made(name, key, lambda: read_judged_pairs(uri, judgements, seed, limit))
    loss, wanted = _loss(config), CandidateFilter(config.candidate_models, config.decoding_methods)
    rows = preparation.rows(name, uri, limit, functools.partial(training_row, wanted=wanted), wanted.key())

    def pairs(rows: Iterable[TrainingRow]) -> Iterator[TrainingPair]:
        readable = _with_binary_scores(rows, loss, config.metrics) if loss.binary_scores else rows
        if sampling is None:
            return full_pairs(readable, config.metrics)
        return scored_pairs(readable, config.metrics, sampling, seed)

    key = [config.metrics, loss.kind, sampling and sampling.model_dump(mode="json"), seed]
    return preparation.with_pairs(name, rows, key, pairs)


def _loss(config: RankerTraining) -> PairLoss:
    """The loss of scored pairs."""
    loss = config.loss or InstructGPT()
    if not isinstance(loss, PairLoss):
        raise BlendError(f"loss: {loss.kind}: expected a subclass of PairLoss, got {type(loss).__name__}")
    return loss


def _with_binary_scores(
    rows: Iterable[TrainingRow], loss: PairLoss, metrics: Sequence[str]
) -> Iterator[TrainingRow]:
    """The rows.

    Raises:
        BlendError: A score is neither 0 nor 1, and the loss reads no other.
    """
    for row in rows:
        for given in row.metrics:
            for name in metrics:
                if (score := given.get(name, 0.0)) not in (0.0, 1.0):
                    raise BlendError(
                        f"row {row.prompt.id}: loss: {loss.kind} takes scores of 0 or 1, got {name}: {score}"
                    )
        yield row


def _compared(
    config: RankerTraining, rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair]
) -> list[TrainingPair]:
    """Held-out pairs that the ranker compares in both orders; a pair without a winner tells nothing."""
    if not config.judgements:
        return heldout_pairs(rows, config.metrics, config.pairs.per_row, config.optimization.seed)
    decided = [pair for pair in pairs if sum(pair.lead)]
    if not decided:
        raise BlendError(f"{config.heldout}: no two answers of which judgements prefer one")
    return decided

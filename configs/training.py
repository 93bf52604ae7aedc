"""Schemas of the training configs, which `blend train ranker CONFIG` and `blend train fuser CONFIG` read.

`train-ranker.yaml` and `train-fuser.yaml` in this folder hold the settings of the LLM-Blender paper
(arXiv 2306.02561, section 5 and appendix A; llm-blender 0.0.2's training scripts where the paper is silent).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llm_blender_ray.configs.lora import LoraTraining
from llm_blender_ray.configs.losses import PairwiseLoss
from llm_blender_ray.configs.scaling import TrainingScaling
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.configs.settings import Settings


class EarlyStopping(Settings):
    """End of a training whose held-out figure (`select_by`) no longer improves."""

    patience: Annotated[int, Field(ge=1)] = 3  # evaluations without an improvement
    threshold: Annotated[float, Field(ge=0)] = 0.0  # least difference that is one


class Optimization(Settings):
    """Optimizer settings, the same for every model. A step is one update of the weights."""

    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=1)] | None = None  # instead of epochs
    batch_size: Annotated[int, Field(ge=1)] = 8  # examples a device and forward
    accumulation: Annotated[int, Field(ge=1)] = 1  # forwards a step
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of all steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    bf16: bool | Literal["auto"] = "auto"  # mixed precision; auto: on GPUs that have it
    gradient_checkpointing: bool = False  # less memory, a third more time
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    sharding: Literal["fsdp", "zero2", "zero3"] | None = None  # over workers; zero2 and zero3 are DeepSpeed's
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(ge=1)] = 50  # steps
    evaluate_every: Annotated[int, Field(ge=1)] = 500  # steps; held-out rows are read then and at the end
    save_every: Annotated[int, Field(ge=1)] = 500  # steps
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    result: Literal["last", "best"] = "last"  # which weights: the last, or those with the best held-out figure
    select_by: Literal["loss", "accuracy", "dev_score"] = "loss"
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _best_is_saved(self) -> Self:
        if self.result == "best" and self.save_every % self.evaluate_every:
            raise ValueError("result: best needs a save_every that is a multiple of evaluate_every")
        return self

    @model_validator(mode="after")
    def _shards_are_adamws(self) -> Self:
        if self.sharding and self.optimizer != "adamw":
            raise ValueError(f"sharding: {self.sharding} needs optimizer: adamw")  # the others read whole weights
        return self


class TrainingRun(Settings):
    """Settings of both commands. URIs are files, folders or globs of rows, local or `s3://`."""

    train: Annotated[str, Field(min_length=1)]
    heldout: Annotated[str, Field(min_length=1)] | None = None  # rows never trained on; None: nothing is measured
    heldout_limit: Annotated[int, Field(ge=1)] | None = 1000  # rows read at each evaluation
    candidate_models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # whose candidates; None: all
    decoding_methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = (
        None  # candidates with these `decoding_method`s; None: all
    )
    output: Annotated[str, Field(min_length=1)]  # folder or `s3://`: the model, and `checkpoints/` to resume from
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the saved weights
    on_failure: Literal["warn", "fail"] = (
        "warn"  # signs of a failed training: last lines, or exit 1 without a result
    )
    optimization: Optimization
    lora: LoraTraining | None = None  # train an adapter; None: all weights
    scaling: TrainingScaling | None = None  # workers on Ray; None: this process trains, without Ray
    ray: RayCluster = RayCluster()  # of the workers

    @model_validator(mode="after")
    def _quantized_is_whole(self) -> Self:
        if self.lora and self.lora.quantization and self.optimization.sharding:
            raise ValueError("lora.quantization and optimization.sharding exclude each other; set one of them")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.heldout is None:
            if self.optimization.result == "best":
                raise ValueError("optimization.result: best needs heldout rows")
            if self.optimization.early_stopping:
                raise ValueError("optimization.early_stopping needs heldout rows")
        return self


class PairSampling(Settings):
    """Training pairs of a row's candidates, without equal texts and equal scores.

    top_bottom: the i-th best against the i-th of the `per_row` worst, as the paper; all_pair: `per_row` random
    pairs; random: `ratio` times as many random pairs as candidates, at least one; uniform: every
    int(1 / `ratio`)-th candidate in the order by score, each against the next of them.
    """

    sampling: Literal["top_bottom", "all_pair", "random", "uniform"] = "top_bottom"
    per_row: Annotated[int, Field(ge=1)] = 5  # the original's smaller one of num_pos and num_neg
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.4  # the original's sub_sampling_ratio


class AuxiliaryLosses(Settings):
    """Losses at every candidate token, in addition to the pairwise one; their heads are discarded after training.

    They apply to a candidate that has as many tokens as the row's reference: token i is then compared to the
    reference's token i. A small ranker trained from nothing needs them; a pretrained one does without.
    """

    reference_token: Annotated[float, Field(ge=0)] = 0.0  # weight: which token does the reference have here
    token_is_right: Annotated[float, Field(ge=0)] = 0.0  # weight: is this the reference's token

    @property
    def wanted(self) -> bool:
        """Whether any loss has a weight."""
        return self.reference_token > 0 or self.token_is_right > 0


class JudgementPairs(Settings):
    """Training pairs of judgements: votes, LLM judges' verdicts, `cmp_results`, preference data sets."""

    judges: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # whose judgements count; None: all
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )  # by judge; of others 1
    weight_column: str | None = None  # column with a weight of each row's judgements; None: 1
    ties: Literal["half", "drop"] = "half"  # half: half a win for each answer


class RankerTraining(TrainingRun):
    """Settings of training a PairRanker on rows with scored candidates, or on judgements."""

    backbone: Annotated[str, Field(min_length=1)]  # encoder or causal LM to start from, or a PairRanker to continue
    metrics: tuple[str, ...] = ()  # keys of candidates[].scores; one head output each
    judgements: JudgementPairs | None = None  # learn from these in place of scores
    source_max_length: Annotated[int, Field(ge=4)] = 128  # tokens
    candidate_max_length: Annotated[int, Field(ge=4)] = 128  # tokens
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of the head
    pairs: PairSampling = PairSampling()
    loss: PairwiseLoss | None = None  # of scored pairs; None: instructgpt, the original's
    auxiliary: AuxiliaryLosses = AuxiliaryLosses()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.metrics) == (self.judgements is not None):
            raise ValueError("expected either metrics (keys of candidates[].scores) or judgements to learn from")
        if self.judgements and self.loss:
            raise ValueError("loss is of scored candidates; judgements have the cross-entropy of their shares")
        if self.judgements and (self.candidate_models or self.decoding_methods):
            raise ValueError("candidate_models and decoding_methods choose scored candidates, not judgements")
        if self.judgements and self.optimization.select_by == "dev_score":
            raise ValueError("optimization.select_by: dev_score is of scored candidates, not of judgements")
        return self


class GenerationSettings(Settings):
    """Answers that a fuser writes on held-out rows at every evaluation and at the end, decoded greedily."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("rouge_l",)
    rows: Annotated[int, Field(ge=1)] = 64


class Counterfactuals(Settings):
    """Values swapped in reference and candidates alike, so that a fuser does not answer from memory."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the values that can be swapped
    seed: Annotated[int, Field(ge=0)] = 0


class FuserTraining(TrainingRun):
    """Settings of training a GenFuser on rows with candidates and a reference `output`."""

    model: Annotated[str, Field(min_length=1)]  # seq2seq model to start from
    metric: str | None = None  # orders candidates of rows without `ranking`; None: the given order
    top_k: Annotated[int, Field(ge=1)] = 3
    max_length: Annotated[int, Field(ge=8)] = 1024  # tokens of the whole input
    candidate_max_length: Annotated[int, Field(ge=1)] = 128  # tokens of one candidate
    output_max_length: Annotated[int, Field(ge=2)] = 128  # tokens of the reference, its end included
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    generation: GenerationSettings | None = None
    counterfactual: Counterfactuals | None = None  # swap values of the rows to learn from; None: rows as they are

    @model_validator(mode="after")
    def _candidates_fit(self) -> Self:
        if self.candidate_max_length > self.max_length:
            raise ValueError(f"max_length ({self.max_length}) is shorter than one candidate's")
        if self.optimization.select_by == "dev_score":
            raise ValueError("optimization.select_by: dev_score is of rankers, expected loss or accuracy")
        if self.generation and self.heldout is None:
            raise ValueError("generation needs heldout rows")
        if self.generation and self.optimization.sharding:
            raise ValueError(
                "generation is not possible while the model is sharded; unset it, or optimization.sharding"
            )
        return self

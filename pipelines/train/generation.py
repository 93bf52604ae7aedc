"""Answers that a fuser writes on held-out rows, while and after it is trained: metrics, and signs of failure."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from llm_blender_ray.actors.batching import padded, token_mask
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.quality.ranker_signs import TOO_FEW


@dataclass(frozen=True)
class HeldoutGeneration:
    """Held-out inputs of a fuser and what is measured of its answers. They are decoded greedily.

    Attributes:
        inputs: Token ids of the inputs.
        references: The reference of each.
        decode: Text of an answer's token ids, special tokens left out.
        pad_id: Token id that fills up inputs.
        max_new_tokens: Of an answer.
        batch_size: Inputs at a time.
        metrics: Metrics by the names of their scores.
    """

    inputs: Sequence[list[int]]
    references: Sequence[str]
    decode: Callable[[list[int]], str]
    pad_id: int
    max_new_tokens: int
    batch_size: int
    metrics: Mapping[str, Metric]

    @torch.inference_mode()
    def answers(self, model: PreTrainedModel) -> list[str]:
        """The model's answers. It is in the same mode afterwards."""
        was_training = model.training
        model.eval()
        found = []
        for start in range(0, len(self.inputs), self.batch_size):
            batch = self.inputs[start : start + self.batch_size]
            output = model.generate(
                input_ids=padded(batch, self.pad_id, device=model.device),
                attention_mask=token_mask(batch, device=model.device),
                max_new_tokens=self.max_new_tokens,
                num_beams=1,
                do_sample=False,
            )
            found += [self.decode(ids) for ids in output.tolist()]
        model.train(was_training)
        return found

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        """Means of the metrics, by their names."""
        references = [(reference,) for reference in self.references]
        return {
            name: sum(metric.checked_score(references, answers)) / len(answers)
            for name, metric in self.metrics.items()
        }


def generation_warnings(answers: Sequence[str], references: Sequence[str]) -> list[str]:
    """What makes a fuser useless: no text, or the same one whatever it reads.

    Args:
        answers: To different inputs.
        references: The reference of each.
    """
    empty = sum(not answer.strip() for answer in answers)
    if 2 * empty > len(answers):
        return [f"empty output: {empty} of {len(answers)} answers to held-out rows have no text"]
    if len(answers) >= TOO_FEW and len(set(answers)) == 1 < len(set(references)):
        return [f"constant: the answers to {len(answers)} held-out rows are all {answers[0][:60]!r}"]
    return []


class GenerationCallback(TrainerCallback):
    """Writes and measures answers at each evaluation, in the first process."""

    def __init__(self, title: str, generation: HeldoutGeneration) -> None:
        self._title = title
        self._generation = generation

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Measure (transformers' hook)."""
        if not state.is_world_process_zero:
            return
        scores = self._generation.scores(self._generation.answers(model))
        shown = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        rows = len(self._generation.inputs)
        state.log_history.append(
            {"step": state.global_step, **{f"generated_{name}": score for name, score in scores.items()}}
        )
        print(
            f"{self._title}: step {state.global_step}/{state.max_steps}  written for {rows} held-out rows: {shown}",
            file=sys.stderr,
            flush=True,
        )

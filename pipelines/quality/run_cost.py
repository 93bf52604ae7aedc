"""Cost of a run beside that of its best single model."""

from dataclasses import dataclass

from llm_blender_ray.pipelines.quality.rounding import dollars


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run cost beside its best single model.

    Attributes:
        usd: Known costs of all stages.
        usd_per_row: The same for each row of the output.
        best_model: The LLM with the best mean rank by the run's ranking; None: its cost is unknown.
        best_model_usd: Cost of its answers.
        unpriced: Stages whose price is unknown: not in these amounts.
        incomplete: Stages of whose calls not all tokens are known: their costs are lower bounds.
    """

    usd: float
    usd_per_row: float
    best_model: str | None
    best_model_usd: float | None
    unpriced: tuple[str, ...]
    incomplete: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The cost in words."""
        texts = [f"The run cost {dollars(self.usd)}: {dollars(self.usd_per_row)} a row."]
        if self.best_model_usd:
            texts.append(
                f"The best single model by this ranking is {self.best_model}, whose answers alone cost "
                f"{dollars(self.best_model_usd)}: the blend cost {self.usd / self.best_model_usd:.1f} times that."
            )
        if self.unpriced:
            texts.append(f"Not in these amounts: {', '.join(self.unpriced)}, whose price is unknown.")
        if self.incomplete:
            texts.append(f"At least: not all tokens of {', '.join(self.incomplete)} are known.")
        return texts

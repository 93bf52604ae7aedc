"""Settings of a campaign, which its folder keeps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llm_blender_ray.configs.settings import Settings

PairChoice = Literal["design", "all", "active"]


class CampaignSettings(Settings):
    """Settings of a campaign; they stay as they are once it is created.

    Attributes:
        title: Heading of the page.
        instructions: Text above the items.
        criteria: What annotators attend to, a line each.
        contestants: Models, `blend` or `ranker`; empty: all models, and the blend where rows have a fused answer.
        pairs: `design`: `items` pairs, every two contestants equally often; `all`: every pair of every prompt;
            `active`: `items` pairs, each chosen by the votes so far (`campaign.active`).
        items: Pairs of answers to compare, gold items aside; None: one for each prompt.
        overlap: Annotators who compare each item.
        gold_every: One in so many items of an annotator is a gold item, on average, as long as there are any.
        lease_s: Seconds for which a shown item is its annotator's; then another may get it.
        seed: Of the draws of prompts, sides and gold items.
    """

    title: Annotated[str, Field(min_length=1, max_length=200)] = "Which answer is better?"
    instructions: Annotated[str, Field(max_length=20_000)] = ""
    criteria: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = ()
    contestants: tuple[str, ...] = ()
    pairs: PairChoice = "design"
    items: Annotated[int, Field(ge=1)] | None = None
    overlap: Annotated[int, Field(ge=1)] = 1
    gold_every: Annotated[int, Field(ge=1)] = 10
    lease_s: Annotated[float, Field(gt=0)] = 1800.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @model_validator(mode="after")
    def _items_of_a_choice(self) -> Self:
        if self.pairs == "all" and self.items is not None:
            raise ValueError("items: `pairs: all` has every pair; give one of them")
        return self

"""Settings of preference data: which answers of a ranked row make a pair, and their least score difference."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llm_blender_ray.configs.settings import OMIT_DEFAULT, Settings

PAIR_COLUMNS = (  # of every pair
    "id",
    "prompt",
    "chosen",
    "rejected",
    "score_chosen",
    "score_rejected",
    "chosen_model",
    "rejected_model",
)


class Preferences(Settings):
    """Pairs of a better and a worse answer to the same prompt, for DPO and its kin."""

    output: Annotated[str, Field(min_length=1)]  # URI of a JSONL or Parquet file, or of a folder of Parquet
    pairs: Literal["best-worst", "best-random", "all"] = "best-worst"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # least difference of `scores`; 0: any
    max_pairs: Annotated[int, Field(ge=1)] | None = None  # of one row, drawn at random; None: every one
    seed: Annotated[int, Field(ge=0)] = 0  # of what is drawn
    columns: Annotated[tuple[str, ...], OMIT_DEFAULT] = ()  # further columns of the row that its pairs carry

    @field_validator("output")
    @classmethod
    def _holds_chats(cls, value: str) -> str:
        if value.lower().endswith((".csv", ".csv.gz")):
            raise ValueError("CSV has no chats; expected a .jsonl or .parquet file, or a folder")
        return value

    @field_validator("columns")
    @classmethod
    def _are_further_ones(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name in PAIR_COLUMNS:
                raise ValueError(f"every pair has its own {name}; expected other columns of the rows")
            if value.count(name) > 1:
                raise ValueError(f"{name} is given twice")
        return value

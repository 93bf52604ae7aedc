"""Settings of preference data: which answers of a ranked row make a pair, and their least score difference."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llm_blender_ray.configs.settings import Settings


class Preferences(Settings):
    """Pairs of a better and a worse answer to the same prompt, for DPO and its kin."""

    output: Annotated[str, Field(min_length=1)]  # URI of a JSONL or Parquet file, or of a folder of Parquet
    pairs: Literal["best-worst", "best-random", "all"] = "best-worst"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # least difference of `scores`; 0: any
    max_pairs: Annotated[int, Field(ge=1)] | None = None  # of one row, drawn at random; None: every one
    seed: Annotated[int, Field(ge=0)] = 0  # of what is drawn

    @field_validator("output")
    @classmethod
    def _holds_chats(cls, value: str) -> str:
        if value.lower().endswith((".csv", ".csv.gz")):
            raise ValueError("CSV has no chats; expected a .jsonl or .parquet file, or a folder")
        return value

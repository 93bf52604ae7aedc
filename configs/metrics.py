"""Settings that every metric with a model has, whatever the model is."""

from typing import Annotated, Literal

from pydantic import Field

from llm_blender_ray.configs.parts import TorchPart
from llm_blender_ray.configs.settings import RUNTIME_ONLY


class MetricModel(TorchPart):
    """Settings of the model of a metric: any compatible checkpoint, a local folder or a hub id."""

    max_length: Annotated[int, Field(ge=4)] | None = None  # tokens of one text, or pair; None: the checkpoint's own
    # tokens of one forward, padding included
    batch_tokens: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None
    trust_remote_code: bool = False


class BERTScoreModel(MetricModel):
    """Settings of the encoder of BERTScore."""

    measure: Literal["f1", "precision", "recall"] = "f1"
    layer: Annotated[int, Field(ge=1)] | None = None  # whose output is compared; None: `bert-score`'s for the model

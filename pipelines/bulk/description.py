"""Description of a command's work on rows, which `pipelines.bulk.run` executes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.cluster.plan import Plan
from llm_blender_ray.configs.judges import JudgeConfig
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.configs.schema import BlendConfig, RayCluster
from llm_blender_ray.pipelines.rows.outputs import Output

TableFunction = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Run:
    """Work of a command on its rows.

    Attributes:
        planned: The pools on a given cluster.
        parts: Settings of the parts by the names of their placements, in the order of their stages.
        llms: Names in the order of their candidates.
        results: Columns that the run adds.
        keep: Result columns of the input that are written if rows have them.
        adds: Further columns with their types, which `finish` puts among the user's own (`Layout.of`).
        candidate_adds: The same of candidates.
        reads: Columns that stages read beside `input.SEEN_BY_STAGES`.
        settings: Settings for the manifest.
        identity: Those settings that decide the output.
        prices: Prices of the parts by name, where the config has them.
        usd: Most that the run may spend on endpoints; None: no limit.
    """

    command: str
    input: str
    output: Output
    cluster: RayCluster
    planned: Callable[[Capacity], Plan]
    results: Sequence[str]
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: Mapping[str, PartSettings] = field(default_factory=dict)
    llms: tuple[str, ...] = ()
    keep: Sequence[str] = ()
    adds: Mapping[str, pa.DataType] = field(default_factory=dict)
    candidate_adds: Mapping[str, pa.DataType] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    limit: int | None = None
    rows_per_block: int = 1024
    preferences: Preferences | None = None
    prices: Mapping[str, ModelPrice] = field(default_factory=dict)
    usd: float | None = None
    prepare: TableFunction | None = None
    finish: TableFunction | None = None

    @classmethod
    def of_config(cls, command: str, config: BlendConfig | JudgeConfig, **fields: Any) -> Self:
        """Work of a command whose parts, input and output are in one config.

        Args:
            command: Name of the command.
            config: With `input` and `output`.
            **fields: Fields that the config does not have.
        """
        assert config.input is not None and config.output is not None
        return cls(
            command=command,
            input=config.input,
            output=Output(config.output, config.format),
            cluster=config.ray,
            settings=config.model_dump(mode="json"),
            parts=config.parts,
            limit=config.limit,
            rows_per_block=config.rows_per_block,
            prices=config.prices,
            usd=config.budget.usd_per_run,
            **fields,
        )

    @property
    def outputs(self) -> list[Output]:
        """Outputs: the rows, then the preference pairs."""
        pairs = [Output(self.preferences.output, self.output.format)] if self.preferences else []
        return [self.output, *pairs]

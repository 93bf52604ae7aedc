"""Small campaigns for tests: rows of a run, and their campaign."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.creation import create_campaign
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore

MODELS = ("alder", "birch", "cedar")


def run_rows(count: int, models: Sequence[str] = MODELS, *, fused: bool = False) -> list[dict[str, Any]]:
    """Rows as a run writes them: the answer of every model to `count` prompts."""
    return [
        {
            "id": f"row-{at}",
            "instruction": f"Question {at}?",
            "candidates": [{"model": name, "text": f"{name} says {at}"} for name in models],
            **({"ranking": [0, 1, 2], "fused": f"the blend says {at}"} if fused else {}),
        }
        for at in range(count)
    ]


def write_lines(file: Path, rows: Sequence[Any]) -> str:
    """Write JSON Lines; returns the file's path."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(file)


def read_lines(file: Path | str) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def small_campaign(folder: Path, count: int = 4, gold: Sequence[Any] = (), **settings: Any) -> CampaignStore:
    """A campaign of `run_rows`, with gold items of these rows."""
    rows = write_lines(folder / "rows.jsonl", run_rows(count))
    right = write_lines(folder / "gold.jsonl", gold) if gold else None
    return create_campaign([rows], str(folder / "campaign"), CampaignSettings(**settings), right).store


def vote_all(store: CampaignStore, annotator: str, preferred: Any = "left") -> int:
    """Let an annotator answer all there is for them; returns how many items that was."""
    items, count = Assignments(store), 0
    while (shown := items.next_item(annotator)) is not None:
        items.answer(annotator, shown.item, preferred, None, 1.0)
        count += 1
    return count

"""Small sources of `blend dataset mixinstruct`, in the published form of each."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def number_words(number: int) -> str:
    """A text of its own for a number, of twelve words."""
    return " ".join(f"word{number}{letter}" for letter in "abcdefghijkl")


def save_sources(folder: Path, rows: int = 40) -> list[str]:
    """Write the four sources, with this number of good rows each.

    Returns:
        Options of the command.
    """
    alpaca = [
        {"instruction": f"Alpaca {i}: {number_words(i)}", "input": "", "output": f"answer {number_words(i)}"}
        for i in range(rows)
    ]
    dolly = [
        {
            "instruction": f"Dolly {i}: {number_words(i)}",
            "context": f"context {i}",
            "response": f"reply {number_words(i)}",
            "category": ("open_qa", "closed_qa")[i % 2],
        }
        for i in range(rows)
    ]
    gpt4all = [
        {
            "prompt": f"LAION {i}: {number_words(i)}",
            "response": f"response {number_words(i)}",
            "source": ("unified_chip2", "laion/unified_chip2")[i % 2],
        }
        for i in range(rows)
    ]
    sharegpt = [
        {
            "id": f"chat{i}_0",
            "conversations": [
                {"from": "human", "value": f"Chat {i}: {number_words(i)}"},
                {"from": "gpt", "value": f"result {number_words(i)}"},
                {"from": "human", "value": "Thanks!"},
            ],
        }
        for i in range(rows)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alpaca_gpt4_data.json").write_text(json.dumps(alpaca, indent=4))
    (folder / "dolly.jsonl").write_text(lines(dolly))
    pq.write_table(pa.Table.from_pylist(gpt4all), folder / "gpt4all.parquet")
    (folder / "sharegpt.json").write_text(json.dumps(sharegpt))
    files = {
        "alpaca_gpt4": "alpaca_gpt4_data.json",
        "dolly": "dolly.jsonl",
        "gpt4all": "gpt4all.parquet",
        "sharegpt": "sharegpt.json",
    }
    return [part for name, file in files.items() for part in ("--source", f"{name}={folder / file}")]


def lines(rows: Sequence[object]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)

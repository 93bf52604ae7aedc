"""MixInstruct from its sources: formats, filters, one place for each prompt, draws that need no order."""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from instruction_sources import lines, number_words, save_sources

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import digest, read_prompt
from llm_blender_ray.pipelines.datasets.dolly import Dolly15K
from llm_blender_ray.pipelines.datasets.mixinstruct import MixSettings, MixSummary, build_mixinstruct
from llm_blender_ray.pipelines.datasets.selection import MIX_SPLITS, SplitSizes
from llm_blender_ray.pipelines.rows.readers import read_rows

SMALL = SplitSizes(train=40, val=10, test=10)


def words(texts: Sequence[str]) -> list[int]:
    """CountTokens in words, and one for the token at the beginning."""
    return [len(text.split()) + 1 for text in texts]


def build(
    folder: Path, sources: dict[str, Any], sizes: SplitSizes = SMALL, ending: str = ".jsonl", **options: Any
) -> tuple[MixSummary, dict[str, list[dict[str, Any]]]]:
    """Build, and read the splits."""
    overwrite = options.pop("overwrite", False)
    settings = MixSettings({name: str(uri) for name, uri in sources.items()}, sizes, **options)
    summary = build_mixinstruct(settings, str(folder), ending, words, overwrite=overwrite)
    splits = {}
    for name in MIX_SPLITS:
        file = folder / f"{name}{ending}"
        splits[name] = list(read_rows(str(file))) if file.exists() else []
    return summary, splits


def dolly(number: int, **changes: object) -> dict[str, Any]:
    row = {
        "instruction": f"Dolly {number}: {number_words(number)}",
        "context": "",
        "response": f"reply {number_words(number)}",
        "category": "open_qa",
    }
    return row | changes


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: Path(file) for name, _, file in (one.partition("=") for one in save_sources(folder)[1::2])}


class TestWhatIsWritten:
    def test_rows_have_the_ids_and_fields_of_mixinstruct(self, sources: dict[str, Path], tmp_path: Path) -> None:
        summary, splits = build(tmp_path, sources, SplitSizes(140, 10, 10))
        by_id = {row["id"]: row for rows in splits.values() for row in rows}
        assert len(by_id) == 160
        prefixes = Counter(name.partition("/")[0] for name in by_id)
        assert prefixes == {"itwgpt4": 40, "dolly_15k": 40, "unified_chip2": 20, "laion": 20, "sharegpt": 40}
        assert by_id["unified_chip2/3"]["input"].startswith("LAION 6:")
        assert by_id["unified_chip2/3"]["instruction"] == ""
        assert by_id["dolly_15k/closed_qa/2"] == by_id["dolly_15k/closed_qa/2"] | {
            "instruction": f"Dolly 5: {number_words(5)}",
            "input": "context 5",
            "output": f"reply {number_words(5)}",
        }
        assert by_id["sharegpt/chat7_0"]["output"] == f"result {number_words(7)}"
        assert summary.lines()[0] == "train 140, val 10, test 10 rows"
        assert "dolly: 40 of 40 rows; dropped: none" in summary.lines()

    def test_all_formats_hold_the_same_rows(self, sources: dict[str, Path], tmp_path: Path) -> None:
        one = build(tmp_path / "lines", sources)[1]
        for ending in (".parquet", ".csv", ".json"):
            other = build(tmp_path / ending, sources, ending=ending)[1]
            for split in MIX_SPLITS:
                for name in ("id", "instruction", "input", "output"):
                    assert [r[name] or "" for r in other[split]] == [r[name] or "" for r in one[split]]
        assert pq.read_schema(tmp_path / ".parquet" / "train.parquet").names == [
            "id",
            "instruction",
            "input",
            "output",
        ]

    def test_splits_that_are_there_are_replaced_only_when_told(
        self, sources: dict[str, Path], tmp_path: Path
    ) -> None:
        build(tmp_path, sources, ending=".parquet")
        (tmp_path / "mine.jsonl").write_text("")
        with pytest.raises(BlendError, match=r"has test\.parquet already; --overwrite"):
            build(tmp_path, sources)
        build(tmp_path, sources, SplitSizes(40, 10, 0), overwrite=True)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["mine.jsonl", "train.jsonl", "val.jsonl"]


class TestDraws:
    def test_the_order_of_rows_files_and_sources_changes_nothing(
        self, sources: dict[str, Path], tmp_path: Path
    ) -> None:
        rows = [json.loads(line) for line in sources["dolly"].read_text().splitlines()]
        _, before = build(tmp_path / "a", sources)
        random.Random(0).shuffle(rows)
        moved = tmp_path / "moved"
        moved.mkdir()
        (moved / "b.jsonl").write_text(lines(rows[:7]))
        (moved / "a.jsonl").write_text(lines(rows[7:]))
        _, after = build(tmp_path / "b", dict(reversed((sources | {"dolly": moved}).items())))
        for split in MIX_SPLITS:
            # ids of a source that has none number its rows
            assert [row["instruction"] + row["input"] for row in before[split]] == [
                row["instruction"] + row["input"] for row in after[split]
            ]

    def test_the_seed_decides(self, sources: dict[str, Path], tmp_path: Path) -> None:
        first, again, other = (
            build(tmp_path / str(number), sources, seed=seed)[1] for number, seed in enumerate((1, 1, 2))
        )
        assert first == again
        assert {row["id"] for row in first["val"]} != {row["id"] for row in other["val"]}

    def test_held_out_rows_are_of_all_sources_also_where_one_exceeds_its_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A draw by one hash for both would give the lowest hashes to the held-out rows, all of the cut source."""
        monkeypatch.setattr(Dolly15K, "limit", 100)
        save_sources(tmp_path, 100)
        (tmp_path / "dolly.jsonl").write_text(lines([dolly(i) for i in range(2000)]))
        given = {"dolly": tmp_path / "dolly.jsonl", "alpaca_gpt4": tmp_path / "alpaca_gpt4_data.json"}
        summary, splits = build(tmp_path / "out", given, SplitSizes(100, 100, 0))
        assert summary.dropped["dolly"] == {"over the source's limit": 1900}
        held_out = Counter(row["id"].partition("/")[0] for row in splits["val"])
        assert 30 < held_out["dolly_15k"] < 70

    def test_fewer_rows_keep_the_proportion_and_given_sizes_are_kept_or_refused(
        self, sources: dict[str, Path], tmp_path: Path
    ) -> None:
        summary, _ = build(tmp_path / "a", sources, SplitSizes())
        assert summary.sizes == {"train": 146, "val": 7, "test": 7}
        with pytest.raises(BlendError, match="160 rows are left for train 155, val 5,000, test 5,000"):
            build(tmp_path / "b", sources, SplitSizes(train=155))
        (tmp_path / "two.jsonl").write_text(lines([dolly(1), dolly(2)]))
        with pytest.raises(BlendError, match="2 rows are left, too few for three splits"):
            build(tmp_path / "c", {"dolly": tmp_path / "two.jsonl"}, SplitSizes())
        assert not (tmp_path / "c").exists()


class TestWhatIsDropped:
    def reasons(self, folder: Path, name: str, rows: Sequence[object], **options: Any) -> dict[str, int]:
        """What happens to rows in addition to twenty good ones."""
        save_sources(folder / "good", 20)
        file = folder / f"{name}.jsonl"
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        given = {name: file, "alpaca_gpt4": folder / "good" / "alpaca_gpt4_data.json"}
        summary, splits = build(folder / "out", given, SplitSizes(1, 1, 1), overwrite=True, **options)
        assert sum(map(len, splits.values())) == 3
        return {reason: count for reason, count in summary.dropped[name].items() if reason != "not drawn"}

    def test_bad_rows_are_counted_by_reason(self, tmp_path: Path) -> None:
        rows = [
            "not json\n",
            "[1]\n",
            dolly(1, response=None),
            dolly(2, response=["a"]),
            dolly(3, context=4),
            dolly(4, category=None),
            dolly(5, instruction=" \n", context=""),
            json.dumps(dolly(6)).replace("Dolly", r"\ud83d") + "\n",
            dolly(7, response="short"),
            dolly(8, response="word " * 127),
            dolly(9, instruction="word " * 127),
            dolly(10, instruction="Hi"),
            dolly(11),
        ]
        assert self.reasons(tmp_path, "dolly", rows) == {
            "not a JSON object": 2,
            "no response": 1,
            "response is not text": 1,
            "context is not text": 1,
            "no category": 1,
            "empty prompt": 1,
            "invalid Unicode": 1,
            "output too short": 1,
            "output of 128 tokens or more": 1,
            "prompt of 128 tokens or more": 1,
            "prompt too short": 1,
        }

    def test_only_laion_of_gpt4all(self, tmp_path: Path) -> None:
        row = {"prompt": f"Q {number_words(1)}", "response": number_words(2), "source": "stackoverflow"}
        assert self.reasons(tmp_path, "gpt4all", [row]) == {"not of LAION": 1}

    def test_conversations_without_a_first_answer(self, tmp_path: Path) -> None:
        def chat(*turns: tuple[str, str]) -> dict[str, Any]:
            return {"id": "c", "conversations": [{"from": who, "value": text} for who, text in turns]}

        asked, answered = ("human", number_words(1)), ("gpt", number_words(2))
        rows = [
            chat(),
            chat(asked),
            chat(asked, asked, answered),
            chat(answered, asked),
            {"id": "c"},
            chat(asked, ("gpt", f"I'm sorry, {number_words(3)}")),
            chat(("human", number_words(4)), ("gpt", f"I know {number_words(4)}")),  # "no" is in "know"
            chat(("system", "Be short."), ("human", number_words(5)), ("gpt", number_words(5))),
            chat(("gpt", "Before."), ("human", number_words(6)), ("gpt", number_words(6))),
        ]
        beginning, agreement = "no question with an answer at the beginning", "refusal or mere agreement"
        expected = {beginning: 4, "conversations is not a list of turns": 1}
        assert self.reasons(tmp_path / "a", "sharegpt", rows) == expected | {agreement: 2}
        assert self.reasons(tmp_path / "b", "sharegpt", rows, whole_words=True) == expected | {agreement: 1}

    def test_a_prompt_has_one_place(self, tmp_path: Path) -> None:
        """Also in another case, spacing, Unicode form, split into fields, with another answer or source."""
        save_sources(tmp_path, 30)
        text = f"Explain the ﬁrst law: {number_words(77)}"
        same = [
            dolly(1, instruction=text),
            dolly(2, instruction=text.upper()),
            dolly(3, instruction=f"  {text} ".replace(" ", "\t ")),
            dolly(4, instruction=text.replace("ﬁ", "fi")),
            dolly(5, instruction="Explain the", context=text.removeprefix("Explain the ")),
        ]
        (tmp_path / "dolly.jsonl").write_text(lines([*same, *map(dolly, range(50, 60))]))
        laion = {"prompt": text, "response": number_words(9), "source": "unified_chip2"}
        (tmp_path / "gpt4all.jsonl").write_text(lines([laion]))
        given = {name: tmp_path / f"{name}.jsonl" for name in ("dolly", "gpt4all")}
        summary, splits = build(tmp_path / "out", given, SplitSizes(5, 3, 3))
        assert sum(of.get("prompt of another row", 0) for of in summary.dropped.values()) == 5
        prompts = [digest(read_prompt(row)) for rows in splits.values() for row in rows]
        assert len(set(prompts)) == len(prompts) == 11


class TestFiles:
    def test_a_broken_list_is_one_clear_line(self, tmp_path: Path) -> None:
        file = tmp_path / "half.json"
        file.write_text(json.dumps([dolly(i) for i in range(5)])[:-40])
        with pytest.raises(BlendError, match=r"half\.json: broken JSON list, perhaps half a download"):
            build(tmp_path / "out", {"dolly": file})
        (tmp_path / "no.parquet").write_text("no")
        with pytest.raises(BlendError, match=r"no\.parquet: not a Parquet file"):
            build(tmp_path / "out", {"dolly": tmp_path / "no.parquet"})
        (tmp_path / "rows.csv").write_text("a\n1\n")
        with pytest.raises(BlendError, match=r"rows\.csv: expected \.jsonl, \.json or \.parquet"):
            build(tmp_path / "out", {"dolly": tmp_path / "rows.csv"})

    def test_lists_lines_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        rows = [dolly(i) for i in range(10)]
        texts = {"list": json.dumps(rows), "marked": "\ufeff" + json.dumps(rows), "lines": lines(rows)}
        found = []
        for name, text in texts.items():
            (tmp_path / f"{name}.json").write_text(text)
            found.append(build(tmp_path / name, {"dolly": tmp_path / f"{name}.json"}, SplitSizes(8, 1, 1))[1])
        assert found[0] == found[1] == found[2]

    def test_memory_is_that_of_the_splits(self, tmp_path: Path) -> None:
        """Of a JSON list of 30 MB, 20 rows are taken."""
        file = tmp_path / "dolly.json"
        with file.open("w") as target:
            target.write("[")
            for i in range(3000):
                target.write(("," if i else "") + json.dumps(dolly(i, extra="x" * 10_000)))
            target.write("]")
        build(tmp_path / "first", {"dolly": file}, SplitSizes(10, 5, 5))  # what is imported once
        tracemalloc.start()
        build(tmp_path / "second", {"dolly": file}, SplitSizes(10, 5, 5))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8e6

"""Training rows and pairs on disk: what was stored comes back, one record at a time, and memory stays flat."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs.training import PairSampling
from llm_blender_ray.pipelines.train.pairs import TrainingPair, scored_pairs
from llm_blender_ray.pipelines.train.rows import TrainingRow
from llm_blender_ray.pipelines.train.stored import store_pairs, store_rows, stored_pairs, stored_rows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=3).map(tuple)


@st.composite
def training_rows(draw: st.DrawFn) -> TrainingRow:
    given = draw(st.lists(texts, max_size=4).map(tuple))
    return TrainingRow(
        prompt=Prompt(draw(texts), draw(texts), draw(texts), draw(st.none() | messages)),  # type: ignore[arg-type]
        texts=given,
        metrics=tuple(draw(st.dictionaries(texts, st.floats(allow_nan=False), max_size=2)) for _ in given),
        reference=draw(st.none() | texts),
        ranking=draw(st.none() | st.permutations(range(len(given))).map(tuple)),
    )


@settings(max_examples=30)
@given(st.lists(training_rows(), max_size=5), st.lists(training_rows(), max_size=5))
def test_rows_come_back_from_any_number_of_files(
    tmp_path_factory: pytest.TempPathFactory, first: list[TrainingRow], second: list[TrainingRow]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    files = [folder / "1.arrow", folder / "2.arrow"]
    assert [store_rows(rows, str(file)) for rows, file in zip((first, second), files, strict=True)] == [
        len(first),
        len(second),
    ]
    found = stored_rows(files)
    assert list(found) == [found[i] for i in range(len(found))] == [*first, *second]
    with pytest.raises(IndexError):
        found[len(first) + len(second)]


def test_pairs_come_back_from_any_batch(tmp_path: Path) -> None:
    rng = random.Random(0)
    pairs = [
        TrainingPair(i, 0, 1, (rng.random(), -rng.random()), weight=rng.random())
        for i in range(9000)  # three batches
    ]
    store_pairs(iter(pairs), str(tmp_path / "pairs.arrow"))
    found = stored_pairs(tmp_path / "pairs.arrow")
    assert len(found) == len(pairs)
    for i in (0, 4095, 4096, 8999, -1):
        assert found[i] == pairs[i]
    assert list(found) == pairs


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Four times the rows, to store, to sample pairs of and to read, take no more memory at any moment."""

    def rows(count: int) -> Iterator[TrainingRow]:
        for i in range(count):
            given = tuple(f"{i} {letter}" + 200 * letter for letter in "abcd")
            metrics = tuple({"quality": score} for score in (0.1, 0.2, 0.3, 0.4))
            yield TrainingRow(Prompt(str(i), f"Say {i}."), given, metrics, given[0], None)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            store_rows(rows(count), str(tmp_path / f"{count}.arrow"))
            stored = stored_rows([tmp_path / f"{count}.arrow"])
            pairs = scored_pairs(stored, ["quality"], PairSampling(), seed=0)
            assert store_pairs(pairs, str(tmp_path / f"{count}-pairs.arrow")) > 2 * count
            assert stored[count // 2].prompt.id == str(count // 2)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(12_000) < 1.25 * peak(3000)  # which fill batches of rows and of pairs

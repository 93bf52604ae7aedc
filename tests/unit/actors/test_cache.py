"""Comparisons kept in a file: what one process made, another finds; nothing else is ever found."""

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors import cache
from llm_blender_ray.actors.cache import CacheError, ComparisonCache
from llm_blender_ray.actors.records import Matchup, Message, Prompt

PROMPTS = [
    Prompt("1", "ab", "c"),
    Prompt("1", "a", "bc"),
    Prompt("1", messages=(Message(role="user", content="abc"),)),
    Prompt("1", messages=(Message(role="system", content="abc"),)),
]
MATCHUPS = [
    Matchup(prompt, left, right)
    for prompt in PROMPTS
    for left, right in [("x", "y"), ("y", "x"), ("xy", ""), ("", "xy"), ("\ud800", "é")]
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.sqlite"


def test_only_the_same_matchup_of_the_same_scorer_is_found(file: Path) -> None:
    cache = ComparisonCache(file, "scorer")
    for number, matchup in enumerate(MATCHUPS):
        before = cache.get(MATCHUPS)
        assert before == {i: float(i) for i in range(number)}
        cache.put([(matchup, float(number))])
    assert ComparisonCache(file, "another").get(MATCHUPS) == {}


def test_a_rows_id_makes_no_difference(file: Path) -> None:
    ComparisonCache(file, "s").put([(Matchup(Prompt("one", "q"), "a", "b"), 0.5)])
    again = [Matchup(Prompt("two", "q"), "a", "b")] * 2
    assert ComparisonCache(file, "s").get(again) == {0: 0.5, 1: 0.5}


def test_a_flipped_bit_gives_no_other_score(file: Path) -> None:
    """Every 17th bit of the file: what is found is what was kept, or the file is refused."""
    ComparisonCache(file, "s").put([(matchup, i / 7) for i, matchup in enumerate(MATCHUPS)])
    expected = {i: i / 7 for i in range(len(MATCHUPS))}
    whole, missing, refused = file.read_bytes(), 0, 0
    used = [at for at, byte in enumerate(whole) if byte]
    for bit in range(0, 8 * len(used), 17):
        data = bytearray(whole)
        data[used[bit // 8]] ^= 1 << bit % 8
        for beside in file.parent.iterdir():
            beside.unlink()
        file.write_bytes(data)
        try:
            found = ComparisonCache(file, "s").get(MATCHUPS)
        except CacheError:
            refused += 1
            continue
        assert found.items() <= expected.items()
        missing += len(found) < len(expected)
    assert missing and refused


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=1500, unique=True))
def test_scores_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    cache = ComparisonCache(tmp_path_factory.mktemp("cache") / "cache.sqlite", "s")
    matchups = [Matchup(Prompt("", "q"), str(i), "") for i in range(len(scores))]
    cache.put(zip(matchups, scores, strict=True))
    assert cache.get(matchups) == dict(enumerate(scores))


def _write(file: Path, name: str) -> None:
    cache = ComparisonCache(file, name)
    for i in range(50):
        cache.put([(Matchup(Prompt("", "q"), name, str(i)), float(i))])


def test_processes_write_at_the_same_time(file: Path) -> None:
    names = ["a", "b", "c"]
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(file, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    for name in names:
        found = ComparisonCache(file, name).get([Matchup(Prompt("", "q"), name, str(i)) for i in range(50)])
        assert found == {i: float(i) for i in range(50)}


def test_a_file_that_another_process_opens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite refuses WAL mode at once while another connection reads."""
    monkeypatch.setattr(cache, "WAIT_S", 0)
    ComparisonCache(file, "s").put([(MATCHUPS[0], 0.5)])
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN")
        other.execute("SELECT * FROM sealed_comparisons").fetchone()
        assert ComparisonCache(file, "s").get([MATCHUPS[0]]) == {0: 0.5}


def test_a_file_that_is_no_cache_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("something else, long enough to be taken for a database's header" * 20)
    with pytest.raises(CacheError, match="cache: ") as caught:
        ComparisonCache(tmp_path / "cache", "s")
    assert "\n" not in str(caught.value)
    with pytest.raises(CacheError):
        ComparisonCache(tmp_path / "cache" / "below a file", "s")

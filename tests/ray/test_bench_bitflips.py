"""What the benchmark of flipped bits counts."""

from pathlib import Path

import pytest

from llm_blender_ray.pipelines.bench.bitflips import Session, draw_flips, finished_run, flip, measure_bitflips
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore


def test_bits_are_drawn_over_all_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file, size in zip(files, (1, 0, 3), strict=True):
        file.write_bytes(bytes(size))
    found = draw_flips(files, 500, seed=1)
    assert found == draw_flips(files, 500, seed=1) != draw_flips(files, 500, seed=2)
    assert {(file.name, bit) for file, bit in found} == {("a", i) for i in range(8)} | {("c", i) for i in range(24)}
    flip(files[2], 9)
    assert files[2].read_bytes() == b"\0\2\0"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_no_flip_is_silent_and_one_that_nothing_checks_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finished_run(tmp_path)
    report = measure_bitflips(config, flips=40, seed=0, left_in=1)
    assert (report["silent"], report["unnoticed"], report["output_after"]) == (0, 0, "the same")
    assert sum(report["by_part"].values()) == 40

    session = Session(Path(config.output or ""))
    file = next(iter(session.work.glob("results/generate-echo-3-*/*.parquet")))
    stored = file.parent.name, file.stem
    before = session.store.result(*stored)  # alone: the flip that was left in may be in rows that no result needs
    monkeypatch.setattr("llm_blender_ray.pipelines.bulk.checkpoints.opened", lambda data, name: data)
    at = file.read_bytes().index(b"echo-3")
    flip(file, 8 * at)
    assert session.store.result(*stored) != before
    assert not session.noticed()
    assert CheckpointStore(str(session.work)).damaged() == []

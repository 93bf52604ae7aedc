"""Both ways to batch, on a small model with random weights."""

from pathlib import Path

import pytest
from tiny_models import save_plain_model

from llm_blender_ray.pipelines.bench import decoding
from llm_blender_ray.pipelines.bench.decoding import measure


def test_both_ways_give_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_QUESTIONS", ("a fox", "numbers"))  # it has room for 128 tokens
    monkeypatch.setattr(decoding, "_LONG", decoding._LONG.model_copy(update={"max_tokens": 40}))
    monkeypatch.setattr(decoding, "_LIMITS", (4, 12))
    figures = measure(str(save_plain_model(tmp_path)), device_name="cpu", requests=5)
    assert figures["equal_answers"] == figures["requests"] == 5
    assert 5 <= figures["tokens"] <= 3 * 4 + 2 * 12
    for way in ("batch_after_batch", "continuous"):
        assert set(figures[way]) == {"mixed_tokens_per_s", "mixed_cpu_s", "short_first_piece_s", "short_answer_s"}
        assert 0 < figures[way]["short_first_piece_s"] <= figures[way]["short_answer_s"]

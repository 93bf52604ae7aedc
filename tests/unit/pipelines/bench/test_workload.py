"""What the original is measured on and how: rows, rankers in its layout, the worker's own logic.

The original itself runs in `make bench-original` alone, which compares its logits with ours.
"""

import io
import json
import re
from pathlib import Path
from statistics import mean, pstdev

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedTokenizerFast

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.pairrm.checkpoints import load_pairrm
from llm_blender_ray.pipelines.bench import original
from llm_blender_ray.pipelines.bench.original import ComparedRow, Measured, calibrate, one_pair_each, serve_original
from llm_blender_ray.pipelines.bench.workload import (
    Lengths,
    WorkloadShape,
    as_original,
    copy_ranker,
    make_ranker,
    make_rows,
    take_rows,
)

SMALL = WorkloadShape(layers=2, hidden=32, heads=2, intermediate=64)


def encoded(tokenizer, row):
    prompt, candidates = row
    source = tokenizer.encode_source("".join(prompt.texts()))
    return source, [tokenizer.encode_candidate(candidate.text, len(source)) for candidate in candidates]


def logits_of_all_pairs(network, tokenizer, row):
    source, candidates = encoded(tokenizer, row)
    n = len(candidates)
    logits = torch.zeros(n, n)
    with torch.inference_mode():
        for i in range(n):
            for j in set(range(n)) - {i}:
                ids_BL = torch.tensor([tokenizer.join(source, candidates[i], candidates[j])])
                logits[i, j] = network.logits(ids_BL, torch.ones_like(ids_BL))
    return logits


def margins(logits):
    i, j = torch.triu_indices(*logits.shape, offset=1)
    return (logits - logits.T)[i, j] / 2


def test_made_rows_follow_the_seed():
    assert make_rows(3, seed=1) == make_rows(3, seed=1)
    assert make_rows(3, seed=1) != make_rows(3, seed=2)
    assert all(len(candidates) == 11 for _, candidates in make_rows(3))


def test_pairs_of_made_rows_are_as_long_as_real_ones_and_as_spread(tmp_path):
    rows = make_rows(200)
    folder = make_ranker(rows, tmp_path, shape=WorkloadShape(layers=1, hidden=32, heads=2, intermediate=64))
    _, tokenizer = load_pairrm(str(folder))
    lengths = []
    for source, candidates in (encoded(tokenizer, row) for row in rows):
        lengths += [len(source) + len(a) + len(b) for a in candidates for b in candidates if a is not b]
    assert 220 < mean(lengths) < 240  # 236 on 805 real rows
    assert 55 < pstdev(lengths) < 75  # 66 there


def test_a_made_ranker_follows_the_seed(tmp_path):
    rows = make_rows(2)
    weights = [
        load_file(make_ranker(rows, tmp_path / str(i), seed=seed, shape=SMALL) / "model.safetensors")
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_margins_of_the_made_ranker_stand_out_of_bfloat16_noise(tmp_path):
    """Shown on one that is narrower than the default and as deep: rounding errors add up over layers."""
    shape = WorkloadShape(hidden=128, heads=2, intermediate=512)
    network, tokenizer = load_pairrm(str(make_ranker(make_rows(20), tmp_path, shape=shape)))
    rows = make_rows(3, candidates=4, lengths=Lengths(source_median=10, candidate_median=40))
    exact = torch.cat([margins(logits_of_all_pairs(network, tokenizer, row)) for row in rows])
    network.to(torch.bfloat16)
    rounded = torch.cat([margins(logits_of_all_pairs(network, tokenizer, row)) for row in rows])
    assert exact.square().mean().sqrt() > 4 * (rounded - exact).square().mean().sqrt()
    assert 0.3 < exact.square().mean().sqrt() < 3


@pytest.mark.parametrize(
    "model", ["tests/golden/checkpoints/PairRM", "tests/golden/checkpoints/PairRM-hf", "configs/miniature/ranker"]
)
def test_a_copied_ranker_answers_as_the_one_it_is_a_copy_of(tmp_path, model):
    row = make_rows(1, candidates=3, lengths=Lengths(candidate_median=20))[0]
    given = logits_of_all_pairs(*load_pairrm(str(ROOT / model)), row)
    copied = logits_of_all_pairs(*load_pairrm(str(copy_ranker(str(ROOT / model), tmp_path))), row)
    torch.testing.assert_close(copied, given, rtol=0, atol=1e-6)


def test_the_backbone_is_what_the_original_loads(tmp_path):
    """It takes the tokenizer as transformers gives it, adds the markers, and resizes the encoder to its length."""
    row = make_rows(1)[0]
    folder = make_ranker([row], tmp_path, shape=SMALL)
    config = json.loads((folder / "config.json").read_text())
    assert config["ranker_type"] == "pairranker"
    assert config["model_type"].startswith("deberta")
    backbone = folder / config["model_name"]
    assert json.loads((backbone / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"  # transformers 5's own default is unknown to 4
    )
    theirs = PreTrainedTokenizerFast.from_pretrained(backbone)
    assert theirs.add_tokens(["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]) == 0
    assert len(theirs) == AutoModel.from_pretrained(backbone).get_input_embeddings().num_embeddings
    ours = load_pairrm(str(folder))[1]
    source = as_original([row])[0]["source"]
    assert theirs(f"<|source|>{source}", truncation=True, max_length=128)["input_ids"] == ours.encode_source(source)


def write_rows(path, *candidate_texts, **more):
    rows = [
        {"id": str(i), "instruction": f"Task {i}.", "candidates": [{"text": text} for text in texts], **more}
        for i, texts in enumerate(candidate_texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_only_rows_that_the_original_can_rank_are_taken(tmp_path):
    uri = write_rows(
        tmp_path / "rows.jsonl",
        ["alone"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", None],
        ["a", "with <|candidate1|> in it"],
        ["", "b"],
    )
    assert [prompt.id for prompt, _ in take_rows(uri, 10)] == ["1", "5"]


def test_rows_are_drawn_by_the_seed_in_the_order_of_the_file(tmp_path):
    uri = write_rows(tmp_path / "rows.jsonl", *[["a", "b"]] * 50)
    drawn = [int(prompt.id) for prompt, _ in take_rows(uri, 10, seed=1)]
    assert len(drawn) == 10
    assert drawn == sorted(drawn)
    assert drawn == [int(prompt.id) for prompt, _ in take_rows(uri, 10, seed=1)]
    assert drawn != [int(prompt.id) for prompt, _ in take_rows(uri, 10, seed=2)]


def test_a_file_without_a_row_to_compare_is_told(tmp_path):
    with pytest.raises(BlendError, match="no row with two or more candidates"):
        take_rows(write_rows(tmp_path / "rows.jsonl", ["alone"]), 10)


def rows_for_original(count: int, candidates: int = 3) -> list[ComparedRow]:
    return [{"source": f"{i}", "candidates": [f"{i}.{n}" for n in range(candidates)]} for i in range(count)]


def test_one_pair_each_takes_every_candidate():
    pairs = one_pair_each(rows_for_original(4))
    assert [pair["candidates"] for pair in pairs] == [
        ["0.0", "0.1"],
        ["1.1", "1.2"],
        ["2.0", "2.1"],
        ["3.1", "3.2"],
    ]


def test_calibration_takes_the_size_with_the_best_time(capsys):
    calls = []

    def rank(rows, batch_size):
        calls.append(batch_size)
        assert len(rows) == 64 or len(calls) == 1  # every size has the same rows, once warm
        seconds_per_row = {1: 3, 2: 2, 4: 1.2, 8: 1, 16: 1.1}.get(batch_size, 2)
        busy = 5 if calls.count(batch_size) == 1 else 1  # the first time something else ran too
        seconds = busy * seconds_per_row * len(rows)
        return Measured(seconds, seconds, seconds, 2 * len(rows), 100, 100, [], [])

    result = calibrate(rank, rows_for_original(64))
    assert result["batch_size"] == 8
    assert result["forwards_per_s"][8] == pytest.approx(2)
    assert list(result["forwards_per_s"]) == [1, 2, 4, 8, 16, 32, 64]
    assert "batch size 16" in capsys.readouterr().err


def test_calibration_leaves_out_sizes_that_the_rows_cannot_fill():
    def rank(rows, batch_size):
        return Measured(1, 1, 1, 2 * len(rows), 100, 100, [], [])

    assert list(calibrate(rank, rows_for_original(5))["forwards_per_s"]) == [1, 2, 4]


def test_the_worker_tells_what_went_wrong_and_goes_on(capsys):
    answers = io.StringIO()
    serve_original(['{"do": "rank", "rows": [], "batch_size": 1}\n', "no JSON\n", '{"do": "load"}\n'], answers)
    told = [json.loads(line)["error"] for line in answers.getvalue().splitlines()]
    assert [error.partition(":")[0] for error in told] == ["RuntimeError", "JSONDecodeError", "KeyError"]


def test_both_sides_have_the_same_torch():
    def torch_of(file: Path) -> list[str]:
        return re.findall(r"^torch==(\S+)", file.read_text(), re.MULTILINE)

    requirements = Path(original.__file__).parent / "requirements-original.txt"
    assert torch_of(requirements) == torch_of(ROOT / "constraints.txt") != []

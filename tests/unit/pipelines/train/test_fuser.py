"""Fuser training: what it reads of a row, that a short real run learns and resumes, and what bad input gets."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from training_rows import WORDS, short, write, write_once
from transformers import AutoModelForSeq2SeqLM

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.actors.tokens import LiteralTokenizer, load_tokenizer_backend
from llm_blender_ray.configs import schema
from llm_blender_ray.configs.training import FuserTraining, GenerationSettings
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder, save_blank_seq2seq
from llm_blender_ray.pipelines.quality.metrics import METRICS
from llm_blender_ray.pipelines.train.examples import IGNORED
from llm_blender_ray.pipelines.train.failures import FailedTrainingError
from llm_blender_ray.pipelines.train.fuser import FusionDataset, best_first, run_fuser_training, token_is_right
from llm_blender_ray.pipelines.train.rows import read_training_rows


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder-decoder, as `from_pretrained` loads it."""
    folder = tmp_path_factory.mktemp("blank")
    save_blank_seq2seq(folder, seed=0)
    return folder


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose reference is the first candidate."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = rng.sample(WORDS, 3)
        candidates = [{"model": f"m{i}", "text": f"1) {word}"} for i, word in enumerate(words)]
        rows.append({"instruction": "Choose:", "output": f"1) {words[0]}", "candidates": candidates})
    return rows


def settings(folder: Path, model: Path, **changes: Any) -> FuserTraining:
    base = {
        "model": str(model),
        **write_once(folder, make_rows),
        "output": str(folder / "fuser"),
        "max_length": 128,
        "candidate_max_length": 16,
        "output_max_length": 16,
        "optimization": short(**changes.pop("optimization", {})),
    }
    return FuserTraining(**(base | changes))


def test_candidates_come_by_ranking_then_metric_then_as_given(tmp_path: Path) -> None:
    candidates = [{"text": text, "scores": {"q": q}} for text, q in (("a", 0.1), ("b", 0.9), ("c", 0.5))]
    candidates.insert(1, {"error": "no answer"})
    row = {"instruction": "x", "output": "y", "candidates": candidates}
    plain, ranked = read_training_rows(write(tmp_path / "rows.jsonl", [row, row | {"ranking": [3, 0, 2]}]))
    assert best_first(plain, None) == ["a", "b", "c"]
    assert best_first(plain, "q") == ["b", "c", "a"]
    assert best_first(ranked, "q") == ["c", "a", "b"]


def test_an_example_is_what_the_fuser_reads_and_the_reference_with_its_end(blank: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, blank, top_k=2)
    tokenizer = LiteralTokenizer(load_tokenizer_backend(blank))
    rows = read_training_rows(config.train, 1)
    example = FusionDataset(rows, tokenizer, tokenizer.id_of("</s>"), config)[0]
    fuser = GenFuserModel(schema.GenFuser(model=str(blank), max_length=128, candidate_max_length=16, device="cpu"))
    assert example["input_ids"] == fuser.template.input_ids("Choose:", "", rows[0].texts[:2])
    assert example["labels"] == [*tokenizer.encode(rows[0].texts[0]), tokenizer.id_of("</s>")]
    short = FusionDataset(
        rows, tokenizer, tokenizer.id_of("</s>"), config.model_copy(update={"output_max_length": 2})
    )
    assert short[0]["labels"] == [example["labels"][0], tokenizer.id_of("</s>")]


def test_accuracy_counts_reference_tokens_only() -> None:
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    labels = torch.tensor([[1, 1, IGNORED]])
    assert token_is_right(logits, labels).tolist() == [[1, 0, -1]]
    assert token_is_right((logits, "encoder states"), labels).tolist() == [[1, 0, -1]]


def test_training_learns_saves_and_resumes_to_the_same_weights(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, blank, dtype="bfloat16")
    measured = run_fuser_training(config)
    assert measured["eval_accuracy"] > 0.5  # the list's form at least
    assert "fuser: step 40/40" in capsys.readouterr().err

    output = Path(config.output)
    state = json.loads((output / "checkpoints" / "checkpoint-40" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert losses[-1] < 0.75 * losses[0]

    fuser = GenFuserModel(schema.GenFuser(model=str(output), device="cpu", num_beams=1, max_new_tokens=8))
    assert len(fuser.fuse_all([(Prompt("1", "Choose:"), ["1) acorn", "1) badge"])])) == 1
    weights = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (output / "tokenizer.json").read_bytes() == (blank / "tokenizer.json").read_bytes()
    (result,) = ModelCard.load(output / "README.md").data.eval_results
    assert result.metric_value == round(measured["eval_accuracy"], 4)

    stopped = tmp_path / "stopped"
    shutil.copytree(output / "checkpoints", stopped / "checkpoints")
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-40")
    run_fuser_training(settings(tmp_path, blank, dtype="bfloat16", output=str(stopped)))
    assert "step 10/40" not in capsys.readouterr().err  # it went on from step 20
    resumed = load_file(stopped / "model.safetensors")
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights.items())


def test_answers_are_written_and_measured_while_training(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics of greedy answers at each evaluation and of the saved model, which `blend fuse` writes too."""
    generation = GenerationSettings(metrics=("exact", "rouge_l"), rows=5)
    steps = {"max_steps": 20, "evaluate_every": 10, "save_every": 10}
    config = settings(tmp_path, blank, generation=generation, label_smoothing=0.1, optimization=steps)
    measured = run_fuser_training(config)
    told = capsys.readouterr()
    assert len(re.findall(r"step \d0/20  written for 5 held-out rows: exact [01]\.\d+, rouge_l \d", told.err)) >= 2
    assert f"generated rouge_l {measured['generated_rouge_l']:.3f}" in told.out
    rows = read_training_rows(str(config.heldout), 5)
    fuser = GenFuserModel(
        schema.GenFuser(model=config.output, device="cpu", num_beams=1, max_length=128, candidate_max_length=16)
    )
    answers = fuser.fuse_all([(row.prompt, row.texts) for row in rows], max_new_tokens=16)
    scores = METRICS.get("rouge_l")().score([[row.reference or ""] for row in rows], answers)
    assert measured["generated_rouge_l"] == pytest.approx(sum(scores) / 5)


def test_label_smoothing_is_of_the_cross_entropy(blank: Path, tmp_path: Path) -> None:
    """The first logged loss is torch's smoothed cross-entropy of the untrained model."""
    few = {"max_steps": 1, "log_every": 1, "save_every": 1, "batch_size": 6}
    train = write(tmp_path / "few.jsonl", make_rows(6, 1))
    config = settings(tmp_path, blank, train=train, heldout=None, label_smoothing=0.3, optimization=few)
    run_fuser_training(config)
    state = json.loads((tmp_path / "fuser" / "checkpoints" / "checkpoint-1" / "trainer_state.json").read_text())
    (logged,) = [line["loss"] for line in state["log_history"] if "loss" in line]

    model = AutoModelForSeq2SeqLM.from_pretrained(blank).eval()
    tokenizer = LiteralTokenizer(load_tokenizer_backend(blank))
    dataset = FusionDataset(read_training_rows(train), tokenizer, tokenizer.id_of("</s>"), config)
    logits, labels = [], []
    for example in dataset:
        ids, expected = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits.append(model(input_ids=ids, labels=expected).logits[0])
        labels.append(expected[0])
    smoothed = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels), label_smoothing=0.3)
    assert logged == pytest.approx(smoothed.item(), rel=1e-3)


def test_a_fuser_without_text_and_a_leak_are_told(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reference of nothing teaches to write nothing; with `fail` there is no result."""
    rows = [row | {"output": " "} for row in make_rows(12, 1)]
    path = write(tmp_path / "rows.jsonl", rows)
    changes: dict[str, Any] = {"train": path, "heldout": path, "heldout_limit": 4}
    steps = {"max_steps": 20, "learning_rate": 3e-3}
    run_fuser_training(settings(tmp_path, blank, **changes, optimization=steps))
    told = capsys.readouterr().err
    assert "fuser: warning: empty output: 4 of 4 answers" in told
    assert told.count("fuser: warning: leak: the prompts of 4 of 4 held-out rows") == 2
    with pytest.raises(FailedTrainingError, match="fuser: failed: leak"):
        run_fuser_training(settings(tmp_path, blank, **changes, output=str(tmp_path / "other"), on_failure="fail"))
    assert not (tmp_path / "other" / "config.json").exists()


def test_rows_and_models_that_cannot_be_used_are_one_clear_line(blank: Path, tmp_path: Path) -> None:
    row = make_rows(1, 0)[0]
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("output is missing", {k: v for k, v in row.items() if k != "output"}, {}),
        ("no candidate with a text", row | {"candidates": []}, {}),
        (r"lacks scores\.bartscore", row, {"metric": "bartscore"}),
        ("leaves out candidates", row | {"ranking": [0]}, {}),
        ("has no <extra_id_20>", row, {"top_k": 21}),
    ]
    for number, (message, bad, changes) in enumerate(cases):
        path = write(tmp_path / f"{number}.jsonl", [bad])
        with pytest.raises(BlendError, match=message) as caught:
            run_fuser_training(settings(tmp_path, blank, train=path, heldout=None, **changes))
        assert "\n" not in str(caught.value)
    encoder = tmp_path / "encoder"
    save_blank_encoder(encoder, seed=0)
    for model in (tmp_path / "nowhere", encoder):
        with pytest.raises(ModelLoadError, match=model.name):
            run_fuser_training(settings(tmp_path, model))

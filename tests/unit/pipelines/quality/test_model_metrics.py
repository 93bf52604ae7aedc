"""Metrics with models: against bert-score, BARTScore's own code and plain transformers, on tiny checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from paths import GOLDEN
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.quality.metrics import Metric, metric_label, read_metric

CHECKPOINTS = GOLDEN / "checkpoints"
CASES: dict[str, Any] = json.loads((GOLDEN / "model_metrics.json").read_text(encoding="utf-8"))
REFERENCES = [[one] for one in CASES["references"]]
TEXTS = CASES["texts"]


def bertscore(options: str) -> Metric:
    return read_metric(f"bertscore:model={CHECKPOINTS / 'backbone'},{options}")


@pytest.mark.parametrize("layer", ["1", "3"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_bertscore_is_that_of_the_package(layer: str, batch_tokens: int) -> None:
    for measure, expected in CASES["bertscore"][layer].items():
        metric = bertscore(f"layer={layer},measure={measure},batch_tokens={batch_tokens}")
        assert metric.checked_score(REFERENCES, TEXTS) == pytest.approx(expected, abs=1e-5)


def test_bertscore_of_an_empty_text_is_0_and_a_baseline_rescales() -> None:
    metric = bertscore("layer=2,baseline=0.5")
    assert metric.checked_score([["a b"], [""], ["a b"]], ["", "a b", "a b"]) == pytest.approx([-1, -1, 1])


def test_bertscore_needs_a_layer_for_a_model_without_a_usual_one() -> None:
    with pytest.raises(ModelLoadError, match="set `layer`, 1 to 3: there is no usual one for this model"):
        bertscore("measure=f1").load()
    with pytest.raises(ModelLoadError, match="layer 4: it has 3 layers"):
        bertscore("layer=4").load()


def test_several_references_count_by_the_best() -> None:
    metric = bertscore("layer=2")
    one, other, both = metric.score([["a cat"], ["the mat"], ["a cat", "the mat"]], ["the mat"] * 3)
    assert both == max(one, other)


@pytest.mark.parametrize("direction", ["recall", "precision"])
def test_bartscore_is_that_of_its_authors_code(direction: str) -> None:
    metric = read_metric(f"bartscore:model={CHECKPOINTS / 'gen_fuser'},direction={direction}")
    assert metric.checked_score(REFERENCES, TEXTS) == pytest.approx(CASES["bartscore"][direction], abs=1e-5)


def test_bartscore_of_both_directions_is_their_mean() -> None:
    metric = read_metric(f"bartscore:model={CHECKPOINTS / 'gen_fuser'},direction=f1,batch_tokens=1")
    both = zip(*CASES["bartscore"].values(), strict=True)
    assert metric.checked_score(REFERENCES, TEXTS) == pytest.approx([sum(pair) / 2 for pair in both], abs=1e-5)


def test_bleurt_is_the_classifier_s_logit_of_reference_and_text(tmp_path: Path) -> None:
    tiny_models.save_classifier(tmp_path, "bert")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = [
            model(**tokenizer(reference, text, return_tensors="pt")).logits.item()
            for (reference,), text in zip(REFERENCES, TEXTS, strict=True)
        ]
    metric = read_metric(f"bleurt:model={tmp_path}")
    assert metric.checked_score(REFERENCES, TEXTS) == pytest.approx(expected, abs=1e-5)
    long = "apples and pears " * 100
    assert len(metric.checked_score([[long], ["a"]], [long, "[SEP] [CLS]"])) == 2  # cut to the model's positions


def test_a_classifier_of_several_labels_is_no_metric(tmp_path: Path) -> None:
    tiny_models.save_classifier(tmp_path, "bert", labels=3)
    with pytest.raises(ModelLoadError, match="classifies into 3 labels; a metric has one"):
        read_metric(f"bleurt:model={tmp_path}").load()


def test_byte_level_words_are_those_within_a_text(tmp_path: Path) -> None:
    from llm_blender_ray.actors.metrics.text_encoder import _lacks_prefix_space

    backend = tiny_models.make_tokenizer().backend_tokenizer
    assert _lacks_prefix_space(backend.to_str())
    assert not _lacks_prefix_space(tiny_models.make_bert_tokenizer().backend_tokenizer.to_str())


def test_a_metric_with_a_model_needs_one_and_keeps_it_in_its_key() -> None:
    with pytest.raises(ConfigError, match="bertscore needs an option: bertscore:model="):
        read_metric("bertscore")
    metric = bertscore("layer=2,replicas=3,num_cpus=2,device=cpu,batch_tokens=9")
    assert metric.key == f'bertscore:model="{CHECKPOINTS / "backbone"}",layer=2'
    assert (metric.replicas.max, metric.num_cpus, metric.stage) == (3, 2, "score")
    assert read_metric(metric.key).key == metric.key
    assert metric_label(metric.key) == "BERTScore (backbone,layer=2)"

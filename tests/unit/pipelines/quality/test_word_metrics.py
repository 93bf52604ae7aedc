"""Metrics of common words and characters, against the packages that define them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN
from sacrebleu.metrics import BLEU, CHRF

from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.quality.metrics import read_metric
from llm_blender_ray.pipelines.quality.word_metrics import ChrF, RougeL, RougeLsum, SentenceBleu

ROUGE = json.loads((GOLDEN / "rouge.json").read_text(encoding="utf-8"))
NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l", "rougeLsum": "rouge_lsum"}
texts = st.text(st.sampled_from("ab é.,\n巴"), max_size=40)


@pytest.mark.parametrize("case", ROUGE, ids=lambda case: case["text"][:20])
def test_rouge_is_to_the_digit_that_of_rouge_score(case: dict[str, Any]) -> None:
    for options, found in (("tokenizer=ascii", "f1"), ("tokenizer=ascii,stemmer=true", "f1_stemmed")):
        scores = {
            theirs: read_metric(f"{ours}:{options}").score([[case["reference"]]], [case["text"]])
            for theirs, ours in NAMES.items()
        }
        assert scores == {name: [value] for name, value in case[found].items()}


@given(texts, texts)
def test_bleu_and_chrf_are_sacrebleu_s(reference: str, text: str) -> None:
    ascii_only = (reference + text).isascii()
    if ascii_only:  # others are split into words first
        assert (
            SentenceBleu().compare(reference, text)
            == BLEU(effective_order=True).sentence_score(text, [reference]).score / 100
        )
    assert ChrF().compare(reference, text) == CHRF().sentence_score(text, [reference]).score / 100
    plus = CHRF(word_order=2, char_order=4).sentence_score(text, [reference]).score / 100
    assert ChrF(word_order=2, char_order=4).compare(reference, text) == plus


@given(texts, texts)
def test_one_line_is_a_summary_of_one_sentence(reference: str, text: str) -> None:
    reference, text = (one.replace("\n", " ") for one in (reference, text))
    assert RougeLsum().compare(reference, text) <= RougeL().compare(reference, text) + 1e-12


def test_a_mistake_in_an_option_of_a_metric_is_one_line() -> None:
    with pytest.raises(ConfigError, match="chrf: beta: expected greater than or equal to 1, got 0"):
        read_metric("chrf:beta=0")
    with pytest.raises(ConfigError, match="chrf has no option 'order', it takes char_order, word_order, beta"):
        read_metric("chrf:order=2")

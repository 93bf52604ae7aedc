"""Words in any script: what ROUGE and BLEU compare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from llm_blender_ray.pipelines.quality.evaluation import bleu, rouge_l
from llm_blender_ray.pipelines.quality.segmentation import spaced, words


@given(st.text(alphabet=st.characters(max_codepoint=126), max_size=80).filter(lambda text: "_" not in text))
def test_english_words_are_those_of_rouge_score(text: str) -> None:
    assert words(text) == tokenize(text, None)
    assert spaced(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("巴黎是法国的首都。", list("巴黎是法国的首都")),
        ("コーヒーを2杯", [*"コーヒーを", "2", "杯"]),
        ("Париж - столица", ["париж", "столица"]),
        ("باريس هي عاصمة", ["باريس", "هي", "عاصمة"]),
        ("파리는 수도", ["파리는", "수도"]),
        ("naïve café_2", ["naïve", "café", "2"]),
        ("GPT-4的答案", ["gpt", "4", *"的答案"]),
        ("पेरिस राजधानी", ["पेरिस", "राजधानी"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("?!。", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


SENTENCES = {
    "zh": ("法国的首都是巴黎，位于塞纳河畔。", "法国首都是巴黎，位于塞纳河畔。", "我昨天买了三个苹果"),
    "ja": ("フランスの首都はパリです。", "フランスの首都はパリだ。", "昨日りんごを買った"),
    "th": ("เมืองหลวงของฝรั่งเศสคือปารีส", "เมืองหลวงของฝรั่งเศสคือกรุงปารีส", "xyz"),
    "ru": ("Столица Франции - это город Париж.", "Столица Франции - город Париж.", "Вчера купил яблоки"),
    "ar": ("عاصمة فرنسا هي مدينة باريس", "عاصمة فرنسا هي باريس", "اشتريت تفاحا أمس"),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_metrics_tell_a_near_answer_from_nonsense(language: str) -> None:
    reference, near, nonsense = SENTENCES[language]
    for metric in (rouge_l, bleu):
        assert metric(reference, reference) == pytest.approx(1)
        assert metric(reference, near) > 0.3 > metric(reference, nonsense) + 0.1


@given(st.text(alphabet="abc dE.,", max_size=40), st.text(alphabet="abc dE.,", max_size=40))
def test_english_rouge_is_that_of_rouge_score(reference: str, text: str) -> None:
    assert rouge_l(reference, text) == RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure

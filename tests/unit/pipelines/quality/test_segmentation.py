"""Words in any script: what ROUGE and BLEU compare."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.quality.segmentation import ascii_words, spaced, words
from llm_blender_ray.pipelines.quality.word_metrics import RougeL, SentenceBleu


@given(st.text(alphabet=st.characters(max_codepoint=126), max_size=80).filter(lambda text: "_" not in text))
def test_words_of_ascii_text_are_runs_of_letters_and_digits(text: str) -> None:
    assert words(text) == ascii_words(text) == re.sub("[^a-z0-9]", " ", text.lower()).split()
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
    for metric in (RougeL(), SentenceBleu()):
        assert metric.compare(reference, reference) == pytest.approx(1)
        assert metric.compare(reference, near) > 0.3 > metric.compare(reference, nonsense) + 0.1

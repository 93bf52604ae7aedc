"""Metrics against figures worked out by hand, and against the library that defined them."""

import json
import math
import re
from typing import Any

import pytest
from documentation import python_blocks
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN, ROOT

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.quality.metrics import (
    METRICS,
    ExactMatch,
    Metric,
    default_metrics,
    metric_class,
    metric_label,
    numbered_parts,
    parts_right,
    read_metric,
)
from llm_blender_ray.pipelines.quality.word_metrics import RougeL, SentenceBleu


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1) Paris 2) fox goat lamp 3) went", ["Paris", "fox goat lamp", "went"]),
        (" 1) Paris\n2)fox ", ["Paris", "fox"]),
        ("1) 2) b", ["", "b"]),
        ("2) b 1) a", None),
        ("1) a 3) b", None),
        ("So: 1) a", None),
        ("f(1) a", None),
        ("", None),
    ],
)
def test_numbered_parts(text, expected):
    assert numbered_parts(text) == expected


@given(st.lists(st.from_regex(r"[a-z]+( [a-z]+)?", fullmatch=True), min_size=1, max_size=12))
def test_numbered_parts_are_found_again(items):
    text = " ".join(f"{i}) {item}" for i, item in enumerate(items, 1))
    assert numbered_parts(text) == items
    assert parts_right(text, text) == 1


def test_metrics():
    exact, bleu, rouge_l = ExactMatch().compare, SentenceBleu().compare, RougeL().compare
    assert parts_right("1) a 2) b 3) c 4) d", "1) a 2) x 3) c") == 0.5
    assert parts_right("1) a", "a") == parts_right("a", "a") == 0
    assert (exact(" a b\n", "a b"), exact("a b", "a B")) == (1, 0)
    assert bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    assert bleu("the cat", "a dog") == 0
    assert rouge_l("a b c d", "a c") == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert bleu("the cat", "") == rouge_l("the cat", "") == 0


def test_several_references_count_by_the_best() -> None:
    scores = RougeL().score([["x", "a b"], ["a"]], ["a b", "b"])
    assert scores == [1, 0]


ROUGE_L = json.loads((GOLDEN / "rouge_l.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ROUGE_L, ids=lambda case: case["text"][:20])
def test_rouge_l_is_to_the_digit_that_of_rouge_score(case: dict[str, Any]) -> None:
    for options, tokens, f1 in (({}, "tokens", "f1"), ({"stemmer": True}, "stems", "f1_stemmed")):
        metric = RougeL(tokenizer="ascii", **options)
        assert metric.tokens(case["text"]) == case[tokens]
        assert metric.compare(case["reference"], case["text"]) == case[f1]
        if (case["reference"] + case["text"]).isascii() and "_" not in case["reference"]:
            assert RougeL(**options).compare(case["reference"], case["text"]) == case[f1]


def test_built_in_metrics_are_registered_by_their_names() -> None:
    assert [metric.key for metric in default_metrics()] == ["parts", "exact", "bleu", "rouge_l"]
    assert all(METRICS.get(name).name == name for name in METRICS.names())
    assert default_metrics()[2] is default_metrics()[2]


def test_a_metric_is_read_from_its_key() -> None:
    metric = RougeL(stemmer=True, tokenizer="ascii")
    assert metric.key == 'rouge_l:tokenizer="ascii",stemmer=true'
    assert read_metric(metric.key) == read_metric("rouge_l:stemmer=true,tokenizer=ascii") == metric
    assert metric_label(read_metric("rouge_l:stemmer=true").key) == "ROUGE-L (stemmer=true)"
    assert metric_label("a score that candidates came with") == "a score that candidates came with"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("rouge", "--metric rouge: unknown metric 'rouge', expected one of parts, exact, bleu, rouge_l"),
        ("bleu:order=2", "--metric bleu:order=2: bleu has no option 'order', it takes none"),
        ("rouge_l:stemmer=porter", "rouge_l: stemmer: expected a valid boolean"),
    ],
)
def test_a_wrong_metric_is_one_line(text: str, mistake: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(mistake)):
        read_metric(text)


class Surprise(Metric):
    """Negative log-likelihood per token: a metric with one bound."""

    name = "surprise"
    label = "surprise"
    higher_is_better = False
    upper_bound = math.inf

    given: tuple[float, ...] = ()

    def score(self, references, texts):
        return list(self.given)


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ([1.0], "metric 'surprise': expected 2 scores, got 1"),
        ([1.0, math.nan], "expected scores from 0 to inf, got nan"),
        ([1.0, -0.5], "expected scores from 0 to inf, got -0.5"),
        ([1.0, math.inf], "got inf"),
    ],
)
def test_scores_are_checked(given: list[float], mistake: str) -> None:
    with pytest.raises(BlendError, match=mistake):
        Surprise(given=given).checked_score([["r"], ["r"]], ["a", "b"])


def test_scores_a_rounding_error_out_of_bounds_are_kept() -> None:
    assert Surprise(given=[-1e-16]).checked_score([["r"]], ["a"]) == [-1e-16]


@pytest.mark.parametrize("found", [object, Surprise, type("Other", (RougeL,), {"name": "other"})])
def test_what_cannot_be_used_as_a_metric_is_refused(monkeypatch: pytest.MonkeyPatch, found: type) -> None:
    monkeypatch.setattr(METRICS, "_added", {"surprise": found})
    wanted = (
        "expected a finite failed_score" if found is Surprise else "expected a subclass of Metric with that name"
    )
    with pytest.raises(BlendError, match=f"metric 'surprise': {wanted}"):
        metric_class("surprise")


def test_a_candidate_without_text_has_the_worst_score() -> None:
    errors = type("Errors", (RougeL,), {"name": "errors", "higher_is_better": False, "upper_bound": 9.0})
    assert (RougeL().score_without_text, errors().score_without_text) == (0, 9)
    assert type("Long", (Surprise,), {"name": "long", "failed_score": 20.0})().score_without_text == 20


def test_the_metric_of_the_documentation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = python_blocks(ROOT / "docs" / "extending.md", "A metric")
    names: dict[str, Any] = {"__name__": "blend_toy"}
    exec(code, names)
    monkeypatch.setattr(METRICS, "_added", {"length_error": names["LengthError"]})
    references, texts = [["abcd", "a b"], ["a"]], ["a", "a" * 99]
    assert read_metric("length_error").checked_score(references, texts) == [2 / 3, 10]
    assert read_metric("length_error:words=true").checked_score(references, texts) == [0, 0]

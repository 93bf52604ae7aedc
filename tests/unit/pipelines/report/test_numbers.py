"""What a report counts, against figures worked out by hand; the order of rows must not matter."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.pipelines.quality.error_kinds import (
    MAX_ERROR_LENGTH,
    MAX_KINDS,
    OTHER_ERRORS,
    ErrorKinds,
    kind_of,
)
from llm_blender_ray.pipelines.quality.evaluation import Quality
from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.report.numbers import EXAMPLES, Numbers, by_standing, count, errors_of_models
from llm_blender_ray.pipelines.rows.schema import read_row


def row(*texts, **columns):
    """A row with one answer for each text (None: it failed), by models a, b, c, ..."""
    candidates = [
        {"model": chr(ord("a") + i), "text": text, **({"error": "timeout after 3 s"} if text is None else {})}
        for i, text in enumerate(texts)
    ]
    return read_row({"prompt": "p", "candidates": candidates, **columns}, "test.jsonl line 1")


def test_who_is_above_whom_and_first():
    numbers = count(
        [
            row("x", "yy", "zzz", ranking=[1, 0, 2], scores=[1, 2, 0]),  # b, a, c
            row("x", "yy", "zzz", ranking=[0, 1, 2], scores=[2, 2, 0]),  # a and b tie by score
            row("x", "x", None, ranking=[0, 1]),  # a and b tie by text, c failed
            row("x", "yy", "zzz"),  # not ranked
        ]
    )
    assert numbers.ranked == 3
    assert numbers.share_above("b", "a") == 1 / 3
    assert numbers.share_above("a", "b") == 0
    assert numbers.share_above("a", "c") == numbers.share_above("b", "c") == 1
    assert numbers.share_above("c", "a") == 0
    assert numbers.share_above("a", "a") is None
    ranks = {name: model.rank.value for name, model in numbers.models.items()}
    assert ranks == {"a": (2 + 1.5 + 1.5) / 3, "b": (1 + 1.5 + 1.5) / 3, "c": 3}
    assert numbers.models["a"].first.value == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert numbers.models["b"].first.value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert (numbers.models["c"].first.value, numbers.models["c"].first.count) == (0, 2)
    assert by_standing(numbers) == ["b", "a", "c"]


def test_who_is_fused():
    numbers = count(
        [
            row("x", "y", None, fused="x y", fused_from=[0, 1]),
            row("x", "y", "z", fused="x", fused_from=[0]),
            row("x", "y", "z"),
        ]
    )
    assert numbers.fused == 2
    assert [numbers.models[name].fused.value for name in "abc"] == [1, 0.5, 0]
    assert numbers.models["c"].fused.count == 1  # where it had no answer, it couldn't be taken
    assert numbers.fused_characters.value == 2


def test_several_answers_of_one_model_share_its_places():
    candidates = [{"model": "a", "text": text} for text in "xyz"] + [{"text": "w"}]
    numbers = count([read_row({"prompt": "p", "candidates": candidates, "ranking": [2, 3, 0, 1]}, "test")])
    assert numbers.models["a"].first.value == 1
    assert numbers.models["a"].rank.value == (1 + 3 + 4) / 3
    assert numbers.share_above("a", "candidate 4") == 1 / 3


def test_comparisons_against_all_pairs_of_different_answers():
    numbers = count(
        [
            row("x", "y", "z", ranking=[0, 1, 2], comparisons=4),  # of 6
            row("x", "x", "z", None, ranking=[0, 1, 2], comparisons=2),  # of 2: equal ones are one
            row("x", "y"),  # tells nothing
        ]
    )
    assert (numbers.compared, numbers.forwards, numbers.full) == (2, 6, 8)


def test_both_orders():
    logits = [
        [None, 3.0, 1.0, 3.0],
        [-1.0, None, 2.0, None],
        [2.0, None, None, None],
        [-1.0, None, None, None],
    ]
    orders = count([row("x", "y", "z", "y", ranking=[0, 1, 2, 3], logits=logits)]).orders
    # (x, y): 3 and -1 agree. (x, z): 1 and 2 both prefer the left. (y, z): compared once. The second y is no other.
    assert (orders.pairs, orders.agreeing, orders.mirrored) == (2, 1, 0)
    assert orders.bias.value == pytest.approx(((3 - 1) / 2 + (1 + 2) / 2) / 2)
    assert orders.margin.value == pytest.approx((2 + 0.5) / 2)
    reward = count([row("x", "y", ranking=[0, 1], logits=[[None, 2.0], [-2.0, None]])]).orders
    assert (reward.pairs, reward.mirrored) == (1, 1)


def test_lengths_and_what_the_ranker_makes_of_them():
    numbers = count(
        [
            row("xxx", "yy", "z", ranking=[0, 1, 2], fused="xyz"),  # longest first; 3 of 3 pairs
            row("xxx", "yyy", "z", ranking=[2, 0, 1], fused=""),  # not; 0 of 2 pairs of different length
            row("xx", "yy", ranking=[0, 1]),  # of one length: tells nothing
        ]
    )
    assert (numbers.longest_first.value, numbers.longest_first.count) == (0.5, 2)
    assert numbers.by_chance.value == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (numbers.longer_above.value, numbers.longer_above.count) == (3 / 5, 5)
    assert numbers.models["a"].characters.value == 8 / 3
    assert sorted(numbers.sample.lengths["a"]) == [2, 3, 3]
    assert sorted(numbers.sample.lengths[None]) == [0, 3]


def test_errors_tokens_and_how_answers_ended():
    def answer(text, reason, tokens):
        return {"model": "a", "text": text, "finish_reason": reason, "completion_tokens": tokens}

    rows = [
        read_row({"prompt": "p", "candidates": [answer("x", "stop", 4)]}, "f"),
        read_row({"prompt": "p", "candidates": [answer("x", "length", 8)]}, "f"),
        read_row({"prompt": "p", "candidates": [answer("x", None, None)]}, "f"),
        row(None, error="no candidate: a: timeout after 3 s"),
        row(None, error="no candidate: a: timeout after 4 s"),
        read_row({"prompt": 7}, "in.jsonl line 12"),
    ]
    numbers = count(rows)
    model = numbers.models["a"]
    assert (model.answers, model.failed, dict(model.finish)) == (3, 2, {"stop": 1, "length": 1, "": 1})
    assert model.tokens.value == 6
    assert numbers.errors.most(5) == [
        ("no candidate: a: timeout after N s", 2),
        ("prompt: expected text, got int", 1),
    ]
    assert list(errors_of_models(numbers)) == [("a", "timeout after N s", 2)]
    assert numbers.errors.examples["prompt: expected text, got int"].startswith("in.jsonl line 12: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("in.jsonl line 7: no prompt", "part 2.jsonl line 81203: no prompt"),
        ("HTTP 503 from http://10.0.0.7:8000/v1: busy", "HTTP 503 from http://10.0.0.8:8000/v1?x=1: busy"),
        ("prompt of 4,096 tokens, at most 2048", "prompt of 5000 tokens, at most 2048"),
        ("ranking: [0, 1] is not an order", "ranking: [3] is not an order"),
        ("no file '/data/a.bin'", "no file '/data/b c.bin'"),
        ("lost 3f2b8c1e-1111-4222-8333-944445555666", "lost 00aa1122-1111-4222-8333-944445555666"),
        ("lost -1.5e-07\nand more", "lost 2 and more"),
        ("can't read ../out/x.parquet", "can't read /srv/out/y.parquet"),
        ("http://a/v1: 503: busy", "not asked: 5 failures in a row, the last: http://b/v1: 503: busy"),
        ("http://a/v1: 401: no key", "not asked: http://a/v1: 401: no key"),
        ("429 tokens are too many", "512 tokens are too many"),
        ("max_model_len: 500 tokens", "max_model_len: 400 tokens"),
        ("no answer within 500 s in 6 tries", "no answer within 429 s in 1 tries"),
    ],
)  # fmt: skip
def test_one_cause_is_one_kind(one, other):
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    "told",
    [
        "https://host/v1: {}: rate limited",
        "https://host/v1: it answered {}: Bad request",
        "https://host/v1: it refused the key ({}); check KEY",
        "http://10.0.0.7:8000/v1: {}",
        "HTTP {} from http://10.0.0.7:8000/v1: busy",
        "HTTPStatusError: Error code: {} - overloaded",
        "no candidate: a: https://host/v1: {}: slow down; b: no text",
        "judge j: http://h/v1: {}: it said 17 things",
        "{} Service Unavailable",
        "https://host/v1: it broke the answer off: {}: overloaded",
        "https://host/v1: {}: it redirects to https://elsewhere/v1; set base_url to where it is",
        "https://host/v1: {}: 'slow down' (text/plain)",
        "https://host/v1: {}: a web page 'Log in' (text/html); check base_url",
    ],
)
def test_a_status_is_part_of_the_kind(told):
    kinds = [kind_of(told.format(status)) for status in (307, 400, 401, 429, 500, 503)]
    assert len(set(kinds)) == 6 and "429" in kinds[3]


def test_different_causes_stay_apart():
    told = [
        "prompt too long",
        "timeout after 3 s",
        "timeout after 3 min",
        "CUDA out of memory",
        "no prompt: expected",
    ]
    assert len({kind_of(text) for text in told}) == len(told)
    assert kind_of("GPT4 can't and/or won't") == "GPT4 can't and/or won't"
    assert len(kind_of("x" * 1000)) == MAX_ERROR_LENGTH


def test_kinds_are_bounded_and_add_up():
    kinds = ErrorKinds()
    for i in range(MAX_KINDS + 50):
        kinds.add("".join(chr(ord("a") + int(digit)) for digit in str(i)))
        kinds.add("often")
    assert len(kinds.counts) <= MAX_KINDS + 1
    most = kinds.most(3)
    assert most[0] == ("often", MAX_KINDS + 50)
    assert most[-1][0] == OTHER_ERRORS
    assert sum(n for _, n in most) == kinds.total == 2 * (MAX_KINDS + 50)


_TEXT = st.sampled_from(["", "x", "yy", "yy z", "1) a", "1) b"])


@st.composite
def blended(draw):
    """A row as a run may have left it."""
    texts = draw(st.lists(st.none() | _TEXT, min_size=0, max_size=4))
    given = [i for i, text in enumerate(texts) if text is not None]
    columns = {"id": draw(st.text(max_size=5)), "output": draw(st.none() | _TEXT)}
    if given and draw(st.booleans()):
        ranking = draw(st.permutations(given))
        logit = st.none() | st.integers(-3, 3).map(float)
        columns |= {
            "ranking": ranking,
            "scores": draw(st.none() | st.just([float(i % 2) for i in range(len(texts))])),
            "comparisons": draw(st.integers(0, 12)),
            "logits": [[None if i == j else draw(logit) for j in range(len(texts))] for i in range(len(texts))],
        }
    if draw(st.booleans()):
        columns |= {"fused": draw(_TEXT), "fused_from": columns.get("ranking", [])[:2]}
    if draw(st.integers(0, 4)) == 0:
        columns["error"] = draw(st.sampled_from(["failed 1", "failed 2", "lost"]))
    return row(*texts, **columns)


def _figures(numbers: Numbers) -> dict:
    """What must not depend on the order of rows."""
    names = sorted(numbers.models)
    quality = numbers.sample.quality
    return {
        "counts": [numbers.rows, numbers.ranked, numbers.fused, numbers.compared, numbers.forwards, numbers.full],
        "errors": numbers.errors.most(5),
        "models": [
            [name, of.answers, of.failed, of.rank.value, of.rank.ci95_half_width, of.first.value, of.fused.value]
            for name, of in sorted(numbers.models.items())
        ],
        "above": [[numbers.share_above(one, other) for other in names] for one in names],
        "orders": [numbers.orders.pairs, numbers.orders.agreeing, numbers.orders.bias.value],
        "length": [numbers.longest_first.value, numbers.by_chance.value, numbers.longer_above.value],
        "sample": [numbers.sample.rows, sorted(numbers.sample.lengths.get("a", []))],
        "quality": [[name, tally.report()] for name, tally in sorted(quality.references.items())],
        "gains": [
            [name, system, None if one is None else one, gain.value, gain.ci95_half_width]
            for name, tally in sorted(quality.references.items())
            for system, gains in sorted(tally.gains.items())
            for one, gain in sorted(gains.items(), key=lambda item: item[0] or "")
        ],
    }  # fmt: skip


def _flat(value):
    if isinstance(value, dict):
        return [item for key, one in sorted(value.items()) for item in [key, *_flat(one)]]
    if isinstance(value, list | tuple):
        return [item for one in value for item in _flat(one)]
    return [value]


@given(st.data(), st.lists(blended(), max_size=6), st.integers(1, 8))
def test_the_order_of_rows_does_not_matter(data, rows, most):
    figures = _flat(_figures(count(rows, sample=most)))
    others = _flat(_figures(count(data.draw(st.permutations(rows)), sample=most)))
    assert len(figures) == len(others)
    for figure, other in zip(figures, others, strict=True):
        assert figure == (pytest.approx(other, abs=1e-7) if isinstance(other, float) else other)


@given(st.lists(blended(), max_size=6))
def test_shares_add_up(rows):
    numbers = count(rows)
    for one in numbers.models:
        for other in numbers.models:
            above, below = numbers.share_above(one, other), numbers.share_above(other, one)
            assert (above is None) == (below is None) or one == other
            assert above is None or 0 <= above + below <= 1 + 1e-9
    first = sum(model.first.total for model in numbers.models.values())
    assert first == pytest.approx(numbers.ranked)
    ranks = sum(model.rank.total for model in numbers.models.values())
    assert ranks == pytest.approx(
        sum(len(r["ranking"]) * (len(r["ranking"]) + 1) / 2 for r in rows if r["ranking"])
    )
    assert numbers.orders.agreeing <= numbers.orders.pairs


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.integers(0, 30))
def test_means_merge_to_the_mean_of_all(values, at):
    whole, left, right = Mean(), Mean(), Mean()
    for i, value in enumerate(values):
        whole.add(value)
        (left if i < at else right).add(value)
    left.merge(right)
    assert left.count == whole.count == len(values)
    if len(values) > 1:
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        for one in (whole, left):
            assert one.value == pytest.approx(mean, abs=1e-6)
            assert one.ci95_half_width == pytest.approx(1.96 * deviation / math.sqrt(len(values)), abs=1e-6)
    else:
        assert whole.ci95_half_width is None


def test_quality_of_parts_merges_to_the_quality_of_all():
    rows = [
        row("1) a", "1) b", output="1) a", ranking=[1, 0], fused="1) a"),
        row("1) a", "1) b", output="1) b", ranking=[1, 0], fused="1) a"),
        row("free text", None, output="a text", ranking=[0], fused="text"),
    ]
    whole, left, right = Quality(), Quality(), Quality()
    for i, one in enumerate(rows):
        whole.add(one)
        (left, right)[i == 2].add(one)
    assert "parts" in left.references
    left.merge(right)
    assert left.references.keys() == whole.references.keys() == {"exact", "bleu", "rouge_l"}
    merged, at_once = left.references["exact"], whole.references["exact"]
    reports = [one.report() for one in (merged, at_once)]
    halves, expected = (one.pop("ci95_half_widths") for one in reports)
    assert reports[0] == reports[1]
    assert halves["models"] == {name: pytest.approx(means) for name, means in expected["models"].items()}
    # the blend is right, wrong, wrong; the ranker's choice wrong, right, wrong; a: right, wrong, wrong
    assert merged.gains["blend"][None].value == 0
    assert merged.gains["blend"]["a"].value == 0
    assert merged.gains["ranker"]["b"].value == 0
    assert merged.gains["blend"]["b"].ci95_half_width == pytest.approx(1.96 / math.sqrt(3))


def test_a_long_stream_is_sampled_by_id_and_a_short_one_is_not():
    rows = [row("x" * (i % 50), id=str(i), output="x") for i in range(2000)]
    whole = count(rows)
    assert whole.sample.rows == 2000
    some = count(rows, sample=300)
    assert 100 <= some.sample.rows <= 300
    assert len(some.sample.lengths["a"]) == some.sample.quality.references["exact"].rows == some.sample.rows
    assert some.models["a"].answers == 2000  # what is counted, is counted of all
    exact = [numbers.sample.quality.references["exact"].models["a"]["mean"] for numbers in (some, whole)]
    assert abs(exact[0].value - exact[1].value) < 0.1
    same_id = count([row("x", id="1") for _ in range(50)], sample=10)
    assert same_id.sample.rows == 50  # nothing to choose by: better all than none


def test_examples_are_good_rows_whatever_their_order():
    rows = [row("x", id=str(i), **({"error": "bad"} if i % 2 else {})) for i in range(40)]
    examples = [one["id"] for one in count(rows).examples]
    assert len(examples) == EXAMPLES
    assert all(int(one) % 2 == 0 for one in examples)
    assert examples == [one["id"] for one in count(rows[::-1]).examples]
    assert json.dumps(count([]).examples) == "[]"

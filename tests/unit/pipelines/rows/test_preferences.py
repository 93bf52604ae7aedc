"""Preference pairs: which answers meet, how far apart, in what layout; and those of a real self-ensemble."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.stages import Generate, Rank
from llm_blender_ray.actors.tables import to_blends, with_blends
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.preferences import PAIR_COLUMNS, Preferences
from llm_blender_ray.configs.schema import PairRanker, Sampling, TransformersModel
from llm_blender_ray.pipelines.quality.metrics import parts_right
from llm_blender_ray.pipelines.rows.preferences import PREFERENCE_SCHEMA, Preference, preference_table, preferences
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row, write_row

RESULTS = ("ranking", "scores", "comparisons")
QUESTION = {"instruction": "Name a river.", "input": "In France."}


def ranked(texts: Sequence[str | None], scores: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """An output row: answers of models m0, m1, ... (None: it failed) with these scores, ranked by them."""
    candidates = [
        {"model": f"m{i}", "text": text, "error": None if text is not None else "timed out"}
        for i, text in enumerate(texts)
    ]
    known = [i for i, text in enumerate(texts) if text is not None]
    ranking = sorted(known, key=lambda i: -(scores[i] or 0))
    given = {**QUESTION, "id": "7", "candidates": candidates, "ranking": ranking, "scores": list(scores), **more}
    return write_row(read_row(given, "test"), RESULTS)


def pairs_of(row: dict[str, Any], **settings: Any) -> list[Preference]:
    return preferences(row, Preferences(output="pairs.jsonl", **settings))


def models(pairs: Sequence[Preference]) -> list[tuple[str | None, str | None]]:
    return [(pair["chosen_model"], pair["rejected_model"]) for pair in pairs]


FOUR = ranked(["Loire", "Po", "Seine", "Rhine"], [0.5, -2.0, 2.0, -0.5])


def test_the_names_of_a_pair_s_columns_are_those_of_its_schema() -> None:
    assert PREFERENCE_SCHEMA.names == list(PAIR_COLUMNS)


def test_a_pair_is_a_row_of_trl_s_conversational_layout() -> None:
    assert pairs_of(FOUR) == [
        {
            "id": "7",
            "prompt": [{"role": "user", "content": "Name a river.\nIn France."}],
            "chosen": [{"role": "assistant", "content": "Seine"}],
            "rejected": [{"role": "assistant", "content": "Po"}],
            "score_chosen": 2.0,
            "score_rejected": -2.0,
            "chosen_model": "m2",
            "rejected_model": "m1",
        }
    ]


def test_a_chat_keeps_its_turns_and_its_system_prompt() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi."}]},  # OpenAI's content parts
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "A river?"},
    ]
    (pair,) = pairs_of(ranked(["Seine", "Po"], [1, 0], messages=chat))
    assert pair["prompt"] == [chat[0], {"role": "user", "content": "Hi."}, *chat[2:]]


def test_a_chat_that_trl_cannot_render_has_no_pairs() -> None:
    """Its apply_chat_template raises where a system prompt is all there is, and with it a whole `Dataset.map`."""
    chat = [{"role": "system", "content": "Write about rivers."}]
    assert pairs_of(ranked(["Seine", "Po"], [1, 0], messages=chat)) == []


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0, [("m2", "m0"), ("m2", "m3"), ("m2", "m1"), ("m0", "m3"), ("m0", "m1"), ("m3", "m1")]),
        (1.5, [("m2", "m0"), ("m2", "m3"), ("m2", "m1"), ("m0", "m1"), ("m3", "m1")]),
        (2.5, [("m2", "m3"), ("m2", "m1"), ("m0", "m1")]),
        (4, [("m2", "m1")]),
        (4.1, []),
    ],
)
def test_all_pairs_over_a_margin(margin: float, expected: list[tuple[str, str]]) -> None:
    assert models(pairs_of(FOUR, pairs="all", margin=margin)) == expected


def test_best_against_worst_over_a_margin() -> None:
    assert models(pairs_of(FOUR, margin=4)) == [("m2", "m1")]
    assert pairs_of(FOUR, margin=4.1) == []


def test_best_against_random_draws_among_those_over_the_margin() -> None:
    seeds = range(50)
    assert {models(pairs_of(FOUR, pairs="best-random", margin=2.5, seed=s))[0] for s in seeds} == {
        ("m2", "m3"),
        ("m2", "m1"),
    }
    assert all(pairs_of(FOUR, pairs="best-random", margin=4.1, seed=s) == [] for s in seeds)


def test_best_against_random_draws_evenly() -> None:
    """Over prompts: the draw is a hash of the row, so this is the same on every machine."""
    count = 3000
    rows = (
        ranked(["Loire", "Po", "Seine", "Rhine"], [0, 1, 3, 2], instruction=f"River {i}?") for i in range(count)
    )
    drawn = Counter(models(pairs_of(row, pairs="best-random"))[0][1] for row in rows)
    assert set(drawn) == {"m0", "m1", "m3"}
    five_sigma = 5 * (count * 1 / 3 * 2 / 3) ** 0.5
    assert all(abs(times - count / 3) < five_sigma for times in drawn.values())


def test_a_draw_is_the_row_s_own() -> None:
    """Not its id's, its block's or its candidates' places'; a candidate added later changes it only to itself."""
    settings = {"pairs": "best-random", "seed": 3}
    texts = [f"River {i}" for i in range(12)]
    (first,) = pairs_of(ranked(texts, range(12)), **settings)
    (turned,) = pairs_of(ranked(texts[::-1], range(12)[::-1], id="another"), **settings)
    assert (turned["chosen"], turned["rejected"]) == (first["chosen"], first["rejected"])
    for new in range(30):
        (more,) = pairs_of(ranked([*texts, f"New river {new}"], [*range(12), -1]), **settings)
        assert more["rejected"] in (first["rejected"], [{"role": "assistant", "content": f"New river {new}"}])


@pytest.mark.parametrize("kind", ["best-worst", "best-random", "all"])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param({**FOUR, "error": "ranking failed"}, id="error"),
        pytest.param({**FOUR, "ranking": None, "scores": None}, id="not ranked"),
        pytest.param(ranked([], []), id="no candidates"),
        pytest.param(ranked(["Seine"], [0]), id="one"),
        pytest.param(ranked(["Seine", None, None], [0, None, None]), id="one left"),
        pytest.param(ranked(["Seine", "Po"], [1, 1]), id="tie"),
        pytest.param(ranked(["Seine", " Seine\n"], [1, 0]), id="same text"),
        pytest.param(ranked(["", "Seine", " \n"], [2, 1, 0]), id="blank"),
        pytest.param(write_row(read_row({"candidates": [{"text": "a"}]}, "test"), RESULTS), id="bad row"),
    ],
)
def test_what_has_no_two_answers_apart_has_no_pairs(row: dict[str, Any], kind: str) -> None:
    assert pairs_of(row, pairs=kind) == []


def test_the_second_best_is_chosen_where_the_best_is_blank() -> None:
    assert models(pairs_of(ranked(["", "Seine", "Po"], [2, 1, 0]))) == [("m1", "m2")]


def test_equal_answers_are_one() -> None:
    """As several samples of one LLM often are: the ranker gives them one score."""
    row = ranked(["Po", "Seine", "Po", "Seine", "Rhine"], [0, 2, 0, 2, 1])
    assert models(pairs_of(row, pairs="all")) == [("m1", "m4"), ("m1", "m0"), ("m4", "m0")]


@given(
    answers=st.lists(
        st.tuples(st.sampled_from([None, "", "a", "b ", "b", "c", "d", "e"]), st.integers(-3, 3)), max_size=8
    ),
    margin=st.integers(0, 4),
    max_pairs=st.integers(1, 30) | st.none(),
    seed=st.integers(0, 5),
)
def test_what_every_pair_promises(
    answers: list[tuple[str | None, int]], margin: int, max_pairs: int | None, seed: int
) -> None:
    row = ranked([text for text, _ in answers], [score for _, score in answers])
    every = pairs_of(row, pairs="all", margin=margin)
    best: dict[str, int] = {}
    for text, score in answers:
        if text:
            best[text.strip()] = max(score, best.get(text.strip(), score))
    gaps = [b - a for a in best.values() for b in best.values()]
    assert len(every) == sum(gap > 0 and gap >= margin for gap in gaps)
    for pair in every:
        for side in ("chosen", "rejected"):
            (message,) = pair[side]  # type: ignore[literal-required]
            assert pair[f"score_{side}"] == best[message["content"].strip()]  # type: ignore[literal-required]
        assert pair["score_chosen"] > pair["score_rejected"]

    some = pairs_of(row, pairs="all", margin=margin, max_pairs=max_pairs, seed=seed)
    assert len(some) == min(len(every), max_pairs or len(every))
    assert some == [pair for pair in every if pair in some]  # of them, in their order
    widest = pairs_of(row, margin=margin)
    assert len(widest) == bool(every)
    drawn = pairs_of(row, pairs="best-random", margin=margin, seed=seed)
    assert len(drawn) == bool(every)
    for pair in (*widest, *drawn):
        assert pair in every and pair["score_chosen"] == max(best.values())
    assert all(pair["score_rejected"] == min(best.values()) for pair in widest)


def test_a_table_of_rows_survives_json() -> None:
    rows = [FOUR, {**FOUR, "error": "ranking failed"}, ranked(["Seine", "Po"], [1, 0], id="8")]
    settings = Preferences(output="pairs.jsonl", pairs="all")
    table = preference_table(rows, settings)
    assert table.schema == PREFERENCE_SCHEMA
    assert table.column("id").to_pylist() == ["7"] * 6 + ["8"]
    assert table.to_pylist() == json.loads(
        json.dumps([pair for row in rows for pair in preferences(row, settings)])
    )
    assert preference_table([], settings).schema == PREFERENCE_SCHEMA


def test_best_of_n_of_one_llm() -> None:
    """A base LLM of the miniature, sampled six times for each prompt and ranked: the chosen ones are better."""
    llm = TransformersModel(
        name="alder",
        engine="transformers",
        model=str(PRESETS / "miniature" / "alder"),
        device="cpu",
        sampling=Sampling(max_tokens=48, temperature=1.5, seed=1),
        samples=6,
    )
    ranker = PairRanker(model=str(PRESETS / "miniature" / "ranker"), device="cpu", top_k=1)
    asked = pa.Table.from_pylist(
        list(islice(read_rows(str(PRESETS / "miniature" / "heldout.jsonl")), 40)), schema=ROW_SCHEMA
    )

    async def blend() -> pa.Table:
        return with_blends(asked, await Rank(ranker)(await Generate(llm)(to_blends(asked))))

    rows = [write_row(row, RESULTS) for row in asyncio.run(blend()).to_pylist()]
    assert all([one["model"] for one in row["candidates"]] == ["alder"] * 6 for row in rows)
    pairs = preference_table(rows, Preferences(output="pairs.jsonl")).to_pylist()
    assert len(pairs) > 30
    references = {row["id"]: row["output"] for row in rows}
    right = {
        side: sum(parts_right(references[pair["id"]], pair[side][0]["content"]) for pair in pairs)
        for side in ("chosen", "rejected")
    }
    assert right["chosen"] > 1.5 * right["rejected"]

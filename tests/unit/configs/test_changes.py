"""Changes between two configs in the words of the config."""

from typing import Any

import pytest

from llm_blender_ray.configs.changes import describe_changes
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.schema import BlendConfig

MODELS = [
    {"name": "llama", "engine": "vllm", "model": "meta/llama", "sampling": {"temperature": 0.7}},
    {"name": "qwen", "engine": "vllm", "model": "qwen/small", "system_prompt": "Be brief."},
]
NEW = {"name": "qwen-72b", "engine": "endpoint", "model": "qwen/large", "base_url": "http://127.0.0.1:9/v1"}
RANKER = {"model": "org/ranker", "strategy": "full"}
FUSER = {"model": "org/fuser"}
LONG = "You answer in one short sentence, in the language of the question, and never apologise."


def identity(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a run records of a config."""
    config = BlendConfig.model_validate({"models": models or MODELS, "ranker": RANKER, "fuser": FUSER} | more)
    return {
        "models": {model.name: deciding(model) for model in config.models},
        "order": [model.name for model in config.models],
        "ranker": deciding(config.placing_ranker),
        "fuser": deciding(config.fuser) if config.fuser else None,
        "matrix": config.matrix,
        "format": config.format,
        "limit": config.limit,
        "preferences": deciding(config.preferences) if config.preferences else None,
        "stage_versions": {"generate": 1, "rank": 1} | ({"fuse": 1} if config.fuser else {}),
        "weights": {},
    }


CONFIGS = [
    identity(),
    identity(*MODELS, NEW),
    identity(MODELS[0]),
    identity(*reversed(MODELS)),
    identity(ranker={"kind": "echo"}),
    identity(ranker=RANKER | {"strategy": "swiss:rounds=2"}),
    identity(ranker=RANKER | {"strategy": "swiss:rounds=3"}),
    identity(fuser=None),
    identity(fuser={"kind": "chat", "llm": NEW}),
    identity(fuser={"kind": "chat", "llm": NEW | {"model": "other"}}),
    identity() | {"weights": {"fuser": "1"}},
    identity(fuser={"model": "org/other"}) | {"weights": {"fuser": "2"}},
    identity() | {"stage_versions": {"generate": 2, "rank": 1, "fuse": 1}},
    identity(preferences={"output": "pairs/"}),
    identity(preferences={"output": "pairs/", "margin": 1}),
    {"command": "rank", "ranker": {"kind": "echo"}},
]


@pytest.mark.parametrize("before", CONFIGS)
def test_no_change_goes_without_a_word(before: dict[str, Any]) -> None:
    assert [bool(describe_changes(before, now)) for now in CONFIGS] == [now != before for now in CONFIGS]


def llama(**changes: Any) -> list[dict[str, Any]]:
    return [MODELS[0] | changes, MODELS[1]]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (identity(), []),
        (identity(*MODELS, NEW), ["model qwen-72b is new"]),
        (identity(NEW, *MODELS), ["model qwen-72b is new"]),
        (identity(MODELS[0]), ["model qwen is removed"]),
        (identity(*llama(sampling={"temperature": 0.2})), ["sampling.temperature of llama: 0.7 -> 0.2"]),
        (identity(*llama(revision="v2")), ["revision of llama: not set -> v2"]),
        (identity(*llama(system_prompt=LONG)), ["system_prompt of llama has changed"]),
        (identity(*llama(system_prompt="")), ['system_prompt of llama: not set -> ""']),
        (identity(*llama(engine="transformers")), ["engine of llama: vllm -> transformers"]),
        (
            identity(*llama(sampling={"temperature": 0.7, "stop": ["\n", "###"]})),
            ['sampling.stop of llama: [] -> ["\\n", "###"]'],
        ),
        (
            identity(*llama(sampling={"temperature": 0.7, "logit_bias": {"5": 1.0}})),
            ["sampling.logit_bias of llama: new"],
        ),
        (identity(*reversed(MODELS)), ["order of models: llama, qwen -> qwen, llama"]),
        (identity(ranker=RANKER | {"strategy": "focus"}), ["ranker.strategy: full -> focus"]),
        (identity(ranker={"model": "org/ranker"}), ["ranker.strategy: full -> not set"]),
        (identity(ranker=RANKER | {"strategy": "full:budget=4"}), ["ranker.strategy.budget: not set -> 4"]),
        (identity(ranker={"kind": "echo", "strategy": "focus"}), ["ranker: pairranker -> echo"]),
        (identity(fuser={"model": "org/fuser", "num_beams": 1}), ["fuser.num_beams: 4 -> 1"]),
        (
            identity(fuser={"kind": "chat", "llm": NEW}),
            ["fuser: genfuser -> chat"],
        ),
        (identity(fuser=None), ["fuser: genfuser -> not set"]),
        (identity(fuser={"model": "org/fuser", "top_k": 2}), ["fuser.top_k: 3 -> 2"]),
        (identity(ranker=RANKER | {"top_k": 5}), ["ranker.top_k: 3 -> 5"]),
        (identity(matrix=True, format="jsonl"), ["matrix: false -> true", "format: parquet -> jsonl"]),
        (identity(preferences={"output": "pairs.jsonl"}), ["preferences: new"]),
        (identity(limit=5), []),  # `bulk.resume` compares limits
    ],
)
def test_a_change_is_in_the_words_of_the_config(after: dict[str, Any], told: list[str]) -> None:
    assert describe_changes(identity(), after) == told


def test_what_is_removed_is_the_reverse_of_what_is_new() -> None:
    assert describe_changes(identity(*MODELS, NEW), identity()) == ["model qwen-72b is removed"]
    assert describe_changes(identity(preferences={"output": "p/"}), identity()) == ["preferences: removed"]


def test_a_release_that_gives_other_results_is_named_by_the_part() -> None:
    before, after = identity(), identity()
    before["stage_versions"] = {"generate": 1, "rank": 2, "fuse": 1}
    before["models"]["llama"]["results_version"] = 0
    before["ranker"]["results_version"] = 0
    assert describe_changes(before, after) == [
        "llama: this release gives other results",
        "ranker: this release gives other results",
        "rank: this release gives other results",
    ]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"llama": "1"}, {"llama": "2"}, ["weights of llama have changed"]),
        ({"llama": "1"}, {}, ["weights of llama are no longer on this machine"]),
        ({}, {"ranker": "1"}, ["weights of ranker are now on this machine"]),
    ],
)
def test_weights_are_told_without_their_digests(
    before: dict[str, str], after: dict[str, str], told: list[str]
) -> None:
    assert describe_changes(identity() | {"weights": before}, identity() | {"weights": after}) == told


def test_weights_of_another_model_are_no_further_change() -> None:
    before = identity() | {"weights": {"llama": "1"}}
    after = identity(*llama(model="meta/other")) | {"weights": {"llama": "2"}}
    assert describe_changes(before, after) == ["model of llama: meta/llama -> meta/other"]
    assert describe_changes(before, identity(MODELS[1])) == ["model llama is removed"]


def test_one_stage_of_a_command_line() -> None:
    """`blend rank` and its kin record less, and another command says it all."""
    rank = {"command": "rank", "ranker": {"kind": "echo", "top_k": 1}, "results": ["ranking"], "preferences": None}
    assert describe_changes(rank, rank | {"ranker": {"kind": "echo", "top_k": 2}}) == ["ranker.top_k: 1 -> 2"]
    assert describe_changes(rank, rank | {"results": ["ranking", "logits"]}) == ["matrix: false -> true"]
    assert describe_changes(rank, {"command": "fuse", "fuser": {"kind": "genfuser"}}) == ["command: rank -> fuse"]
    assert describe_changes(identity(), rank) == ["command: run -> rank"]

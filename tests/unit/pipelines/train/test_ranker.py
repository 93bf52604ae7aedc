"""Ranker training: which pairs are sampled, that a short real run learns and resumes, and what bad input gets."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN
from safetensors.torch import load_file
from training_rows import WORDS, short, write, write_once

from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.actors.pairrm.checkpoints import create_pairrm, is_pairranker, load_pairrm
from llm_blender_ray.actors.pairrm.prompt import PromptPairTokenizer
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenization
from llm_blender_ray.configs.loading import PRESETS, ConfigError, load
from llm_blender_ray.configs.training import (
    AuxiliaryLosses,
    FuserTraining,
    JudgementPairs,
    PairSampling,
    RankerTraining,
)
from llm_blender_ray.pipelines.miniature.blank import save_blank_encoder, save_blank_modernbert
from llm_blender_ray.pipelines.train.examples import IGNORED
from llm_blender_ray.pipelines.train.failures import FailedTrainingError
from llm_blender_ray.pipelines.train.losses import RankerLoss, pair_is_right
from llm_blender_ray.pipelines.train.pairs import sample_pairs, scored_pairs
from llm_blender_ray.pipelines.train.ranker import PairDataset, run_ranker_training
from llm_blender_ray.pipelines.train.rows import read_training_rows


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder, as `from_pretrained` loads it."""
    folder = tmp_path_factory.mktemp("backbone")
    save_blank_encoder(folder, seed=0)
    return folder


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows in which the better candidate repeats the word of the prompt."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        right, wrong = rng.sample(WORDS, 2)
        candidates = [
            {"model": "a", "text": f"1) {right}", "scores": {"quality": 1.0}},
            {"model": "b", "text": f"1) {wrong}", "scores": {"quality": 0.0}},
        ]
        rng.shuffle(candidates)
        rows.append({"instruction": "Repeat:", "input": right, "output": f"1) {right}", "candidates": candidates})
    return rows


def settings(folder: Path, backbone: Path, **changes: Any) -> RankerTraining:
    base = {
        "backbone": str(backbone),
        **write_once(folder, make_rows),
        "output": str(folder / "ranker"),
        "metrics": ("quality",),
        "dropout": 0.0,
        "source_max_length": 32,
        "candidate_max_length": 16,
        "auxiliary": AuxiliaryLosses(reference_token=1.0, token_is_right=1.0),
        "optimization": short(**changes.pop("optimization", {})),
    }
    return RankerTraining(**(base | changes))


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 4)), max_size=12),
    st.sampled_from(["top_bottom", "all_pair", "random", "uniform"]),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_pairs_differ_in_text_and_score(
    candidates: list[tuple[str, int]], sampling: Any, per_row: int, seed: int
) -> None:
    texts = [text for text, _ in candidates]
    scores = [(float(score),) for _, score in candidates]
    pairs = sample_pairs(texts, scores, PairSampling(sampling=sampling, per_row=per_row), random.Random(seed))
    assert len(pairs) <= (len(set(texts)) if sampling in ("random", "uniform") else per_row)
    assert len({frozenset((pair.left, pair.right)) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert texts[pair.left] != texts[pair.right]
        assert pair.lead == (scores[pair.left][0] - scores[pair.right][0],)
        assert pair.lead != (0.0,)


@given(st.permutations(range(11)), st.integers(0, 99))
def test_eleven_candidates_give_the_papers_pairs(quality: list[int], seed: int) -> None:
    """The i-th best against the i-th of the five worst."""
    pairs = sample_pairs(
        [str(q) for q in quality], [(float(q),) for q in quality], PairSampling(), random.Random(seed)
    )
    ranks = sorted(sorted((10 - quality[pair.left], 10 - quality[pair.right])) for pair in pairs)
    assert ranks == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10]]


def ranks_of_pairs(count: int, **sampling: Any) -> list[tuple[int, ...]]:
    """Ranks of the pairs of `count` candidates, of which the first is best."""
    texts, scores = [str(i) for i in range(count)], [(-float(i),) for i in range(count)]
    pairs = sample_pairs(texts, scores, PairSampling(**sampling), random.Random(0))
    return sorted(tuple(sorted((pair.left, pair.right))) for pair in pairs)


@pytest.mark.parametrize(
    ("count", "ratio", "expected"),
    [
        (11, 0.4, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        (4, 0.5, [(0, 2)]),
        (5, 1.0, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (3, 0.3, []),
    ],
)
def test_uniform_pairs_are_steps_down_the_order(count: int, ratio: float, expected: list[tuple[int, int]]) -> None:
    """The original's `sorted[0:-step:step]` against `sorted[step::step]`, with step = int(1 / ratio)."""
    assert ranks_of_pairs(count, sampling="uniform", ratio=ratio) == expected


@pytest.mark.parametrize(("count", "ratio", "pairs"), [(11, 0.4, 4), (4, 0.1, 1), (3, 1.0, 3), (2, 1.0, 1)])
def test_random_pairs_are_a_share_of_the_candidates(count: int, ratio: float, pairs: int) -> None:
    assert len(ranks_of_pairs(count, sampling="random", ratio=ratio)) == pairs


def test_sides_are_random() -> None:
    texts, scores = ["good", "bad"], [(1.0,), (0.0,)]
    sides = {sample_pairs(texts, scores, PairSampling(), random.Random(seed))[0].left for seed in range(20)}
    assert sides == {0, 1}


def pair_tokenizer(backbone: Path) -> PairTokenization:
    return create_pairrm(str(backbone), PairBudget(32, 16))[1]


def test_a_pair_is_tokenized_as_when_ranking_and_aligned_with_the_reference(backbone: Path, tmp_path: Path) -> None:
    row = {
        "instruction": "Name two.",
        "output": "1) acorn badge",
        "candidates": [
            {"text": "1) acorn desert", "scores": {"quality": 0.5}},
            {"text": "1) acorn", "scores": {"quality": 0.2}},
        ],
    }
    tokenizer = pair_tokenizer(backbone)
    rows = read_training_rows(write(tmp_path / "rows.jsonl", [row]))
    dataset = PairDataset(rows, list(scored_pairs(rows, ["quality"], PairSampling(), seed=0)), tokenizer)
    assert len(dataset) == 1
    example = dataset[0]
    source = tokenizer.encode_source("Name two.")
    long, short = (tokenizer.encode_candidate(text, len(source)) for text in ("1) acorn desert", "1) acorn"))
    sides = (long, short) if example["labels"][0] > 0 else (short, long)
    assert example["input_ids"] == tokenizer.join(source, *sides)
    told = [i for i in example["reference_ids"] if i != IGNORED]
    assert told == tokenizer.encode_candidate("1) acorn badge", len(source))[2:-1]  # beside the long one only
    aligned = [i for i, r in zip(example["input_ids"], example["reference_ids"], strict=True) if r != IGNORED]
    assert aligned == long[2:-1]


@pytest.mark.parametrize("layout", ["PairRM", "PairRM-hf"])
def test_a_pairranker_is_where_training_starts(layout: str) -> None:
    """Encoder, markers and head: logits before the first step are the published ranker's own."""
    folder = str(GOLDEN / "checkpoints" / layout)
    theirs, tokenizer = load_pairrm(folder, source_max_length=32, candidate_max_length=16)
    network, _ = create_pairrm(folder, PairBudget(32, 16), dropout=0.25)
    source = tokenizer.encode_source("Say it.")
    one, other = (tokenizer.encode_candidate(text, len(source)) for text in ("acorn", "badge"))
    ids = torch.tensor([tokenizer.join(source, one, other)])
    with torch.no_grad():
        logits = [one.logits(ids, torch.ones_like(ids)) for one in (network.eval(), theirs)]
    assert torch.equal(*logits)
    assert [module.p for module in network.head_layer if isinstance(module, torch.nn.Dropout)] == [0.25, 0.25]


def test_a_pairranker_with_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="its head has 1 outputs, but metrics has 2"):
        create_pairrm(str(GOLDEN / "checkpoints" / "PairRM"), PairBudget(32, 16), n_tasks=2)


def test_training_goes_on_from_what_it_wrote(backbone: Path, tmp_path: Path) -> None:
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
    run_ranker_training(settings(tmp_path / "once", backbone))
    steps = {"optimization": {"max_steps": 1, "learning_rate": 1e-9}}
    run_ranker_training(settings(tmp_path / "again", tmp_path / "once" / "ranker", **steps))
    before, after = (load_file(tmp_path / name / "ranker" / "model.safetensors") for name in ("once", "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=0)


def test_loss_is_instructgpts(backbone: Path) -> None:
    network, tokenizer = create_pairrm(str(backbone), PairBudget(32, 16), dropout=0.0)
    source = tokenizer.encode_source("Say it.")
    good, bad = (tokenizer.encode_candidate(text, len(source)) for text in ("acorn", "badge"))
    ids = torch.tensor([tokenizer.join(source, good, bad), tokenizer.join(source, bad, good)])
    mask, unaligned = torch.ones_like(ids), torch.full_like(ids, IGNORED)
    model = RankerLoss(network.eval(), AuxiliaryLosses())
    with torch.no_grad():
        output = model(ids, mask, torch.tensor([[0.3], [-0.3]]), unaligned)
        margin = network.logits(ids, mask)
    expected = -torch.log(torch.sigmoid(margin * torch.tensor([1.0, -1.0]))).mean()
    torch.testing.assert_close(output["loss"], expected)
    torch.testing.assert_close(output["logits"], margin)


def test_training_minimizes_the_loss_that_is_set(backbone: Path, tmp_path: Path) -> None:
    """The first logged loss is that of the untrained ranker, computed here from its two heads' outputs."""
    few = {"max_steps": 1, "log_every": 1, "save_every": 1, "evaluate_every": 1, "batch_size": 24}
    train = write(tmp_path / "few.jsonl", make_rows(24, 1))
    config = settings(
        tmp_path, backbone, train=train, heldout=None, loss="mse", auxiliary=AuxiliaryLosses(), optimization=few
    )
    run_ranker_training(config)
    state = json.loads((tmp_path / "ranker" / "checkpoints" / "checkpoint-1" / "trainer_state.json").read_text())
    torch.manual_seed(0)
    network, tokenizer = create_pairrm(str(backbone), PairBudget(32, 16), dropout=0.0)
    found = []
    for row in read_training_rows(config.train):
        source = tokenizer.encode_source(*row.prompt.turns())
        sides = [tokenizer.encode_candidate(text, len(source)) for text in row.texts]
        a, b = (score for (score,) in row.scores(["quality"]))
        for first, second, one, other in ((*sides, a, b), (*sides[::-1], b, a)):  # either order is as likely
            ids = torch.tensor([tokenizer.join(source, first, second)])
            with torch.no_grad():
                hidden = network.encode(ids, torch.ones_like(ids))
                left, right = (side.item() for side in network.sides(hidden, ids, torch.ones_like(ids)))
            found.append((left - one) ** 2 + (right - other) ** 2 - 2 * (left - right) * (one - other))
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert losses == pytest.approx([sum(found) / len(found)], abs=0.02)


def test_losses_of_candidates_need_a_ranker_that_scores_them(tmp_path: Path) -> None:
    alder = settings(tmp_path, PRESETS / "miniature" / "alder", loss="bce", auxiliary=AuxiliaryLosses())
    with pytest.raises(BlendError, match=r"alder: a ranker on a causal LM scores pairs, and loss: bce"):
        run_ranker_training(alder)


def test_a_loss_of_binary_scores_refuses_others(backbone: Path, tmp_path: Path) -> None:
    rows = make_rows(2, 0)
    rows[1]["id"], rows[1]["candidates"][0]["scores"]["quality"] = "odd", 0.3
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        BlendError, match=r"row odd: loss: open_instruct_bce takes scores of 0 or 1, got quality: 0.3"
    ):
        run_ranker_training(settings(tmp_path, backbone, train=path, loss="open_instruct_bce"))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("hinge", "unknown loss 'hinge', expected one of instructgpt, bce, mse, open_instruct_bce, bradley_terry"),
        ("bradley_terry:margin=-1", "margin: expected greater than or equal to 0"),
        ({"margin": 1}, "kind is required"),
    ],
)
def test_a_loss_that_does_not_exist_is_one_clear_line(tmp_path: Path, loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, tmp_path, loss=loss)


def test_judgements_have_their_own_loss_and_all_their_candidates(tmp_path: Path) -> None:
    judged = {"metrics": (), "judgements": JudgementPairs()}
    with pytest.raises(ValueError, match="judgements have the cross-entropy of their shares"):
        settings(tmp_path, tmp_path, loss="mse", **judged)
    with pytest.raises(ValueError, match="choose scored candidates, not judgements"):
        settings(tmp_path, tmp_path, candidate_models=("a",), **judged)


def test_loss_of_judged_pairs_is_the_weighted_cross_entropy_of_their_shares(backbone: Path) -> None:
    network, tokenizer = create_pairrm(str(backbone), PairBudget(32, 16), dropout=0.0)
    source = tokenizer.encode_source("Say it.")
    texts = [tokenizer.encode_candidate(text, len(source)) for text in ("acorn", "badge", "candle")]
    ids = torch.tensor([tokenizer.join(source, texts[0], texts[1]), tokenizer.join(source, texts[0], texts[2])])
    mask = torch.ones_like(ids)
    model = RankerLoss(network.eval(), AuxiliaryLosses())
    with torch.no_grad():
        found = model(ids, mask, torch.tensor([[0.5], [0.0]]), weights=torch.tensor([1.5, 0.5]))["loss"]
        share = torch.sigmoid(network.logits(ids, mask))
    of_each = -(torch.tensor([0.75, 0.5]) * share.log() + torch.tensor([0.25, 0.5]) * (1 - share).log())
    torch.testing.assert_close(found, (of_each * torch.tensor([1.5, 0.5])).mean())


def test_accuracy_counts_the_preferred_side() -> None:
    labels = torch.tensor([[0.5], [-0.5], [0.5], [0.0]])
    assert pair_is_right(torch.tensor([1.0, -2.0, -0.1, 1.0]), labels).tolist() == [1, 1, 0, -1]


def test_training_learns_saves_and_resumes_to_the_same_weights(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, backbone)
    measured = run_ranker_training(config)
    assert 0 <= measured["eval_accuracy"] <= 1
    told = capsys.readouterr()
    assert "ranker: step 40/40" in told.err
    assert "held-out accuracy" in told.err
    assert "{" not in told.err  # no dictionaries

    output = Path(config.output)
    state = json.loads((output / "checkpoints" / "checkpoint-40" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert losses[-1] < 0.75 * losses[0]

    network, tokenizer = load_pairrm(str(output))
    assert tokenizer.budget == PairBudget(32, 16)
    assert not any(
        "reference_head" in name or "right_head" in name for name in load_file(output / "model.safetensors")
    )

    stopped = tmp_path / "stopped"
    shutil.copytree(output / "checkpoints", stopped / "checkpoints")
    for last in ("optimizer.pt", "trainer_state.json"):  # as a kill leaves it, halfway through a checkpoint
        (stopped / "checkpoints" / "checkpoint-40" / last).unlink()
    run_ranker_training(settings(tmp_path, backbone, output=str(stopped)))
    assert "step 10/40" not in capsys.readouterr().err  # it went on from step 20
    resumed, _ = load_pairrm(str(stopped))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_causal_lm_is_a_backbone_like_an_encoder(tmp_path: Path) -> None:
    """A short run changes all of its weights, resumes from its checkpoint, and saves what the ranker loads."""
    config = settings(tmp_path, PRESETS / "miniature" / "alder", auxiliary=AuxiliaryLosses())
    run_ranker_training(config)
    state = json.loads((tmp_path / "ranker" / "checkpoints" / "checkpoint-40" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert losses[-1] < losses[0]
    network, tokenizer = load_pairrm(config.output)
    assert isinstance(tokenizer, PromptPairTokenizer)
    before, _ = create_pairrm(str(PRESETS / "miniature" / "alder"), PairBudget(32, 16))
    changed = [not torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True)]
    assert all(changed)


def test_a_long_context_encoder_is_trained_on_long_pairs(tmp_path: Path) -> None:
    """ModernBERT learns from pairs of more than a thousand tokens, whose words that differ are at their ends."""
    save_blank_modernbert(tmp_path / "backbone", seed=0)
    filling = " ".join(WORDS * 64)
    rows = [
        row | {"candidates": [one | {"text": f"{filling} {one['text']}"} for one in row["candidates"]]}
        for row in make_rows(8, 0)
    ]
    few = {"max_steps": 2, "batch_size": 1, "log_every": 1, "save_every": 2}
    config = settings(
        tmp_path,
        tmp_path / "backbone",
        train=write(tmp_path / "long.jsonl", rows),
        heldout=None,
        source_max_length=32,
        candidate_max_length=600,
        auxiliary=AuxiliaryLosses(),
        optimization=few,
    )
    run_ranker_training(config)
    network, tokenizer = load_pairrm(config.output)
    source = tokenizer.encode_source("Repeat:")
    texts = [tokenizer.encode_candidate(one["text"], len(source)) for one in rows[0]["candidates"]]
    assert len(tokenizer.join(source, *texts)) > 1000
    before, _ = create_pairrm(str(tmp_path / "backbone"), PairBudget(32, 600))
    layers = zip(network.pretrained_model.parameters(), before.pretrained_model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in layers)


def test_auxiliary_losses_are_refused_on_a_causal_lm(tmp_path: Path) -> None:
    with pytest.raises(BlendError, match="auxiliary losses need an encoder"):
        run_ranker_training(settings(tmp_path, PRESETS / "miniature" / "alder"))


def test_a_person_sees_a_bar(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    run_ranker_training(
        settings(tmp_path, backbone, optimization={"max_steps": 2, "log_every": 1, "evaluate_every": 2})
    )
    told = capsys.readouterr().err
    assert "━" in told
    assert "2/2" in told
    assert "step 1/2" not in told


def test_checkpoints_of_another_run_are_refused(backbone: Path, tmp_path: Path) -> None:
    run_ranker_training(settings(tmp_path, backbone, optimization={"max_steps": 1, "save_every": 1}))
    record = tmp_path / "ranker" / "checkpoints" / "settings.json"
    kept = json.loads(record.read_text())
    assert kept.pop("judgements") is None  # an earlier version has not had it: that is no change
    record.write_text(json.dumps(kept))
    with pytest.raises(BlendError, match=r"other settings \(optimization\.learning_rate: 0\.001 -> 0\.002\)"):
        run_ranker_training(
            settings(tmp_path, backbone, optimization={"max_steps": 1, "save_every": 1, "learning_rate": 2e-3})
        )


def test_the_best_checkpoint_can_be_kept(backbone: Path, tmp_path: Path) -> None:
    """With a learning rate that destroys the model, the best weights are not the last ones."""
    destroying = {
        "learning_rate": 0.5,
        "schedule": "constant",
        "max_steps": 3,
        "evaluate_every": 1,
        "save_every": 1,
        "keep_checkpoints": 3,
        "log_every": 1,
    }
    measured = run_ranker_training(settings(tmp_path, backbone, optimization=destroying | {"result": "best"}))
    state = json.loads((tmp_path / "ranker" / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    losses = [line["eval_loss"] for line in state["log_history"] if "eval_loss" in line]
    assert measured["eval_loss"] == pytest.approx(min(losses))


def test_the_checkpoint_that_chooses_best_can_be_kept(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the score of the chosen candidates, which the destroyed ranker of the last step does not choose by."""
    destroying = {
        "learning_rate": 0.5,
        "schedule": "constant",
        "max_steps": 3,
        "evaluate_every": 1,
        "save_every": 1,
        "keep_checkpoints": 3,
        "result": "best",
        "select_by": "dev_score",
    }
    heldout = write(tmp_path / "few.jsonl", make_rows(12, 3))
    measured = run_ranker_training(settings(tmp_path, backbone, heldout=heldout, optimization=destroying))
    state = json.loads((tmp_path / "ranker" / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    scores = [line["eval_dev_score"] for line in state["log_history"] if "eval_loss" in line]
    assert len(scores) == 3
    assert measured["eval_dev_score"] == max(scores) == state["best_metric"]
    assert measured["eval_quality/oracle"] == 1.0
    assert measured["eval_quality/random"] == 0.5
    assert measured["eval_quality/gain"] == pytest.approx(measured["eval_quality/selected"] - 0.5)
    told = capsys.readouterr()
    assert re.search(
        r"step 1/3  held-out loss .* dev score [\d.]+  quality: selected [\d.]+, oracle 1, ran", told.err
    )
    assert f"dev score {measured['eval_dev_score']:.4g}" in told.out


def test_a_training_ends_early_without_improvement(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = {
        "learning_rate": 1e-9,  # nothing improves by a tenth
        "early_stopping": {"patience": 2, "threshold": 0.1},
        "select_by": "accuracy",
        "evaluate_every": 1,
        "max_steps": 9,
    }
    run_ranker_training(settings(tmp_path, backbone, heldout_limit=4, optimization=stopping))
    assert "ranker: stopped early at step 3/9" in capsys.readouterr().err


def test_a_failed_training_says_so_and_leaves_a_good_output(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At chance with a learning rate near 0, a leak, and a loss that is not a number."""
    still: dict[str, Any] = {"max_steps": 1, "save_every": 1, "evaluate_every": 1, "learning_rate": 1e-9}
    output = tmp_path / "ranker"
    output.mkdir()
    (output / "config.json").write_text("of an earlier training")
    others = write(tmp_path / "others.jsonl", [row | {"instruction": "Say:"} for row in make_rows(12, 2)])
    with pytest.raises(
        FailedTrainingError, match=r"ranker: failed: .*at chance on held-out pairs.*nothing is saved"
    ):
        run_ranker_training(settings(tmp_path, backbone, heldout=others, optimization=still, on_failure="fail"))
    assert (output / "config.json").read_text() == "of an earlier training"
    assert {file.name for file in output.iterdir()} <= {"config.json", "checkpoints", "data"}
    shutil.rmtree(output / "checkpoints")

    train = str(tmp_path / "train.jsonl")
    with pytest.raises(
        FailedTrainingError, match=r"leak: the prompts of 400 of 400 held-out rows are in the training"
    ):
        run_ranker_training(settings(tmp_path, backbone, heldout=train, optimization=still, on_failure="fail"))
    capsys.readouterr()

    run_ranker_training(settings(tmp_path, backbone, heldout=train, heldout_limit=3, optimization=still))
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told[0].startswith("ranker: warning: leak: the prompts of 3 of 3 held-out rows")  # before training too
    assert told[0] in told[1:]
    assert load_pairrm(str(output))
    shutil.rmtree(output / "checkpoints")

    weights = (output / "model.safetensors").read_bytes()
    exploding = {"max_steps": 4, "log_every": 1, "learning_rate": 1e38, "schedule": "constant"}
    with pytest.raises(FailedTrainingError, match=r"ranker: diverged: .*nothing is saved"):
        run_ranker_training(settings(tmp_path, backbone, optimization=exploding))
    assert (output / "model.safetensors").read_bytes() == weights


def test_rows_that_teach_nothing_are_one_clear_line(backbone: Path, tmp_path: Path) -> None:
    unscored = make_rows(1, 0)
    del unscored[0]["candidates"][1]["scores"]
    equal = make_rows(2, 0)
    for row in equal:
        for candidate in row["candidates"]:
            candidate["scores"]["quality"] = 0.5
    cases = {
        r"candidate 1 lacks scores\.quality; it has no scores": unscored,
        "no row has two candidates with different texts and different scores": equal,
        "expected a list": [{"instruction": "x", "candidates": "none"}],
        "no rows": [],
    }
    for number, (message, rows) in enumerate(cases.items()):
        path = write(tmp_path / f"{number}.jsonl", rows)
        with pytest.raises(BlendError, match=message) as caught:
            run_ranker_training(settings(tmp_path, backbone, train=path, heldout=None))
        assert "\n" not in str(caught.value)
    with pytest.raises(BlendError, match=r"lacks scores\.other; it has quality"):
        run_ranker_training(settings(tmp_path, backbone, metrics=("other",)))


def test_the_presets_are_the_papers_settings() -> None:
    ranker = load(PRESETS / "train-ranker.yaml", RankerTraining)
    assert ranker.backbone == "microsoft/deberta-v3-large"
    assert (ranker.source_max_length, ranker.candidate_max_length) == (128, 128)
    assert ranker.pairs == PairSampling(sampling="top_bottom", per_row=5)
    assert (ranker.optimization.learning_rate, ranker.optimization.epochs) == (1e-5, 5)
    assert not ranker.auxiliary.wanted
    fuser = load(PRESETS / "train-fuser.yaml", FuserTraining)
    assert fuser.model == "google/flan-t5-xl"
    assert (fuser.max_length, fuser.candidate_max_length, fuser.top_k) == (1024, 128, 3)
    assert fuser.optimization.learning_rate == 5e-5


def test_contradicting_settings_are_mistakes() -> None:
    preset = PRESETS / "train-ranker.yaml"
    with pytest.raises(ConfigError, match="needs heldout rows"):
        load(preset, RankerTraining, ["heldout=null"])
    with pytest.raises(ConfigError, match="multiple of evaluate_every"):
        load(preset, RankerTraining, ["optimization.evaluate_every=300"])
    with pytest.raises(ConfigError, match="shorter than one candidate"):
        load(PRESETS / "train-fuser.yaml", FuserTraining, ["max_length=100"])


def voted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a judgement in place of scores."""
    made = []
    for row in rows:
        best = max((0, 1), key=lambda at: row["candidates"][at].pop("scores")["quality"])
        made.append(row | {"judgements": [{"judge": "j", "left": best, "right": 1 - best, "preferred": "left"}]})
    return made


def test_a_ranker_goes_on_from_votes_and_is_measured_before_and_after(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", voted(make_rows(10, seed))) for seed, name in enumerate(FILES)}
    golden = GOLDEN / "checkpoints" / "PairRM-hf"
    assert [is_pairranker(str(one)) for one in (golden, backbone)] == [True, False]
    changes = {"metrics": (), "judgements": {}, "auxiliary": AuxiliaryLosses(), **files}
    run_ranker_training(settings(tmp_path, golden, **changes, optimization={"max_steps": 1, "batch_size": 2}))
    out = capsys.readouterr().out
    assert re.search(r"ranker, before training: held-out accuracy [01]\.\d{3} \(95% interval", out)
    assert re.search(r"ranker, in both orders: held-out accuracy [01]\.\d{3} \(95% interval", out)
    assert re.search(r"ranker, by training: held-out accuracy [+-]\d\.\d{3} \(95% interval", out)


FILES = ("train", "heldout")


def test_scores_or_judgements_are_to_be_named() -> None:
    preset = PRESETS / "train-ranker.yaml"
    for changes in (["metrics=[]"], ["judgements={}"]):
        with pytest.raises(ConfigError, match="expected either metrics"):
            load(preset, RankerTraining, changes)
    assert load(preset, RankerTraining, ["metrics=[]", "judgements={ties: drop}"]).judgements


def test_missing_backbone_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        run_ranker_training(settings(tmp_path, tmp_path / "nowhere"))

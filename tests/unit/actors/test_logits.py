"""Logits processors of sampling settings, against transformers' own arguments and OpenAI's formula of penalties."""

from typing import Any

import pytest
import torch
from tiny_models import save_plain_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm_blender_ray.actors.logits import AnswerPenalty, GumbelNoise, LogprobRecorder, logits_processors
from llm_blender_ray.configs.schema import Sampling

CPU = torch.device("cpu")
PROMPT = [[3, 4, 5, 4]]


def test_gumbel_noise_samples_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 20_000
    torch.manual_seed(0)
    noise = GumbelNoise([None] * rows, torch.device("cpu"))
    scores = noise(torch.empty(0), probabilities.log().repeat(rows, 1))
    counts = torch.bincount(scores.argmax(dim=1), minlength=5)
    five_sigma = 5 * (rows * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - rows * probabilities).abs() <= five_sigma).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(save_plain_model(tmp_path_factory.mktemp("plain"))).eval()


def generated(model: PreTrainedModel, sampling: Sampling | None, **options: Any) -> list[int]:
    """New tokens of a greedy answer, with our processors or with transformers' own arguments."""
    ends = model.generation_config.eos_token_id
    more = {}
    if sampling is not None:
        more["logits_processor"] = logits_processors(
            sampling,
            [None],
            prompt_length=len(PROMPT[0]),
            ends=[ends] if isinstance(ends, int) else ends,
            device=CPU,
        )
    ids = torch.tensor(PROMPT)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, **more, **options
    )
    return output[0, len(PROMPT[0]) :].tolist()


@pytest.mark.parametrize(
    ("field", "value", "options"),
    [
        ("repetition_penalty", 1.7, {"repetition_penalty": 1.7}),
        ("min_tokens", 15, {"min_new_tokens": 15}),
        ("logit_bias", {7: 50.0, 9: -3.5}, {"sequence_bias": {(7,): 50.0, (9,): -3.5}}),
    ],
)
def test_an_option_does_what_transformers_own_does(
    model: PreTrainedModel, field: str, value: Any, options: dict[str, Any]
) -> None:
    ours = generated(model, Sampling.model_validate({field: value}))
    assert ours == generated(model, None, **options)
    if field != "min_tokens":  # this model's answers are long by themselves
        assert ours != generated(model, Sampling())


def test_min_tokens_bars_the_end(model: PreTrainedModel) -> None:
    processors = logits_processors(Sampling(min_tokens=2), [None], prompt_length=4, ends=[1, 2], device=CPU)
    for length, barred in ((4, True), (5, True), (6, False)):
        scores = processors(torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 5))
        assert scores.isneginf()[0].tolist() == [False, barred, barred, False, False]


def test_penalties_count_the_answer_alone() -> None:
    ids = torch.tensor([[0, 1, 2, 2, 3], [0, 0, 4, 4, 4]])
    scores = AnswerPenalty(0.5, 0.25, 2)(ids, torch.zeros(2, 5))
    assert scores.tolist() == [[0, 0, -1.25, -0.75, 0], [0, 0, 0, 0, -1.75]]


def test_drawn_tokens_pass_every_cut() -> None:
    """min_p counts from the likeliest token, top_k and top_p after it."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for settings, possible in (
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 0.5, "top_p": 0.6}, {0}),  # 0.625 of what min_p left
        ({"min_p": 0.05, "top_k": 2}, {0, 1}),
    ):
        rows = 2_000
        processors = logits_processors(
            Sampling(temperature=1.0, **settings), range(rows), prompt_length=1, ends=[], device=CPU
        )
        scores = processors(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1))
        assert set(scores.argmax(dim=1).tolist()) == possible, settings


def test_what_shapes_draws_leaves_greedy_decoding_alone() -> None:
    sampling = Sampling(min_p=0.1, top_p=0.9, top_k=3, seed=1)
    assert len(logits_processors(sampling, [None], prompt_length=1, ends=[0], device=CPU)) == 0


def test_logprobs_are_the_model_s_own() -> None:
    recorder = LogprobRecorder(2)
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]], dtype=torch.bfloat16)
    assert recorder(torch.empty(0), logits) is logits
    expected = logits.float().log_softmax(-1)
    first, second = recorder.read([0, 2])
    assert [token for token, _ in first] == [0, 1, 2] and [token for token, _ in second] == [2, 2, 0]
    assert torch.allclose(torch.tensor([value for _, value in first]), expected[0, [0, 1, 2]])
    assert second[0] == second[1] and second[0][1] == pytest.approx(float(expected[1, 2]))
    assert [len(row) for row in recorder.read([1, 1])] == [3, 3]

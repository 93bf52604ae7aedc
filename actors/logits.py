"""Sampling settings as transformers' logits processors, in vLLM's order, and the log-probabilities before them.

The order decides results where several are set: logit_bias, min_tokens, repetition_penalty, frequency_penalty and
presence_penalty, temperature, min_p, top_k, top_p.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_blender_ray.configs.schema import Sampling


def logits_processors(
    sampling: Sampling,
    seeds: Sequence[int | None],
    *,
    prompt_length: int,
    ends: Iterable[int],
    device: torch.device,
) -> LogitsProcessorList:
    """Make processors that turn the logits of B rows into scores whose argmax is the next token.

    Args:
        sampling: The settings of all rows, apart from their seeds.
        seeds: B, one per row.
        prompt_length: Ids of every row, padding included, in front of its answer. A repetition penalty counts all
            of them as the prompt, so padding has to be tokens of the row's own prompt.
        ends: Tokens that end an answer.
        device: Of the logits.

    Returns:
        The processors; none for plain greedy decoding or a beam search.
    """
    made = LogitsProcessorList()
    if sampling.logit_bias:
        made.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias.items()]))
    if sampling.min_tokens and (end_ids := list(ends)):
        made.append(MinNewTokensLengthLogitsProcessor(prompt_length, sampling.min_tokens, end_ids, str(device)))
    if sampling.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.frequency_penalty or sampling.presence_penalty:
        made.append(AnswerPenalty(sampling.frequency_penalty, sampling.presence_penalty, prompt_length))
    if sampling.temperature == 0 or sampling.num_beams > 1:
        return made
    made.append(TemperatureLogitsWarper(sampling.local_temperature))
    if sampling.min_p:
        made.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k is not None:
        made.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        made.append(TopPLogitsWarper(sampling.top_p))
    made.append(GumbelNoise(seeds, device))
    return made


class ForcedTokens(LogitsProcessor):
    """Leaves rows whose next token is given no other choice."""

    def __init__(self, tokens: Callable[[], Sequence[int | None]]) -> None:
        """Set what gives the tokens.

        Args:
            tokens: The next token of each of B rows; None: any.
        """
        self._tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        """Force the tokens (transformers' hook)."""
        for row, token in enumerate(self._tokens()):
            if token is not None:
                scores_B_V[row] = -torch.inf
                scores_B_V[row, token] = 0.0
        return scores_B_V


class AnswerPenalty(LogitsProcessor):
    """OpenAI's penalties on tokens that are in the answer already, of which transformers has neither.

    Of the logits, `frequency` is subtracted for each time that a token is in the answer, and `presence` once.
    """

    def __init__(self, frequency: float, presence: float, prompt_length: int) -> None:
        self._frequency, self._presence, self._prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        """Subtract the penalties (transformers' hook)."""
        answer_B_T = input_ids[:, self._prompt_length :]
        counts_B_V = torch.zeros_like(scores_B_V).scatter_add_(
            1, answer_B_T, torch.ones_like(answer_B_T, dtype=scores_B_V.dtype)
        )
        return scores_B_V - self._frequency * counts_B_V - self._presence * (counts_B_V > 0)


class GumbelNoise(LogitsProcessor):
    """Makes the argmax an exact sample of softmax(scores): the Gumbel-max trick.

    Step t of an answer with a seed gets the noise of this seed at step t, whatever the batch; answers without one
    (None) get random noise. `seeds` is B, one per answer.
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device) -> None:
        rows: dict[int | None, list[int]] = {}
        for row, seed in enumerate(seeds):
            rows.setdefault(seed, []).append(row)
        self._free = torch.tensor(rows.pop(None, []), dtype=torch.long, device=device)
        self._seeded = [
            (torch.Generator(device).manual_seed(seed), torch.tensor(of_seed, device=device))
            for seed, of_seed in rows.items()
            if seed is not None
        ]

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        """Add the noise (transformers' hook)."""
        noise_B_V = torch.empty_like(scores_B_V)
        noise_B_V[self._free] = torch.empty_like(scores_B_V[: len(self._free)]).exponential_()
        for generator, rows in self._seeded:
            noise_B_V[rows] = torch.empty_like(scores_B_V[0]).exponential_(generator=generator)
        return scores_B_V - noise_B_V.log()


class LogprobRecorder(LogitsProcessor):
    """Log-probabilities of the last step's tokens by the model alone. It has to be the first processor."""

    def __init__(self, top: int) -> None:
        """Record.

        Args:
            top: How many of the likeliest tokens to read in addition to each chosen one.
        """
        self._top = top
        self._logprobs_B_V = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores_B_V: torch.Tensor) -> torch.Tensor:
        """Read the logits of a step (transformers' hook)."""
        self._logprobs_B_V = scores_B_V.float().log_softmax(-1)
        return scores_B_V

    def read(self, tokens: Sequence[int]) -> list[list[tuple[int, float]]]:
        """Log-probabilities of the step.

        Args:
            tokens: B, the token that each row got.

        Returns:
            Token ids with their log-probabilities for each row: the chosen one's, then the likeliest ones'.
        """
        chosen = torch.tensor(tokens, device=self._logprobs_B_V.device)
        own_B = self._logprobs_B_V.gather(1, chosen[:, None])[:, 0].tolist()
        values_B_K, ids_B_K = self._logprobs_B_V.topk(self._top)
        likeliest = zip(ids_B_K.tolist(), values_B_K.tolist(), strict=True)
        return [
            [(token, own), *zip(ids, values, strict=True)]
            for token, own, (ids, values) in zip(tokens, own_B, likeliest, strict=True)
        ]

"""`Blender`, in one process without Ray. The package's docstring lists the differences from the original.

`actors.ranker` and `actors.scorers` score pairs, `actors.fusers.genfuser` writes answers.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.fusers.genfuser import GenFuserModel
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.configs.strategies import Bubble, Full
from llm_blender_ray.pipelines.llm_blender import arguments
from llm_blender_ray.pipelines.llm_blender.arguments import (
    CONVERSATION,
    REFERENCES,
    Arrays,
    Candidates,
    Conversation,
)
from llm_blender_ray.pipelines.llm_blender.configs import (
    BlenderConfig,
    Device,
    GenFuserConfig,
    RankerConfig,
    fuser_settings,
    local_ranker,
)
from llm_blender_ray.pipelines.llm_blender.ranking import BOTH_ORDERS, LoadedRanker
from llm_blender_ray.pipelines.llm_blender.sampling import sample

_log = logging.getLogger(__name__)


class Blender:
    """Ranks candidates and fuses the best of them. Synchronous; works inside a running event loop too.

    Arguments shared by its methods: `inputs` and `instructions` (one text per row; a ranker reads them
    concatenated), `candidates` (a list of texts per row). `batch_size` of ranking methods and `disable_tqdm` have
    no effect. Wrong arguments raise ValueError, a missing ranker or fuser BlendError.
    """

    def __init__(
        self,
        blender_config: BlenderConfig | None = None,
        ranker_config: RankerConfig | None = None,
        fuser_config: GenFuserConfig | None = None,
    ) -> None:
        """Load the models that have a config; `loadranker` and `loadfuser` load others.

        Raises:
            ModelLoadError: A model cannot be used.
        """
        self.blender_config = blender_config or BlenderConfig()
        self.ranker_config: RankerConfig | None = None
        self.fuser_config: GenFuserConfig | None = None
        self._ranker: LoadedRanker | None = None
        self._fuser: GenFuserModel | None = None
        if ranker_config is not None:
            path = ranker_config.load_checkpoint or ranker_config.model_name
            if path is None:
                raise ValueError("ranker_config: give load_checkpoint, a folder or hub id")
            self.loadranker(path, **asdict(ranker_config))
        if fuser_config is not None:
            self.loadfuser(fuser_config.model_name, **asdict(fuser_config))

    def loadranker(self, ranker_path: str, device: Device = None, **kwargs: Any) -> None:
        """Load a PairRanker in any published layout, or a reward model (sequence classification, one label).

        Args:
            ranker_path: Folder or hub id.
            device: Torch device; None: the config's, else the GPU if there is one.
            **kwargs: Fields of RankerConfig.

        Raises:
            ModelLoadError: The model cannot be used.
        """
        config = RankerConfig(**kwargs | {"load_checkpoint": str(ranker_path)})
        settings = local_ranker(str(ranker_path), config, device, config.device, self.blender_config.device)
        self._ranker = None  # frees its memory first
        self._ranker = LoadedRanker(settings)
        self.ranker_config = config
        _log.info("loaded ranker %s", ranker_path)

    def loadfuser(self, fuser_path: str, device: Device = None, **kwargs: Any) -> None:
        """Load a fuser.

        Args:
            fuser_path: Folder or hub id.
            device: Torch device; None: the config's, else the GPU if there is one.
            **kwargs: Fields of GenFuserConfig.

        Raises:
            ModelLoadError: The model cannot be used.
        """
        config = GenFuserConfig(**kwargs | {"model_name": str(fuser_path)})
        settings = fuser_settings(str(fuser_path), config, device, config.device, self.blender_config.device)
        self._fuser = None
        self._fuser = GenFuserModel(settings)
        self.fuser_config = config
        _log.info("loaded fuser %s", fuser_path)

    def rank(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        disable_tqdm: bool = False,
        *,
        source_max_length: int | None = None,
        candidate_max_length: int | None = None,
    ) -> Arrays:
        """Rank by all pairs in both orders: int32 [rows, n], 1 is the best, equal scores share the better rank.

        Args:
            return_scores: Return float32 scores instead, higher is better: the mean over j of
                logit(i, j) - logit(j, i); for a reward model its rewards.
            source_max_length: Tokens; a value other than the last call's reloads the ranker.
            candidate_max_length: Likewise.
        """
        ranker = self._loaded(source_max_length, candidate_max_length)
        rows = arguments.rows(arguments.sources(inputs, instructions), candidates)
        scores = [np.array(row, np.float32) for row in ranker.scores(rows)]
        if return_scores:
            return arguments.stacked(scores, np.float32)
        return arguments.stacked([arguments.ranks(row) for row in scores], np.int32)

    def rank_with_ref(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        ref_mode: str = "longest",
        ref_candidates: Sequence[str] | None = None,
        *,
        mode: str | None = None,
        source_max_length: int | None = None,
        candidate_max_length: int | None = None,
    ) -> Arrays:
        """Rank like `rank`, from n comparisons with one reference instead of n(n-1).

        Args:
            return_scores: Return float64 scores instead: how much better than the reference (0).
            ref_mode: longest, shortest, median_length (in characters), first or last candidate.
            ref_candidates: The references themselves, one per input; override `ref_mode`.
            mode: A mode of `compare`, the reference being A; or a `ref_mode`, as in the original's README.
        """
        if mode in REFERENCES:
            ref_mode, mode = str(mode), None
        ranker = self._loaded(source_max_length, candidate_max_length)
        rows = arguments.rows(arguments.sources(inputs, instructions), candidates)
        if ref_candidates is None:
            references = [arguments.reference(texts, ref_mode) for _, texts in rows]
        else:
            references = arguments.texts("ref_candidates", ref_candidates, len(rows))
        matchups = [
            Matchup(prompt, against, text)
            for (prompt, texts), against in zip(rows, references, strict=True)
            for text in texts
        ]
        flat = 0.0 - ranker.compare(matchups, mode or BOTH_ORDERS).astype(np.float64)
        ends = np.cumsum([len(texts) for _, texts in rows], dtype=np.int64)
        scores = np.split(flat, ends[:-1]) if rows else []
        if return_scores:
            return arguments.stacked(scores, np.float64)
        return arguments.stacked([arguments.ranks(row) for row in scores], np.int32)

    def compare(
        self,
        inputs: Sequence[str],
        candidates_A: Sequence[str],
        candidates_B: Sequence[str],
        instructions: Sequence[str] | None = None,
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = "[A,B]+[B,A]",
        disable_tqdm: bool = False,
    ) -> NDArray[Any]:
        """Whether A is better than B: bool [rows].

        Args:
            return_logits: Return float32 logits instead, positive where A is better.
            mode: Which is left: "[A,B]" gives logit(A, B); "[A,B]+[B,A]" gives logit(A, B) - logit(B, A); "[B,A]"
                gives logit(B, A), so that, as in the original, B is the better one. For a reward model all are
                reward(A) - reward(B).
        """
        ranker = self._loaded()
        prompts = arguments.sources(inputs, instructions)
        left = arguments.texts("candidates_A", candidates_A, len(prompts))
        right = arguments.texts("candidates_B", candidates_B, len(prompts))
        logits = ranker.compare(list(map(Matchup, prompts, left, right)), mode)
        return logits if return_logits else logits > 0

    def compare_conversations(
        self,
        conversations_a: Sequence[Conversation],
        conversations_b: Sequence[Conversation],
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = "[A,B]+[B,A]",
    ) -> NDArray[Any]:
        """`compare` for conversations: turns `{"role": ..., "content": ...}`, USER and ASSISTANT alternating.

        Both conversations of a pair have the same USER turns.
        """
        if len(conversations_a) != len(conversations_b):
            raise ValueError(f"{len(conversations_a)} conversations_a but {len(conversations_b)} conversations_b")
        inputs: list[str] = []
        left: list[str] = []
        right: list[str] = []
        for i, pair in enumerate(zip(conversations_a, conversations_b, strict=True)):
            asked, answers_a = arguments.turns(f"conversations_a[{i}]", pair[0])
            asked_b, answers_b = arguments.turns(f"conversations_b[{i}]", pair[1])
            if asked != asked_b:
                raise ValueError(f"conversations_a[{i}] and conversations_b[{i}] differ in their USER turns")
            user = (f"USER: {text}\nAssistant: <Response {turn}>" for turn, text in enumerate(asked, 1))
            inputs.append("\n".join(user))
            for answers, side in ((answers_a, left), (answers_b, right)):
                side.append("\n".join(f"<Response {turn}>: {text}" for turn, text in enumerate(answers, 1)))
        instructions = [CONVERSATION] * len(inputs)
        return self.compare(inputs, left, right, instructions, return_logits=return_logits, mode=mode)

    def get_best_of_n(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
    ) -> list[str] | list[list[str]]:
        """The best candidate of every row.

        Args:
            pairrm_cmp_type: "bubble" compares n - 1 pairs one after the other; "full" compares all, like `rank`.
            return_all: Return all candidates of every row, best first; bubble then compares as many pairs as full.
        """
        return self._of_n(inputs, candidates, instructions, pairrm_cmp_type, return_all, worst=False)

    def get_worst_of_n(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
    ) -> list[str] | list[list[str]]:
        """The worst candidate of every row, or with `return_all` all, worst first; else like `get_best_of_n`."""
        return self._of_n(inputs, candidates, instructions, pairrm_cmp_type, return_all, worst=True)

    def fuse(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        batch_size: int = 4,
        **generate_kwargs: Any,
    ) -> list[str]:
        """Write one answer per row from its candidates, which come best first.

        Args:
            batch_size: Inputs decoded together; affects memory and speed, not the answers of greedy or beam search.
            **generate_kwargs: `candidate_max_length` (tokens), and arguments of transformers' `generate`. Default:
                4 beams and `candidate_max_length` new tokens.
        """
        fuser = self._loaded_fuser()
        rows = arguments.rows(arguments.prompts(inputs, instructions), candidates)
        if generate_kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences: a row is fused into one answer")
        try:
            return fuser.fuse_all(rows, max_batch_size=batch_size, **generate_kwargs)
        except KeyError as error:
            raise ValueError(f"candidates: the fuser's tokenizer has no {error} to mark that many with") from error

    def rank_and_fuse(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 4,
        top_k: int = 3,
        **generate_kwargs: Any,
    ) -> tuple[list[str], Arrays]:
        """Rank, then write answers from the `top_k` best candidates of every row.

        Returns:
            The answers, and what `rank` returns.
        """
        self._loaded_fuser()  # fails before the ranker works
        ranked = self.rank(inputs, candidates, instructions, return_scores=return_scores)
        ranks = [-row for row in ranked] if return_scores else ranked
        best = arguments.get_topk_candidates_from_ranks(ranks, candidates, top_k)
        return self.fuse(inputs, best, instructions, batch_size, **generate_kwargs), ranked

    def n_generate(
        self,
        model: Any,
        model_tokenizer: Any,
        inputs: Sequence[str],
        instructions: Sequence[str] | None = None,
        n: int = 5,
        sampling_mode: str | None = "top_p_sampling",
        batch_size: int = 4,
        **generate_kwargs: Any,
    ) -> list[list[str]]:
        """N answers of one LLM to every input; an instruction precedes its input on a line of its own.

        Args:
            model: A transformers model that generates, causal or encoder-decoder, or a `vllm.LLM`.
            sampling_mode: "top_p_sampling", "top_k_sampling" (both at temperature 0.7), or None: generate_kwargs
                alone.
            batch_size: Inputs decoded together, n answers each; vLLM batches by itself.
            **generate_kwargs: Arguments of `generate` (of vLLM: of SamplingParams, max_new_tokens being
                max_tokens). Default length: the model's generation config, else the model's context.
        """
        prompts = arguments.prompts(inputs, instructions)
        written = [prompt.input if instructions is None else "\n".join(prompt.texts()) for prompt in prompts]
        return sample(model, model_tokenizer, written, n, sampling_mode, batch_size, generate_kwargs)

    def best_of_n_generate(
        self,
        model: Any,
        model_tokenizer: Any,
        inputs: Sequence[str],
        instructions: Sequence[str] | None = None,
        n: int = 5,
        sampling_mode: str | None = "top_p_sampling",
        batch_size: int = 4,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        **generate_kwargs: Any,
    ) -> list[str] | list[list[str]]:
        """The best of n answers of one LLM to every input: `n_generate`, then `get_best_of_n`."""
        if n > 1:
            self._loaded()  # fails before the LLM works
        sampled = self.n_generate(
            model, model_tokenizer, inputs, instructions, n, sampling_mode, batch_size, **generate_kwargs
        )
        return self.get_best_of_n(inputs, sampled, instructions, pairrm_cmp_type, return_all)

    def _of_n(
        self,
        inputs: Sequence[str],
        candidates: Candidates,
        instructions: Sequence[str] | None,
        pairrm_cmp_type: str,
        return_all: bool,
        *,
        worst: bool,
    ) -> list[str] | list[list[str]]:
        """See `get_best_of_n` and `get_worst_of_n`."""
        if pairrm_cmp_type not in ("bubble", "full"):
            raise ValueError(f"pairrm_cmp_type {pairrm_cmp_type!r}: expected bubble or full")
        strategy = Bubble(passes=None if return_all else 1) if pairrm_cmp_type == "bubble" else Full()
        rows = arguments.rows(arguments.sources(inputs, instructions), candidates)
        if all(len(texts) == 1 for _, texts in rows):  # needs no ranker
            ordered = [texts for _, texts in rows]
        else:
            rankings = self._loaded().rankings(rows, strategy, worst_first=worst)
            pairs = zip(rows, rankings, strict=True)
            ordered = [[texts[at] for at in ranking.order] for (_, texts), ranking in pairs]
        return ordered if return_all else [texts[0] for texts in ordered]

    def _loaded(
        self, source_max_length: int | None = None, candidate_max_length: int | None = None
    ) -> LoadedRanker:
        """The ranker with these token lengths; None: those it was loaded with.

        Raises:
            BlendError: No ranker is loaded.
            ModelLoadError: It cannot be reloaded.
        """
        if self._ranker is None:
            raise BlendError("no ranker is loaded: call loadranker(path) first")
        self._ranker.use_lengths(source_max_length, candidate_max_length)
        return self._ranker

    def _loaded_fuser(self) -> GenFuserModel:
        if self._fuser is None:
            raise BlendError("no fuser is loaded: call loadfuser(path) first")
        return self._fuser

"""The drop-in for `llm_blender.Blender`: golden answers through its methods, and their arguments."""

import asyncio
import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DebertaV2ForSequenceClassification,
)

import llm_blender_ray.pipelines.llm_blender as llm_blender
from llm_blender_ray.actors.errors import BlendError, ModelLoadError
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.pipelines.llm_blender import (
    Blender,
    GenFuserConfig,
    RankerConfig,
    get_topk_candidates_from_ranks,
)
from llm_blender_ray.pipelines.llm_blender.ranking import ROWS_AT_A_TIME

CHECKPOINTS = GOLDEN / "checkpoints"
RANKED = json.loads((GOLDEN / "pairranker.json").read_text())["cases"]
CASES = [case for case in RANKED if "error" not in case]
ALDER = PRESETS / "miniature" / "alder"
FUSED = json.loads((GOLDEN / "genfuser.json").read_text())
DISTINCT = [case for case in CASES if len(set(case["candidates"])) == len(case["candidates"])]
TRIPLES = [case for case in DISTINCT if len(case["candidates"]) == 3]


def total_order(case: dict) -> list[int] | None:
    """The candidates best first, where the golden logits have no cycle among them."""
    logits = np.array(case["logits"])
    wins = (logits - logits.T > 0).sum(axis=1)
    return list(np.argsort(-wins)) if sorted(wins) == list(range(len(wins))) else None


ORDERED = [case for case in DISTINCT if total_order(case)]


def columns(cases: list[dict]) -> dict[str, Any]:
    names = {"inputs": "input", "candidates": "candidates", "instructions": "instruction"}
    return {argument: [case[column] for case in cases] for argument, column in names.items()}


@pytest.fixture(scope="module")
def blender() -> Blender:
    blender = llm_blender.Blender()
    blender.loadranker(str(CHECKPOINTS / "PairRM"), device="cpu")
    blender.loadfuser(str(CHECKPOINTS / "gen_fuser"), device="cpu")
    return blender


class TestRank:
    def test_golden_scores_and_ranks_of_rows_of_all_sizes(self, blender: Blender) -> None:
        ranks = blender.rank(**columns(CASES))
        scores = blender.rank(**columns(CASES), return_scores=True)
        assert isinstance(ranks, list) and len(ranks) == len(CASES)
        for case, its_ranks, its_scores in zip(CASES, ranks, scores, strict=True):
            assert its_scores == pytest.approx(np.array(case["scores_max_logits"]), abs=1e-4)
            if case in DISTINCT:
                assert its_ranks.tolist() == case["ranks"]

    def test_rows_of_one_size_make_an_array(self, blender: Blender) -> None:
        ranks = blender.rank(**columns(TRIPLES), batch_size=2, disable_tqdm=True)
        assert isinstance(ranks, np.ndarray) and ranks.dtype == np.int32
        assert ranks.tolist() == [case["ranks"] for case in TRIPLES]
        scores = blender.rank(**columns(TRIPLES), return_scores=True)
        assert isinstance(scores, np.ndarray) and scores.shape == ranks.shape and scores.dtype == np.float32

    def test_equal_candidates_share_the_better_rank(self, blender: Blender) -> None:
        ranks = blender.rank(["q"], [["a", "a", "a"]])
        assert ranks.tolist() == [[1, 1, 1]]

    def test_a_marker_in_a_text_does_not_stop_it(self, blender: Blender) -> None:
        case = next(case for case in RANKED if "error" in case)
        ranks = blender.rank(**columns([case]))
        assert sorted(ranks[0]) == list(range(1, len(case["candidates"]) + 1))

    def test_other_lengths_for_one_call(self, blender: Blender) -> None:
        row = {"inputs": ["word " * 200], "candidates": [["one " * 100 + "yes", "one " * 100 + "no"]]}
        short = blender.rank(**row, return_scores=True, source_max_length=16, candidate_max_length=8)
        assert short == pytest.approx(np.zeros((1, 2)), abs=1e-6)  # cut to the same
        long = blender.rank(**row, return_scores=True, source_max_length=16, candidate_max_length=200)
        assert abs(long[0, 0]) > 1e-3
        case = TRIPLES[0]
        again = blender.rank(**columns([case]), return_scores=True)
        assert again[0] == pytest.approx(case["scores_max_logits"], abs=1e-4)

    def test_works_inside_a_running_loop(self, blender: Blender) -> None:
        async def in_a_notebook() -> Any:
            return blender.rank(**columns(TRIPLES[:1]))

        assert asyncio.run(in_a_notebook()).tolist() == [TRIPLES[0]["ranks"]]

    def test_more_rows_than_are_played_together(self, blender: Blender) -> None:
        count = ROWS_AT_A_TIME + 3
        ranks = blender.rank(["a question"] * count, [["a", "b b b"], ["b b b", "a"]] * (count // 2) + [["a", "a"]])
        assert ranks.shape == (count, 2)
        assert sorted(ranks[0]) == [1, 2]
        assert (ranks[0:-1:2] == ranks[0]).all() and (ranks[1::2] == ranks[0][::-1]).all()
        assert ranks[-1].tolist() == [1, 1]

    def test_progress_is_logged_and_nothing_printed(
        self, blender: Blender, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO", logger="llm_blender_ray.pipelines.llm_blender"):
            blender.rank(**columns(TRIPLES))
            blender.compare(["q"], ["a"], ["b"])
        assert caplog.messages == [f"ranked {len(TRIPLES)} of {len(TRIPLES)} inputs", "scored 2 of 2 pairs"]
        assert capfd.readouterr() == ("", "")


class TestRankWithRef:
    def test_golden_rewards_against_the_longest(self, blender: Blender) -> None:
        rewards = blender.rank_with_ref(**columns(CASES), return_scores=True)
        for case, its_rewards in zip(CASES, rewards, strict=True):
            assert its_rewards == pytest.approx(np.array(case["rewards_longest"]), abs=1e-4)
        ranks = blender.rank_with_ref(**columns(TRIPLES))
        assert ranks.dtype == np.int32
        for case, its_ranks in zip(TRIPLES, ranks, strict=True):
            assert np.argsort(its_ranks).tolist() == np.argsort(-np.array(case["rewards_longest"])).tolist()

    @pytest.mark.parametrize("mode", ["shortest", "median_length", "first", "last"])
    def test_other_references(self, blender: Blender, mode: str) -> None:
        rewards = blender.rank_with_ref(**columns(DISTINCT), return_scores=True, ref_mode=mode)
        for case, its_rewards in zip(DISTINCT, rewards, strict=True):
            by_length = sorted(range(len(case["candidates"])), key=lambda i: len(case["candidates"][i]))
            places = {"shortest": by_length[0], "median_length": by_length[len(by_length) // 2]}
            ref = places.get(mode, 0 if mode == "first" else -1)
            logits = np.array(case["logits"])
            assert its_rewards == pytest.approx(logits[:, ref] - logits[ref, :], abs=1e-4)

    def test_mode_is_the_readmes_name_for_it_or_an_order(self, blender: Blender) -> None:
        row = columns(TRIPLES[:1])
        first = blender.rank_with_ref(**row, return_scores=True, ref_mode="first")
        assert np.array_equal(blender.rank_with_ref(**row, return_scores=True, mode="first"), first)
        one_order = blender.rank_with_ref(**row, return_scores=True, ref_mode="first", mode="[A,B]")
        assert one_order[0, 1] == pytest.approx(-TRIPLES[0]["logits"][0][1], abs=1e-4)

    def test_given_references(self, blender: Blender) -> None:
        row, given = columns(TRIPLES[:1]), [TRIPLES[0]["candidates"][1]]
        rewards = blender.rank_with_ref(**row, return_scores=True, ref_candidates=given, ref_mode="unread")
        logits = np.array(TRIPLES[0]["logits"])
        assert rewards[0] == pytest.approx(logits[:, 1] - logits[1, :], abs=1e-4)


class TestCompare:
    def pairs(self) -> dict[str, Any]:
        given = columns(CASES)
        sides = zip(*(texts[:2] for texts in given.pop("candidates")), strict=True)
        return given | dict(zip(("candidates_A", "candidates_B"), map(list, sides), strict=True))

    def test_golden_logits_in_each_order(self, blender: Blender) -> None:
        ab = np.array([case["compare_ab"] for case in CASES])
        ba = np.array([case["logits"][1][0] for case in CASES])
        for mode, expected in {"[A,B]": ab, "[B,A]": ba, "[A,B]+[B,A]": ab - ba}.items():
            logits = blender.compare(**self.pairs(), return_logits=True, mode=mode)
            assert logits.dtype == np.float32
            assert logits == pytest.approx(expected, abs=1e-4)
            better = blender.compare(**self.pairs(), mode=mode)
            assert better.dtype == np.bool_
            assert np.array_equal(better, logits > 0)

    def test_conversations_are_one_input_and_two_candidates(self, blender: Blender) -> None:
        def conversation(*texts: str) -> list[dict[str, str]]:
            return [{"role": ("USER", "ASSISTANT")[i % 2], "content": text} for i, text in enumerate(texts)]

        a = conversation("hello", "hi there", "a joke?", "no")
        b = conversation("hello", "what", "a joke?", "knock, knock")
        logits = blender.compare_conversations([a, b], [b, b], return_logits=True)
        one = blender.compare(
            [
                "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
                "USER: hello\nAssistant: <Response 1>\nUSER: a joke?\nAssistant: <Response 2>"
            ],
            ["<Response 1>: hi there\n<Response 2>: no"],
            ["<Response 1>: what\n<Response 2>: knock, knock"],
            return_logits=True,
        )
        assert logits[0] == pytest.approx(one[0], abs=1e-5)
        assert logits[0] != 0 and logits[1] == 0
        assert blender.compare_conversations([a], [b]).tolist() == [bool(one[0] > 0)]

    @pytest.mark.parametrize(
        ("a", "b", "says"),
        [
            ([("USER", "x")], [("USER", "x")], r"conversations_a\[0\].*in alternation"),
            ([("ASSISTANT", "x"), ("USER", "y")], [], r"conversations_a\[0\].*in alternation, got ASSISTANT, USER"),
            (
                [("USER", "x"), ("ASSISTANT", "y")],
                [("USER", "z"), ("ASSISTANT", "y")],
                "differ in their USER turns",
            ),
            ([("USER", "x"), ("ASSISTANT", "y")], [("USER", "x"), ("ASSISTANT", "y")] * 2, "differ in their USER"),
        ],
    )
    def test_conversations_that_do_not_match(self, blender: Blender, a: list, b: list, says: str) -> None:
        first, second = ([{"role": role, "content": text} for role, text in turns] for turns in (a, b))
        with pytest.raises(ValueError, match=says):
            blender.compare_conversations([first], [second])
        with pytest.raises(ValueError, match="1 conversations_a but 0"):
            blender.compare_conversations([first], [])


class TestOfN:
    @pytest.mark.parametrize("cmp_type", ["bubble", "full"])
    @pytest.mark.parametrize("worst", [False, True])
    def test_rows_that_have_an_order_come_in_it(self, blender: Blender, cmp_type: str, worst: bool) -> None:
        assert len(ORDERED) > 10 and max(len(case["candidates"]) for case in ORDERED) > 3
        choose = blender.get_worst_of_n if worst else blender.get_best_of_n
        chosen = choose(**columns(ORDERED), pairrm_cmp_type=cmp_type)
        sorted_out = choose(**columns(ORDERED), pairrm_cmp_type=cmp_type, return_all=True)
        for case, one, everyone in zip(ORDERED, chosen, sorted_out, strict=True):
            scores = np.array(case["scores_max_logits"])
            order = total_order(case) if cmp_type == "bubble" else np.argsort(-scores)
            texts = [case["candidates"][i] for i in order]
            assert everyone == (texts[::-1] if worst else texts)
            assert one == everyone[0]

    def test_where_there_are_cycles_all_come_back_and_the_first_is_the_best(self, blender: Blender) -> None:
        sorted_out = blender.get_best_of_n(**columns(DISTINCT), return_all=True)
        assert len(ORDERED) < len(DISTINCT)
        for case, texts in zip(DISTINCT, sorted_out, strict=True):
            assert sorted(texts) == sorted(case["candidates"])
        best = blender.get_best_of_n(**columns(DISTINCT))
        assert best == [texts[0] for texts in sorted_out]

    def test_one_candidate_needs_no_ranker(self) -> None:
        assert Blender().get_best_of_n(["q"], [["only"]]) == ["only"]
        assert Blender().get_worst_of_n(["q"], [["only"]], return_all=True) == [["only"]]


class TestFuse:
    def test_golden_texts(self, blender: Blender) -> None:
        fused = blender.fuse(**columns(FUSED["cases"]), batch_size=5, max_new_tokens=24)
        assert fused == [case["fused_beam4_max24"] for case in FUSED["cases"]]

    def test_a_call_brings_its_own_arguments(self, blender: Blender) -> None:
        case = columns(FUSED["cases"][:1])
        few = blender.fuse(**case, num_beams=1, max_new_tokens=3)
        many = blender.fuse(**case, num_beams=1, max_new_tokens=24)
        assert few != many and many[0].startswith(few[0].rstrip())
        torch.manual_seed(0)
        drawn = {blender.fuse(**case, num_beams=1, do_sample=True, max_new_tokens=24)[0] for _ in range(3)}
        assert len(drawn) > 1
        long = [["word " * 100]]
        assert blender.fuse(["q"], long, candidate_max_length=5) == blender.fuse(
            ["q"], [["word " * 101]], candidate_max_length=5
        )
        with pytest.raises(ValueError, match="num_return_sequences"):
            blender.fuse(**case, num_return_sequences=2)

    def test_more_candidates_than_marks(self, blender: Blender) -> None:
        with pytest.raises(ValueError, match="the fuser's tokenizer has no '<extra_id_100>'"):
            blender.fuse(["q", "q"], [["a"], ["a"] * 101])

    @pytest.mark.parametrize("return_scores", [False, True])
    def test_rank_and_fuse_fuses_the_best(self, blender: Blender, return_scores: bool) -> None:
        rows = columns(DISTINCT[:4])
        fused, ranked = blender.rank_and_fuse(**rows, top_k=2, max_new_tokens=8, return_scores=return_scores)
        best = [
            [text for _, text in sorted(zip(case["ranks"], case["candidates"], strict=True))[:2]]
            for case in DISTINCT[:4]
        ]
        assert fused == blender.fuse(rows["inputs"], best, rows["instructions"], max_new_tokens=8)
        alone = blender.rank(**rows, return_scores=return_scores)
        assert [row.tolist() for row in ranked] == [row.tolist() for row in alone]

    def test_rows_of_a_data_frame_with_an_index_of_its_own(self, blender: Blender) -> None:
        rows = columns(DISTINCT[:3])
        frame = {name: pd.Series(list(values), index=[7, 3, 5]) for name, values in rows.items()}
        frame["candidates"] = frame["candidates"].map(
            lambda texts: pd.Series(texts, index=range(9, 9 + len(texts)))
        )
        fused, ranked = blender.rank_and_fuse(**frame, top_k=2, max_new_tokens=4)
        expected, expected_ranks = blender.rank_and_fuse(**rows, top_k=2, max_new_tokens=4)
        assert fused == expected
        assert [row.tolist() for row in ranked] == [row.tolist() for row in expected_ranks]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(ALDER)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ALDER, padding_side="right")


@pytest.fixture(scope="module")
def chooser() -> Blender:
    blender = Blender()
    blender.loadranker(str(PRESETS / "miniature" / "ranker"), device="cpu")
    return blender


class TestSampling:
    """With an LLM of the miniature, and the miniature's ranker to choose."""

    def rows(self, count: int) -> list[dict]:
        lines = (PRESETS / "miniature" / "heldout.jsonl").read_text().splitlines()[:count]
        return [json.loads(line) for line in lines]

    def prompts(self, count: int) -> list[str]:
        texts = [f"{row['instruction']}\n{row['input']}" for row in self.rows(count)]
        return [f"<|user|>{text}<|end|><|assistant|>" for text in texts]

    @pytest.mark.parametrize("pad", ["<|pad|>", None])
    def test_a_batch_is_padded_on_the_left_whatever_the_tokenizer(self, model: Any, pad: str | None) -> None:
        tokenizer = AutoTokenizer.from_pretrained(ALDER, padding_side="right", pad_token=pad)
        prompts, options = self.prompts(8), {"n": 1, "sampling_mode": None, "do_sample": False}
        assert len({len(tokenizer(prompt)["input_ids"]) for prompt in prompts}) > 3
        alone = Blender().n_generate(model, tokenizer, prompts, batch_size=1, **options)
        assert Blender().n_generate(model, tokenizer, prompts, batch_size=8, **options) == alone
        assert all(answer.startswith("1) ") for [answer] in alone)
        assert tokenizer.padding_side == "right" and tokenizer.pad_token == pad

    def test_an_instruction_is_a_line_of_its_own(self, model: Any, tokenizer: Any) -> None:
        options: dict[str, Any] = {"n": 1, "sampling_mode": None, "do_sample": False}
        [prompt] = self.prompts(1)
        instruction, text = prompt.split("\n")
        written = Blender().n_generate(model, tokenizer, [prompt], **options)
        assert Blender().n_generate(model, tokenizer, [text], [instruction], **options) == written

    @pytest.mark.parametrize("mode", ["top_p_sampling", "top_k_sampling"])
    @pytest.mark.parametrize("cmp_type", ["bubble", "full"])
    def test_the_best_of_n(self, chooser: Blender, model: Any, tokenizer: Any, mode: str, cmp_type: str) -> None:
        prompts = self.prompts(5)
        drawn: dict[str, Any] = {"n": 4, "sampling_mode": mode, "batch_size": 2, "temperature": 2.0}
        torch.manual_seed(0)
        sampled = chooser.n_generate(model, tokenizer, prompts, **drawn)
        assert [len(answers) for answers in sampled] == [4] * 5
        assert max(len(set(answers)) for answers in sampled) > 2
        torch.manual_seed(0)
        everyone = chooser.best_of_n_generate(
            model, tokenizer, prompts, **drawn, pairrm_cmp_type=cmp_type, return_all=True
        )
        assert everyone == chooser.get_best_of_n(prompts, sampled, pairrm_cmp_type=cmp_type, return_all=True)
        assert list(map(sorted, everyone)) == list(map(sorted, sampled))
        torch.manual_seed(0)
        best = chooser.best_of_n_generate(model, tokenizer, prompts, **drawn, pairrm_cmp_type=cmp_type)
        assert best == [answers[0] for answers in everyone]

    def test_the_best_of_n_answers_more_questions(self, chooser: Blender, model: Any, tokenizer: Any) -> None:
        def parts(text: str) -> list[str]:
            return re.split(r"\s*\d\) ", text)[1:]

        def right(answers: list[str]) -> int:
            pairs = zip(answers, rows, strict=True)
            return sum(
                a == b for text, row in pairs for a, b in zip(parts(text), parts(row["output"]), strict=False)
            )

        rows = self.rows(32)
        options: dict[str, Any] = {"batch_size": 32, "sampling_mode": "top_k_sampling", "temperature": 2.0}
        torch.manual_seed(0)
        sampled = chooser.n_generate(model, tokenizer, self.prompts(32), n=6, **options)
        texts = [row["instruction"] + row["input"] for row in rows]
        best, worst = chooser.get_best_of_n(texts, sampled), chooser.get_worst_of_n(texts, sampled)
        assert right(best) > right([answers[0] for answers in sampled]) > right(worst)

    def test_how_long_an_answer_may_be(self, model: Any, tokenizer: Any) -> None:
        def written(model: Any = model, tokenizer: Any = tokenizer, **options: Any) -> int:
            """Tokens of prompt and answer together, the end never being drawn."""
            lengths: list[int] = []

            def watch(input_ids: torch.Tensor, scores: torch.Tensor) -> bool:
                lengths.append(input_ids.shape[1])
                return False

            options |= {"do_sample": True, "suppress_tokens": [tokenizer.eos_token_id]}
            Blender().n_generate(model, tokenizer, ["Write."], n=2, stopping_criteria=[watch], **options)
            return max(lengths)

        prompt = len(tokenizer("Write.")["input_ids"])
        assert written(max_new_tokens=7) == prompt + 7
        assert written() == prompt + model.generation_config.max_new_tokens
        assert written(max_length=60) == 60
        model = AutoModelForCausalLM.from_pretrained(ALDER)
        model.generation_config.max_new_tokens = None
        assert written(model, AutoTokenizer.from_pretrained(ALDER, model_max_length=40)) == 40

    def test_encoder_decoder(self) -> None:
        folder = CHECKPOINTS / "gen_fuser"
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=int(1e30))
        prompts = ["a fox", "one two three four"]
        options: dict[str, Any] = {"sampling_mode": None, "do_sample": False, "max_new_tokens": 5}
        together = Blender().n_generate(model, tokenizer, prompts, n=1, **options)
        assert together == [Blender().n_generate(model, tokenizer, [p], n=1, **options)[0] for p in prompts]
        assert [len(texts) for texts in Blender().n_generate(model, tokenizer, prompts, n=3, max_new_tokens=5)] == [
            3,
            3,
        ]
        with pytest.raises(ValueError, match="give max_new_tokens"):
            Blender().n_generate(model, tokenizer, prompts)

    def test_unknown_mode(self) -> None:
        with pytest.raises(ValueError, match="sampling_mode 'beam': expected one of top_p_sampling"):
            Blender().n_generate(None, None, ["q"], sampling_mode="beam")

    @pytest.mark.vllm
    # vLLM's own
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.dist:FutureWarning")
    @pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed (make test-vllm)")
    def test_on_vllm(self, chooser: Blender, tokenizer: Any) -> None:
        import vllm

        llm = vllm.LLM(str(ALDER), dtype="float32", enforce_eager=True, max_model_len=128, seed=0)
        prompts = self.prompts(4)
        greedy: dict[str, Any] = {"n": 1, "sampling_mode": None, "do_sample": False}
        drawn: dict[str, Any] = {"n": 3, "temperature": 2.0, "max_new_tokens": 12}
        try:
            written = chooser.n_generate(llm, tokenizer, prompts, **greedy)
            everyone = chooser.best_of_n_generate(llm, tokenizer, prompts, **drawn, return_all=True)
        finally:
            llm.llm_engine.engine_core.shutdown()  # else only at exit, when its log is closed
        model = AutoModelForCausalLM.from_pretrained(ALDER, dtype=torch.float32)
        assert written == chooser.n_generate(model, tokenizer, prompts, **greedy)
        assert [len(answers) for answers in everyone] == [3] * 4
        assert max(len(set(answers)) for answers in everyone) > 1


class TestLoading:
    def test_configs_of_the_original(self, tmp_path: Path) -> None:
        ranker = RankerConfig(ranker_type="pairranker", model_type="deberta", n_tasks=1, fp16=False)
        ranker.load_checkpoint = str(CHECKPOINTS / "PairRM-hf")
        ranker.source_maxlength, ranker.candidate_maxlength = 96, 48
        (tmp_path / "llm-blender").mkdir()
        (tmp_path / "llm-blender" / "gen_fuser_3b").symlink_to(CHECKPOINTS / "gen_fuser")
        fuser = GenFuserConfig(cache_dir=str(tmp_path), candidate_maxlength=24)
        blender = Blender(llm_blender.BlenderConfig(device="cpu", use_tqdm=False), ranker, fuser)
        assert blender.rank(**columns(TRIPLES[:1])).tolist() == [TRIPLES[0]["ranks"]]
        case = next(case for case in FUSED["cases"] if all(len(text) < 24 for text in case["candidates"]))
        assert blender.fuse(**columns([case])) == [case["fused_beam4_max24"]]

    def test_a_reward_model_ranks_by_its_rewards(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        backbone = CHECKPOINTS / "backbone"
        model = DebertaV2ForSequenceClassification.from_pretrained(backbone, num_labels=1).eval()
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        blender = Blender()
        blender.loadranker(str(tmp_path), device="cpu")
        texts = ["a short answer", "another one, which is longer", "no"]
        rewards = blender.rank(["input"], [texts], ["What? "], return_scores=True)
        with torch.inference_mode():
            expected = [
                model(**tokenizer("What? input", text, return_tensors="pt")).logits.item() for text in texts
            ]
        assert rewards[0] == pytest.approx(expected, abs=1e-5)
        assert blender.rank(["input"], [texts], ["What? "])[0].tolist() == [
            1 + sum(other > reward for other in expected) for reward in expected
        ]
        for mode in ("[A,B]", "[B,A]", "[A,B]+[B,A]"):
            logits = blender.compare(["input"], texts[:1], texts[1:2], ["What? "], return_logits=True, mode=mode)
            assert logits == pytest.approx(np.array([expected[0] - expected[1]]), abs=1e-5)
        by_reward = [texts[i] for i in np.argsort(expected)]
        assert blender.get_worst_of_n(["input"], [texts], ["What? "], return_all=True) == [by_reward]

    def test_what_cannot_be_loaded(self, tmp_path: Path) -> None:
        blender = Blender()
        with pytest.raises(ModelLoadError, match="no such folder"):
            blender.loadranker(str(tmp_path / "nowhere"))
        with pytest.raises(ModelLoadError, match=r"no config\.json"):
            blender.loadranker(str(tmp_path))
        with pytest.raises(TypeError, match="num_beams"):
            blender.loadranker(str(CHECKPOINTS / "PairRM"), num_beams=3)
        with pytest.raises(ValueError, match="device"):
            blender.loadranker(str(CHECKPOINTS / "PairRM"), device="gpu")
        with pytest.raises(ValueError, match="load_in_4bit"):
            blender.loadfuser(str(CHECKPOINTS / "gen_fuser"), load_in_4bit=True)
        with pytest.raises(ValueError, match="load_checkpoint"):
            Blender(ranker_config=RankerConfig())

    @pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
    def test_any_name_of_a_device_torch_has(self, device: Any) -> None:
        blender = Blender()
        blender.loadranker(str(CHECKPOINTS / "PairRM"), device=device)
        blender.loadfuser(str(CHECKPOINTS / "gen_fuser"), device=device)
        assert blender.rank(["q"], [["a", "b"]]).shape == (1, 2)

    @pytest.mark.parametrize("device", ["cuda:99", "mps:7", "xpu", torch.device("cuda", 99), 99])
    def test_a_device_that_is_not_there(self, device: Any) -> None:
        for load in (Blender().loadranker, Blender().loadfuser):
            with pytest.raises(ModelLoadError, match="device: "):
                load(str(CHECKPOINTS / ("PairRM" if load.__name__ == "loadranker" else "gen_fuser")), device=device)

    def test_the_original_s_module_paths(self) -> None:
        from llm_blender_ray.pipelines.llm_blender.blender import Blender as Beside
        from llm_blender_ray.pipelines.llm_blender.blender import blender_utils

        assert Beside is Blender
        assert blender_utils.get_topk_candidates_from_ranks is llm_blender.get_topk_candidates_from_ranks

    def test_using_what_is_not_loaded(self) -> None:
        row = {"inputs": ["q"], "candidates": [["a", "b"]]}
        blender = Blender()
        for use in (blender.rank, blender.rank_with_ref, blender.get_best_of_n, blender.get_worst_of_n):
            with pytest.raises(BlendError, match=r"no ranker is loaded: call loadranker\(path\) first"):
                use(**row)
        with pytest.raises(BlendError, match="no ranker is loaded"):
            blender.compare(["q"], ["a"], ["b"])
        with pytest.raises(BlendError, match="no ranker is loaded"):
            blender.best_of_n_generate(None, None, ["q"])
        for use in (blender.fuse, blender.rank_and_fuse):
            with pytest.raises(BlendError, match=r"no fuser is loaded: call loadfuser\(path\) first"):
                use(**row)


class TestArguments:
    def test_nothing_in_nothing_out(self, blender: Blender) -> None:
        for ranked in (blender.rank([], []), blender.rank_with_ref([], [])):
            assert isinstance(ranked, np.ndarray) and ranked.shape == (0, 0) and ranked.dtype == np.int32
        assert blender.compare([], [], []).tolist() == []
        assert blender.compare_conversations([], []).tolist() == []
        assert blender.get_best_of_n([], []) == blender.get_worst_of_n([], [], return_all=True) == []
        assert blender.fuse([], []) == []
        fused, ranked = blender.rank_and_fuse([], [])
        assert fused == [] and len(ranked) == 0
        assert blender.n_generate(None, None, []) == blender.best_of_n_generate(None, None, []) == []

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            (
                {"inputs": ["q"], "candidates": [["a"], ["b"]]},
                "candidates: there are 2 lists of them, for 1 inputs",
            ),
            (
                {"inputs": ["q"], "candidates": [["a"]], "instructions": []},
                "instructions: there are 0, for 1 inputs",
            ),
            ({"inputs": ["q", "q"], "candidates": [["a"], []]}, r"candidates\[1\]: there are none"),
            ({"inputs": ["q"], "candidates": ["text"]}, r"candidates\[0\]: expected a list of texts"),
            ({"inputs": ["q"], "candidates": [["a", None]]}, r"candidates\[0\]\[1\]: expected text, got NoneType"),
            ({"inputs": "q", "candidates": [["a"]]}, "inputs: expected a list of texts, got one text"),
        ],
    )
    def test_wrong_rows(self, blender: Blender, row: dict[str, Any], says: str) -> None:
        for method in (blender.rank, blender.rank_with_ref, blender.get_best_of_n, blender.fuse):
            with pytest.raises(ValueError, match=says):
                method(**row)

    def test_wrong_words(self, blender: Blender) -> None:
        row: tuple[list, list] = (["q"], [["a", "b"]])
        with pytest.raises(ValueError, match="ref_mode 'best': expected one of longest"):
            blender.rank_with_ref(*row, ref_mode="best")
        with pytest.raises(ValueError, match="mode 'longest': expected one of"):
            blender.compare(["q"], ["a"], ["b"], mode="longest")
        with pytest.raises(ValueError, match="pairrm_cmp_type 'heap': expected bubble or full"):
            blender.get_best_of_n(*row, pairrm_cmp_type="heap")
        with pytest.raises(ValueError, match="candidates_B: there are 2, for 1 inputs"):
            blender.compare(["q"], ["a"], ["b", "c"])
        with pytest.raises(ValueError, match="ref_candidates: there are 0, for 1 inputs"):
            blender.rank_with_ref(*row, ref_candidates=[])

    @given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=5), max_size=5), st.integers(1, 5))
    def test_top_k_of_ranks(self, ranks: list[list[int]], top_k: int) -> None:
        texts = [[f"{row}.{i}\0" for i in range(len(its))] for row, its in enumerate(ranks)]
        best = get_topk_candidates_from_ranks(ranks, texts, top_k)
        assert isinstance(best, np.ndarray) == (len({len(row[:top_k]) for row in ranks}) <= 1)
        for its, given_texts, chosen in zip(ranks, texts, best, strict=True):
            places = [given_texts.index(text) for text in chosen]
            assert len(places) == min(top_k, len(its))
            assert all((its[a], a) < (its[b], b) for a, b in pairwise(places))
            assert all((its[i], i) > (its[places[-1]], places[-1]) for i in set(range(len(its))) - set(places))

"""Every `results_version` is pinned with a digest of what it covers: templates, parsers, orders, columns.

A failure here means that equal rows get other results than before. Raise `results_version` of the class in the
test's name, so that stored results are not reused, and pin the new version and digest. A change that leaves the
results of existing settings alone, such as an added template, needs the new digest only.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from paths import GOLDEN

from llm_blender_ray.actors.engines.chat import ChatTokenizer
from llm_blender_ray.actors.engines.chat_requests import Requests
from llm_blender_ray.actors.engines.reasoning import AnswerFilter
from llm_blender_ray.actors.errors import PromptError
from llm_blender_ray.actors.fusers.genfuser import FuserTemplate
from llm_blender_ray.actors.fusers.llm_fuser import attempts
from llm_blender_ray.actors.judging import JudgePairs
from llm_blender_ray.actors.pairrm.tokenization import PairBudget, PairTokenizer
from llm_blender_ray.actors.records import Blend, Candidate, Matchup, Message, Prompt
from llm_blender_ray.actors.scorers.judge import REMINDER, question
from llm_blender_ray.actors.scorers.reward import AnswerTokenizer
from llm_blender_ray.actors.scorers.verdicts import FOUR_WAY, THREE_WAY, read_preference, read_verdict
from llm_blender_ray.actors.scoring import ScoreAnswers
from llm_blender_ray.actors.stages import Fuse, Generate, Rank
from llm_blender_ray.actors.tokens import LiteralTokenizer, load_tokenizer_backend
from llm_blender_ray.actors.weights import load_tokenizer
from llm_blender_ray.configs import schema
from llm_blender_ray.configs.fusers import FUSERS
from llm_blender_ray.configs.identity import deciding, settings_digest
from llm_blender_ray.configs.judges import PairwiseJudge
from llm_blender_ray.configs.llms import ENGINES, BaseLLM, LocalLLM
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.rankers import RANKERS
from llm_blender_ray.configs.templates import template_names
from llm_blender_ray.pipelines.bulk.results import columns_of
from llm_blender_ray.pipelines.bulk.row_stages.base import UNPAID_CALLS, USAGE
from llm_blender_ray.pipelines.bulk.stages import STAGES
from llm_blender_ray.pipelines.quality.metrics import METRICS, Metric, PairMetric, metric_class, read_metric

PLAIN = Prompt("1", "How many apples?", "Two and ```two```. " * 40)
CHAT = Prompt(
    "2",
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="How many?"),
        Message(role="assistant", content="<think>two</think>Two."),
        Message(role="user", content="And pears?"),
    ),
)
ANSWERS = ("four", "```five```", "six of them, all " + "ripe " * 200)
REPLIES = (
    "Both are fine. [[A]]",
    "[[B]]",
    "[[C]]",
    "Verdict: B",
    "The better answer is A.",
    "**B**",
    '{"verdict": "tie"}',
    "Answer A is longer, and [[B]] shorter. [[A]]",
    "I can't say.",
    "<think>A is better.</think> [[B]]",
    "[THINK]hm[/THINK]B",
    "<thinking>hm",
    "",
)
STRATEGIES = ("full", "sparse", "sparse-refine", "focus", "swiss", "knockout", "bubble", "reference")
ECHO = schema.EchoModel(engine="echo", name="m", model="m")
BLENDS = [
    Blend(PLAIN, tuple(Candidate(f"m{i}", text=text) for i, text in enumerate((*ANSWERS, " ", "one two")))),
    Blend(CHAT, (Candidate("m0", error="timeout"), Candidate("m1", text="only"))),
    Blend(CHAT, (Candidate("m", error="timeout"),)),
    Blend(Prompt("3"), (), error="a bad row"),
]


def answers() -> Any:
    """How prompts become chats, and what is an answer of an LLM's text."""

    def answer(text: str) -> str:
        found = AnswerFilter()
        return found.add(text) + found.rest()

    return [[one.chat("Be kind.") for one in (PLAIN, CHAT)], [answer(text) for text in REPLIES]]


def rendered_chats() -> Any:
    tokenizer = load_tokenizer(GOLDEN / "checkpoints" / "PairRM-hf")

    def rendered(template: str, prompt: Prompt) -> str:
        try:
            return ChatTokenizer(tokenizer, template).rendered(prompt.chat())
        except PromptError as error:
            return str(error)

    return {name: [rendered(name, one) for one in (PLAIN, CHAT)] for name in template_names()}


def requests() -> Any:
    settings = {"engine": "endpoint", "name": "m", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    sampling = schema.Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=3, max_tokens=7, stop=("x",))
    return Requests(schema.EndpointModel.model_validate(settings)).build(CHAT.chat(), sampling)


def pairs() -> Any:
    backend = load_tokenizer_backend(GOLDEN / "checkpoints" / "PairRM-hf")
    tokenizer = PairTokenizer(backend, PairBudget(64, 32), cls="[CLS]", sep="[SEP]", pad="[PAD]")

    def joined(prompt: Prompt, left: str, right: str) -> list[int]:
        source = tokenizer.encode_source(*prompt.turns())
        return tokenizer.join(source, *(tokenizer.encode_candidate(text, len(source)) for text in (left, right)))

    return [joined(prompt, *ANSWERS[1:]) for prompt in (PLAIN, CHAT)]


def rewards() -> Any:
    tokenizer = AnswerTokenizer(GOLDEN / "checkpoints" / "PairRM-hf", 64, trust_remote_code=False)
    return [tokenizer.encode(prompt, text).ids for prompt in (PLAIN, CHAT) for text in ANSWERS]


def verdicts() -> Any:
    return [question(Matchup(PLAIN, *ANSWERS[:2])), REMINDER, [read_verdict(reply, None) for reply in REPLIES]]


def fuser_inputs() -> Any:
    backend = LiteralTokenizer(load_tokenizer_backend(GOLDEN / "checkpoints" / "gen_fuser"))
    template = FuserTemplate(backend, max_length=256, candidate_max_length=64)
    return [asdict(template.build(prompt, ANSWERS)) for prompt in (PLAIN, CHAT)]


def tasks() -> Any:
    return [[asdict(one) for one in attempts(prompt, ANSWERS)] for prompt in (PLAIN, CHAT)]


def scored() -> Any:
    blends = [replace(blend, references=("four", "one two"), fused="four five") for blend in BLENDS]
    return through(ScoreAnswers(read_metric("rouge_l")), [*blends, replace(BLENDS[0], fused="four")])


def scores(metric: type[Metric]) -> Any:
    texts = [*ANSWERS, "1) four 2) x", "2) five\n1) four", "five 2) four 1)", "", "四五"]
    return rounded([metric().score([["1) four\n2) five", "四"]] * len(texts), texts)])


def through(stage: Any, blends: Sequence[Blend] = BLENDS) -> Any:
    """Columns of what a stage makes of blends, but for the usage: a stored result without it holds all the same."""
    table = columns_of(kind_of(type(stage)), blends, asyncio.run(stage(blends)))
    table = table.select([name for name in table.column_names if name not in (USAGE, UNPAID_CALLS)])
    return [table.schema.to_string(), rounded(table.to_pylist())]


def rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def kind_of(stage: type) -> Any:
    return next(kind for kind, one in STAGES.items() if one is stage)


def ranked() -> Any:
    rankers = [schema.EchoRanker.model_validate({"kind": "echo", "strategy": name}) for name in STRATEGIES]
    return [through(Rank(ranker)) for ranker in rankers]


def judged() -> Any:
    designs = [{"design": name} for name in STRATEGIES] + [{"baseline": "m1"}]
    judges = [PairwiseJudge.model_validate({"llm": ECHO, "pairs": one}) for one in designs]
    replies = (*REPLIES, "Same bad")
    reads = [[read_preference(reply, words) for reply in replies] for words in (THREE_WAY, FOUR_WAY)]
    return [
        [through(JudgePairs(judge)) for judge in judges],
        reads,
        question(Matchup(PLAIN, *ANSWERS[:2])),
        REMINDER,
    ]


def fused() -> Any:
    columns, rows = through(Fuse(schema.LLMFuser(kind="chat", llm=ECHO)))
    return [columns, [row | {"fused": row["fused"] is not None} for row in rows]]  # the text is the fuser's


METRIC_CLASSES = [metric_class(name) for name in METRICS.names()]
COVERED: dict[type, Any] = {  # a part's version also covers what its base classes' does
    Generate: lambda: through(Generate(ECHO)),
    Rank: ranked,
    Fuse: fused,
    JudgePairs: judged,
    ScoreAnswers: scored,
    **{metric: functools.partial(scores, metric) for metric in METRIC_CLASSES if issubclass(metric, PairMetric)},
    BaseLLM: answers,
    LocalLLM: rendered_chats,
    schema.EndpointModel: requests,
    schema.PairRanker: pairs,
    schema.RewardModel: rewards,
    schema.Judge: verdicts,
    schema.GenFuser: fuser_inputs,
    schema.LLMFuser: tasks,
}
PINNED = {  # version, digests of what it covers
    "Generate": (1, "56437170bf516828"),
    "Rank": (1, "7c5eab70ebc7f2de"),
    "Fuse": (1, "7809fd265e9b41e9"),
    "JudgePairs": (1, "11dc2e28e0d19006"),
    "VLLMModel": (2, "acb9a9c62ca17c15-86b85bb89d05ed65"),
    "TransformersModel": (2, "acb9a9c62ca17c15-86b85bb89d05ed65"),
    "EndpointModel": (1, "4880fca9050575b6-86b85bb89d05ed65"),
    "EchoModel": (1, "86b85bb89d05ed65"),
    "PairRanker": (2, "5bac448302aafb22"),
    "RewardModel": (1, "060c509762fff7a0"),
    "Judge": (1, "92c8666926c64c9e"),
    "EchoRanker": (1, ""),
    "GenFuser": (1, "6ecf89766106bc06"),
    "LLMFuser": (1, "169adfb7d338252d"),
    "ScoreAnswers": (1, "a04a0af80a10e0c0"),
    "PartsRight": (1, "5ece706561a41acd"),
    "ExactMatch": (1, "3bbca1dd7455d9e7"),
    "SentenceBleu": (1, "f72f3d6ec69bbc9b"),
    "RougeL": (1, "84e388472ae4b9e7"),
    "Rouge1": (1, "da93063122c97d5d"),
    "Rouge2": (1, "75ad8b3a78544360"),
    "RougeLsum": (1, "7f978cee8c81fc1b"),
    "ChrF": (1, "2292816083b98811"),
    "BERTScore": (1, ""),
    "BARTScore": (1, ""),
    "BLEURT": (1, ""),
}
PARTS = [registry.get(name) for registry in (ENGINES, RANKERS, FUSERS) for name in registry.names()]


@functools.cache
def covered(base: type) -> str:
    return settings_digest(COVERED[base]())


@pytest.mark.parametrize("owner", [*STAGES.values(), *PARTS, *METRIC_CLASSES], ids=lambda owner: owner.__name__)
def test_other_results_need_another_version(owner: Any) -> None:
    digests = [covered(base) for base in owner.__mro__ if base in COVERED]
    assert (owner.results_version, "-".join(digests)) == PINNED[owner.__name__]


def test_the_version_decides_results(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = schema.Judge(kind="judge", llm=ECHO)
    before = deciding(judge)
    monkeypatch.setattr(schema.EchoModel, "results_version", 2)
    assert deciding(judge)["llm"] == {**before["llm"], "results_version": 2}
    monkeypatch.setattr(schema.Judge, "results_version", 3)
    assert deciding(judge)["results_version"] == 3


def test_other_packages_have_versions_of_their_own() -> None:
    class Toy(PartSettings):
        results_version = 4

    assert deciding(Toy()) == {"results_version": 4}

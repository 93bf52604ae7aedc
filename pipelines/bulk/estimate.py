"""Estimate of what a run will cost, from its input: calls, tokens and USD of each LLM that is billed by tokens.

Prompts are the real ones; what an LLM will write is unknown before it has written it. So answers have the length
that is given, or that of an earlier run of the same config over some of the rows (`blend run --limit 50`), whose
manifest also has the tokens that a byte of prompt makes and the comparisons that a row takes. Without either they
have `sampling.max_tokens`, and a judge compares as often as its strategy may: an upper bound, and named as one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llm_blender_ray.actors.errors import BlendError, RowError, one_line
from llm_blender_ray.actors.fusers.llm_fuser import INSTRUCTION
from llm_blender_ray.actors.fusers.llm_fuser import task as fusing_task
from llm_blender_ray.actors.prices import billed_parts, token_price
from llm_blender_ray.actors.records import Matchup, Prompt, read_prompt
from llm_blender_ray.actors.scorers.judge import CRITERION, JUDGE_TEMPLATE, question
from llm_blender_ray.actors.tournaments import max_comparisons
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.llms import BaseLLM
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import BlendConfig, Judge, LLMFuser
from llm_blender_ray.configs.strategies import Focus, Full
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.quality.rounding import dollars
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.readers import read_rows

PROMPT_BYTES_PER_TOKEN = 4.0  # OpenAI's rule of thumb for English; a measured run has the input's own


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What one part will use and cost. `usd` is None where its price is unknown."""

    name: str
    usage: TokenUsage
    usd: float | None


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sums over rows: their number, and bytes of their prompts."""

    rows: int = 0
    prompt_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Estimate of a run.

    Attributes:
        rows: Rows of the input with a prompt.
        stages: Parts that call an endpoint or have a price of tokens.
        measured: Rows of the earlier run that it is taken from.
        answer_tokens: Length of every answer where nothing was measured; None: `sampling.max_tokens` of each.
    """

    rows: int
    stages: tuple[StageEstimate, ...]
    measured: int | None = None
    answer_tokens: int | None = None

    @property
    def usd(self) -> float:
        """Sum of the known costs."""
        return sum(stage.usd or 0.0 for stage in self.stages)

    def lines(self) -> Iterator[str]:
        """What `blend plan` prints."""
        known = [(stage.name, stage.usd) for stage in self.stages if stage.usd is not None]
        if known:
            total = self.usd
            most = "about" if self.measured or self.answer_tokens else "at most about"
            each = ", ".join(f"{name} {dollars(usd)}" for name, usd in known)
            a_row = dollars(total / max(self.rows, 1))
            yield f"cost of {self.rows:,} rows: {most} {dollars(total)}, {a_row} a row: {each}"
            if self.measured:
                yield f"assumed: answers, comparisons and tokens as measured on {self.measured:,} rows"
            elif self.answer_tokens:
                yield f"assumed: {self.answer_tokens:,} tokens an answer, and as many comparisons as there may be"
            else:
                yield (
                    "assumed: answers of sampling.max_tokens, and as many comparisons as there may be; "
                    "--answer-tokens sets a length, --measured OUTPUT takes those of a first run "
                    "(blend run --limit 50)"
                )
        for stage in self.stages:
            if stage.usd is None:
                yield f"cost of {stage.name} unknown: neither the config nor the table has a price"


def estimated_lines(
    config: BlendConfig, uri: str, measured: str | None = None, answer_tokens: int | None = None
) -> list[str]:
    """Lines of the estimate of a run.

    Args:
        config: The run.
        uri: Its input. One that cannot be read here, such as that of a cluster, is a line and no error.
        measured: Output of an earlier run.
        answer_tokens: See `estimate_cost`.

    Raises:
        BlendError: There is no finished earlier run.
    """
    earlier = None
    if measured is not None:
        text = CheckpointStore(Output(measured).work_folder).manifest()
        if text is None:
            raise BlendError(f"{measured}: no finished run wrote it, so it has no measured answers")
        earlier = Manifest.parse(text)
    try:
        estimate = estimate_cost(config, _prompts(uri, config.limit), earlier, answer_tokens)
    except BlendError as error:
        return [f"cost: not estimated: {one_line(error)}"]
    lines, budget = list(estimate.lines()), config.budget.usd_per_run
    if budget is not None and budget < estimate.usd:
        lines.append(f"budget.usd_per_run {budget:g} is less than the estimate: the run may end without some calls")
    return lines


def _prompts(uri: str, limit: int | None) -> Iterator[Prompt | None]:
    """Prompts of the input's rows; None for a bad row."""
    for row in read_rows(uri, limit):
        try:
            yield None if row["error"] is not None else read_prompt(row)
        except RowError:
            yield None


def estimate_cost(
    config: BlendConfig,
    prompts: Iterable[Prompt | None],
    measured: Manifest | None = None,
    answer_tokens: int | None = None,
) -> CostEstimate:
    """Estimate what a run will cost.

    Args:
        config: The run.
        prompts: Of all rows of its input, in order; None for a bad row.
        measured: Of an earlier run of these parts over the first of the rows.
        answer_tokens: Tokens of an answer where nothing was measured; None: `sampling.max_tokens`.
    """
    first = measured.output.rows if measured else 0
    whole, seen = _Sizes(), _Sizes()
    for number, prompt in enumerate(prompts, 1):
        if prompt is None:
            continue
        size = sum(len(turn["content"].encode("utf-8", "surrogatepass")) for turn in prompt.chat())
        whole = _Sizes(whole.rows + 1, whole.prompt_bytes + size)
        seen = whole if number <= first else seen
    records = {stage.name: stage for stage in measured.stages} if measured else {}
    known = {name: record for name, record in records.items() if record.calls and not record.unreported_calls}
    stages = []
    for name in billed_parts(config.parts, config.prices):
        part = config.parts[name]
        if name in known and seen.rows:
            usage = _scaled(known[name], part, whole, seen)
        else:
            usage = _assumed(config, part, whole, answer_tokens)
        price = token_price(name, part, config.prices)
        stages.append(StageEstimate(name, usage, price.usd(usage) if price else None))
    taken = seen.rows if measured and all(stage.name in known for stage in stages) else None
    return CostEstimate(whole.rows, tuple(stages), taken, answer_tokens)


def _scaled(record: StageRecord, part: PartSettings, whole: _Sizes, seen: _Sizes) -> TokenUsage:
    """Usage of all rows, from that of the first ones.

    Prompts grow with those of the rows; what is beside them in a prompt (templates, and the answers that a judge or
    a fuser reads) is as long for each call as it was.
    """
    calls = record.calls * whole.rows / seen.rows
    of_rows = seen.prompt_bytes / seen.rows * record.calls / PROMPT_BYTES_PER_TOKEN
    more = (whole.prompt_bytes / whole.rows) / (seen.prompt_bytes / seen.rows) if seen.prompt_bytes else 1.0
    share = min(of_rows / record.prompt_tokens, 1.0) if record.prompt_tokens else 0.0
    growth = whole.rows / seen.rows * (1 + share * (more - 1))
    return TokenUsage(
        calls=round(calls),
        prompt_tokens=round(record.prompt_tokens * growth),
        cached_prompt_tokens=round(record.cached_prompt_tokens * growth),
        completion_tokens=round(record.completion_tokens * whole.rows / seen.rows),
    )


def _assumed(config: BlendConfig, part: PartSettings, whole: _Sizes, answer_tokens: int | None) -> TokenUsage:
    """Usage of all rows where every answer has the assumed length."""

    def length(llm: BaseLLM) -> int:
        return min(answer_tokens or llm.sampling.max_tokens, llm.sampling.max_tokens)

    llm = part.prompted_llm
    assert llm is not None  # it is billed by tokens
    system = len((llm.system_prompt or "").encode())
    answers = [length(model) for model in config.members for _ in range(model.samples)]
    mean_answer = sum(answers) / len(answers)
    match part:
        case Judge():
            strategy = part.strategy or (Focus() if config.placing_ranker.top_k else Full())
            each = max_comparisons(strategy, len(answers), config.placing_ranker.top_k, False)
            empty = question(
                Matchup(Prompt(""), "", ""), part.criterion or CRITERION, part.prompt or JUDGE_TEMPLATE
            )
            read = 2 * mean_answer
        case LLMFuser():
            each, top_k = 1, min(part.top_k, len(answers))
            empty = fusing_task(Prompt(""), [""] * top_k, part.instruction or INSTRUCTION)
            read = top_k * mean_answer
        case _:
            each, empty, read = llm.samples, "", 0.0
    calls = whole.rows * each
    beside = (len(empty.encode()) + system) / PROMPT_BYTES_PER_TOKEN + read
    return TokenUsage(
        calls=calls,
        prompt_tokens=round(each * whole.prompt_bytes / PROMPT_BYTES_PER_TOKEN + calls * beside),
        completion_tokens=calls * length(llm),
    )

"""Estimate of a run of `blend judge` from its input: comparisons, calls, tokens and USD of each judge.

The answers are there, so prompts have their real length in bytes. An adaptive design may stop earlier than counted,
and a reply is as long as is given, or `sampling.max_tokens`.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from llm_blender_ray.actors.errors import BlendError, RowError, one_line
from llm_blender_ray.actors.judging import players_of, strategy_of
from llm_blender_ray.actors.prices import lacks_price, token_price
from llm_blender_ray.actors.prompt_fencing import prompt_text
from llm_blender_ray.actors.records import Blend, Matchup, Prompt
from llm_blender_ray.actors.scorers.judge import CRITERION, JUDGE_TEMPLATE, question
from llm_blender_ray.actors.tables import to_blend
from llm_blender_ray.actors.tournaments import max_comparisons
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.cluster.preflight import check_local_models, check_variables
from llm_blender_ray.configs.judges import JudgeConfig, PairDesign, PairwiseJudge
from llm_blender_ray.configs.rubrics import Rubric
from llm_blender_ray.pipelines.bulk.estimate import PROMPT_BYTES_PER_TOKEN
from llm_blender_ray.pipelines.bulk.judge import plan_judges
from llm_blender_ray.pipelines.bulk.planning import show_waves
from llm_blender_ray.pipelines.quality.rounding import dollars, fixed
from llm_blender_ray.pipelines.rows.readers import read_rows


@dataclass(frozen=True, slots=True)
class JudgeEstimate:
    """Sums over the rows that one judge compares.

    Attributes:
        rows: Rows with at least two different answers.
        calls: Comparisons, at most.
        prompt_bytes: Of all their prompts.
    """

    rows: int = 0
    calls: int = 0
    prompt_bytes: float = 0.0


def show_judging_plan(config: JudgeConfig, gpus: int | None, *, answer_tokens: int | None = None) -> None:
    """Print the waves of `blend judge`, its number of calls and what they will cost.

    Args:
        config: The run.
        gpus: See `planning.show_plan`.
        answer_tokens: See `judging_lines`.

    Raises:
        PlanError: A judge cannot run.
        ClusterError: Environment variables of judges are not set.
    """
    lines = judging_lines(config, config.input, answer_tokens) if config.input else ()
    show_waves(config.ray, functools.partial(plan_judges, config), gpus, lines)
    check_variables(config.ray, *config.parts.values())
    check_local_models(config.ray, config.parts.values())


def judging_lines(config: JudgeConfig, uri: str, answer_tokens: int | None = None) -> list[str]:
    """Lines of the estimate.

    Args:
        config: The run.
        uri: Its input. One that cannot be read here, such as that of a cluster, is a line and no error.
        answer_tokens: Tokens of a reply; None: `sampling.max_tokens` of each judge.
    """
    parts = config.parts
    try:
        blends = [to_blend(row) for row in read_rows(uri, config.limit)]
    except BlendError as error:
        return [f"calls: not estimated: {one_line(error)}"]
    found = {name: estimate_judge(judge, blends) for name, judge in parts.items()}
    lines = [_calls_line(name, parts[name], one) for name, one in found.items()]
    if len(found) > 1:
        lines.append(f"{len(found)} judges: {sum(one.calls for one in found.values()):,} calls")
    return [*lines, *_cost_lines(config, found, answer_tokens)]


def estimate_judge(judge: PairwiseJudge, blends: Iterable[Blend]) -> JudgeEstimate:
    """Count the comparisons of a judge of a config's `parts`."""
    pairs, rubric = judge.pairs or PairDesign(), judge.rubric or Rubric()
    asked = Matchup(Prompt(""), "", "")
    template = len(question(asked, rubric.criterion or CRITERION, rubric.prompt or JUDGE_TEMPLATE).encode())
    total = JudgeEstimate()
    for blend in blends:
        texts = list(players_of(blend, pairs)) if blend.error is None else []
        if len(texts) < 2:
            continue
        try:
            calls = max_comparisons(strategy_of(blend, pairs, texts), len(texts), pairs.top_k, False)
        except RowError:  # without the baseline
            continue
        fixed_part = template + _size(prompt_text(blend.prompt))
        answers = 2 * sum(map(_size, texts)) / len(texts)
        total = replace(
            total,
            rows=total.rows + 1,
            calls=total.calls + calls,
            prompt_bytes=total.prompt_bytes + calls * (fixed_part + answers),
        )
    return total


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _calls_line(name: str, judge: PairwiseJudge, found: JudgeEstimate) -> str:
    design = (judge.pairs or PairDesign()).design
    orders = 1 if design.orders == "one" else 2
    pairs = found.calls / max(found.rows, 1) / orders
    shown = f"{pairs:.0f}" if pairs == int(pairs) else fixed(pairs, 1)
    return f"{name}: {found.rows:,} rows x {shown} pairs x {orders} orders = {found.calls:,} calls"


def _cost_lines(config: JudgeConfig, found: dict[str, JudgeEstimate], answer_tokens: int | None) -> Iterator[str]:
    costs: dict[str, float] = {}
    for name, one in found.items():
        judge = config.parts[name]
        length = min(answer_tokens or judge.llm.sampling.max_tokens, judge.llm.sampling.max_tokens)
        if (price := token_price(name, judge, config.prices)) is not None:
            tokens = round(one.prompt_bytes / PROMPT_BYTES_PER_TOKEN)
            costs[name] = price.usd(
                TokenUsage(calls=one.calls, prompt_tokens=tokens, completion_tokens=one.calls * length)
            )
        elif lacks_price(name, judge, config.prices):
            yield f"cost of {name} unknown: neither the config nor the table has a price"
    if costs:
        most = "about" if answer_tokens else "at most about"
        each = ", ".join(f"{name} {dollars(usd)}" for name, usd in costs.items())
        length_text = f"{answer_tokens:,} tokens" if answer_tokens else "sampling.max_tokens"
        yield f"cost: {most} {dollars(sum(costs.values()))}: {each}"
        yield f"assumed: replies of {length_text}, each at the first request; --answer-tokens sets a length"

"""Results of a campaign: the leaderboard by its votes, agreement between annotators, and each one's reliability."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_blender_ray.actors.tournaments.board import draw_by_hash
from llm_blender_ray.pipelines.campaign.exports import judged_rows
from llm_blender_ray.pipelines.campaign.records import CampaignError, CastVote
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.agreement import bootstrapped, estimate, krippendorff_alpha
from llm_blender_ray.pipelines.quality.consensus import Label, dawid_skene, majority
from llm_blender_ray.pipelines.quality.contest import Contest, LeaderboardOptions
from llm_blender_ray.pipelines.quality.judgements import PEOPLE, SIGNS
from llm_blender_ray.pipelines.quality.leaderboard import leaderboard
from llm_blender_ray.pipelines.quality.leaderboard_tables import render_leaderboard
from llm_blender_ray.pipelines.quality.metrics import default_metrics
from llm_blender_ray.pipelines.quality.raters import (
    PEOPLE_TOGETHER,
    RatedPrompts,
    group_tables,
    paired_ratings,
    rater_name,
)
from llm_blender_ray.pipelines.quality.rounding import fixed
from llm_blender_ray.pipelines.quality.votes import interval
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import read_row

VoteAggregation = Literal["votes", "majority", "dawid-skene"]
_LABELS = {1: "left", 0: "tie", -1: "right"}  # of an item, by sign; both good and both bad are ties


def campaign_results(
    folder: str, aggregation: VoteAggregation = "votes", more: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Results of a folder's campaign.

    Args:
        folder: The campaign's.
        aggregation: What the leaderboard is of: all votes, or one judgement for each item, by the majority of the
            annotators (items without one are left out) or by Dawid and Skene.
        more: Other rows whose votes count in the leaderboard, such as the file of the online page.
        seed: Of the bootstraps.

    Returns:
        Plain data: {"title", "aggregation", "votes", "items", "leaderboard": `quality.leaderboard.leaderboard`'s,
        "alpha", "consensus": {"majority", "drawn", "differ"}, "annotators": {name: {"votes", "skipped", "seconds",
        "gold", "rest", "reliability"}}}. "alpha" and "rest" (the share of an annotator's verdicts that the majority
        of the others shares) are {"value", "interval", "n"}, "gold" is {"agrees", "of", "share", "interval"}, and
        "reliability" how likely the annotator is right by Dawid and Skene; "differ" counts items on which the two
        ways to aggregate differ.

    Raises:
        CampaignError: There is no campaign, or it has no votes.
        BlendError: There is nothing to compare.
    """
    store = CampaignStore(folder)
    votes = list(store.votes())
    counted = [vote for vote in votes if vote.gold is None]
    if not counted:
        raise CampaignError(f"{folder}: the campaign has no votes yet")
    labels = [
        Label(vote.item, vote.annotator, _LABELS[_turn(vote.item) * SIGNS[vote.unswapped]]) for vote in counted
    ]
    by_majority, by_all = majority(labels), dawid_skene(labels)
    chosen = {item: label for item, label in by_majority.items() if label is not None}
    consensus = by_all.labels()
    annotators = sorted({vote.annotator for vote in votes} | set(store.skipped()))
    rows = [read_row(row, "the campaign") for row in judged_rows(store)]
    prompts = list(chain.from_iterable(RatedPrompts().add_all(rows).slices.values()))
    raters = {name: rater_name(name, person=True) for name in annotators}
    _, coincident = group_tables(prompts, raters.values())
    several = sum(count > 1 for count in Counter(vote.item for vote in counted).values())
    alpha = bootstrapped(partial(krippendorff_alpha, coincident), len(coincident), several, seed)

    contest = Contest(
        LeaderboardOptions(
            judges=(*(annotators if aggregation == "votes" else (aggregation,)), PEOPLE),
            columns=tuple(default_metrics()),
            paper=True,
            seed=seed,
        )
    )
    if aggregation == "votes":
        shown = rows
    else:
        aggregated = chosen if aggregation == "majority" else consensus
        shown = [read_row(row, "the campaign") for row in _aggregated(store, aggregated, aggregation)]
    for row in chain(shown, *(read_rows(uri) for uri in more)):
        contest.add(row)
    return {
        "title": store.settings.title,
        "aggregation": aggregation,
        "votes": len(counted),
        "items": len(by_majority),
        "leaderboard": leaderboard(contest),
        "alpha": alpha.report(),
        "consensus": {
            "majority": len(chosen),
            "drawn": len(by_majority) - len(chosen),
            "differ": sum(consensus[item] != label for item, label in chosen.items()),
        },
        "annotators": {
            name: _annotator([vote for vote in votes if vote.annotator == name], store.skipped().get(name, 0))
            | {
                "rest": estimate(
                    "agreement_with_ties", paired_ratings(prompts, raters[name], PEOPLE_TOGETHER), seed=seed
                ).report(),
                "reliability": by_all.accuracy().get(name),
            }
            for name in annotators
        },
    }


def render_results(report: Mapping[str, Any]) -> Group:
    """`campaign_results` as tables and sentences."""
    shown = Table(title=Text("Annotators"), title_justify="left")
    shown.add_column("", overflow="fold")
    for heading in ("votes", "skipped", "s a vote", "agrees with gold", "with the rest", "right, Dawid-Skene"):
        shown.add_column(heading, justify="right")
    for name, one in report["annotators"].items():
        seconds = "" if one["seconds"] is None else fixed(one["seconds"], 1)
        gold = _share(one["gold"]["share"], one["gold"]["interval"], one["gold"]["of"])
        rest = _share(one["rest"]["value"], one["rest"]["interval"], one["rest"]["n"])
        reliability = "" if one["reliability"] is None else f"{one['reliability']:.0%}"
        shown.add_row(Text(name), str(one["votes"]), str(one["skipped"]), seconds, gold, rest, reliability)
    alpha, found = report["alpha"], report["consensus"]
    lines = [f"{report['title']}: {report['votes']:,} votes on {report['items']:,} items."]
    if alpha["value"] is not None:
        bounds = alpha["interval"]
        between = f" [{fixed(bounds[0], 2)}, {fixed(bounds[1], 2)}]" if bounds else ""
        lines.append(
            f"Krippendorff's alpha {fixed(alpha['value'], 2)}{between} of {alpha['n']:,} items with several votes."
        )
    lines.append(
        f"{found['majority']:,} items have a majority, {found['drawn']:,} have none; Dawid and Skene differ from "
        f"the majority on {found['differ']:,}."
    )
    return Group(Text(lines[0]), render_leaderboard(report["leaderboard"]), shown, *map(Text, lines[1:]))


def _share(share: float | None, bounds: Sequence[float] | None, count: int) -> str:
    if share is None:
        return ""
    between = f" [{bounds[0]:.0%}, {bounds[1]:.0%}]" if bounds else ""
    return f"{share:.0%}{between} of {count:,}"


def _annotator(votes: Sequence[CastVote], skipped: int) -> dict[str, Any]:
    gold = [SIGNS[vote.unswapped] == SIGNS[vote.gold] for vote in votes if vote.gold is not None]
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    return {
        "votes": len(votes),
        "skipped": skipped,
        "seconds": statistics.median(seconds) if seconds else None,
        "gold": {
            "agrees": sum(gold),
            "of": len(gold),
            "share": sum(gold) / len(gold) if gold else None,
            "interval": list(interval(sum(gold), len(gold))) if gold else None,
        },
    }


def _turn(item: int) -> int:
    """1, or by hash -1 for an item whose sides are exchanged where labels are estimated.

    Sides come in the contestants' order: without it, the frequency of labels would say who is better.
    """
    return 1 - 2 * (draw_by_hash(f"label\0{item}", 0)[0] & 1)


def _aggregated(store: CampaignStore, labels: Mapping[int, str], judge: str) -> Iterator[dict[str, Any]]:
    """Rows with one judgement for each item."""
    gold, judgements = store.gold_prompts(), defaultdict(list)
    for item in store.items():
        if item.item in labels:
            left, right = item.sides
            if _turn(item.item) < 0:
                left, right = right, left
            judgements[item.prompt].append(
                {"judge": judge, "left": left, "right": right, "preferred": labels[item.item]}
            )
    for prompt, row in enumerate(store.rows()):
        if prompt not in gold:
            yield {**row, "judgements": judgements[prompt]}

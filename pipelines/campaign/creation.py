"""New campaigns from the rows of runs: contestants, pairs, gold items, and annotators' keys."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from llm_blender_ray.actors.records import RESULT_COLUMNS
from llm_blender_ray.actors.tournaments.board import draw_by_hash
from llm_blender_ray.pipelines.campaign.records import CampaignError, NewItem
from llm_blender_ray.pipelines.campaign.settings import CampaignSettings
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.judgements import BLEND_CONTESTANT, RANKER_CONTESTANT, read_judgements
from llm_blender_ray.pipelines.quality.votes import FUSED, Side, name_of, side_text
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import to_json, write_row
from llm_blender_ray.pipelines.serve.access import Keys, new_key

KEYS = "keys"  # file of the annotators' names with their keys' digests, as `serve.keys_file`


@dataclass(frozen=True)
class NewCampaign:
    """What was made.

    Attributes:
        contestants: Their names.
        items: How many will be shown, gold items aside.
        gold: How many gold items there are.
        prompts: How many prompts the items are of, or may be.
    """

    store: CampaignStore
    contestants: tuple[str, ...]
    items: int
    gold: int
    prompts: int


def create_campaign(
    uris: Sequence[str], folder: str, settings: CampaignSettings, gold_uri: str | None = None
) -> NewCampaign:
    """Make a campaign of the rows of URIs; rows with an error are left out.

    Args:
        uris: Finished runs, or other rows with candidates.
        folder: The campaign's.
        settings: Of the campaign.
        gold_uri: Rows whose judgements are the right answers of gold items.

    Raises:
        CampaignError: There is nothing to compare, or a contestant is unknown.
        BlendError: Rows can't be read, or the campaign can't be written.
    """
    rows = [row for uri in uris for row in read_rows(uri) if row["error"] is None]
    contestants = _contestants(rows, settings.contestants)
    pools = [_pairs(row, contestants) for row in rows]
    count = sum(map(len, pools))
    if not count:
        raise CampaignError(f"{', '.join(uris)}: no row has two different answers of the contestants")
    gold_rows = [row for row in read_rows(gold_uri) if row["error"] is None] if gold_uri else []
    gold = [item for at, row in enumerate(gold_rows, len(rows)) for item in _gold(row, at)]
    if gold_uri and not gold:
        raise CampaignError(f"{gold_uri}: no row has a judgement of two of its answers")
    prompts = sum(1 for pool in pools if pool)
    wanted = count if settings.pairs == "all" else min(settings.items or prompts, count)
    items: Iterable[NewItem]
    if settings.pairs == "active":
        items = (_item(at, pair, is_open=False) for at, pool in enumerate(pools) for pair in pool)
    else:
        items = (_item(at, pair) for at, pair in balanced_pairs(pools, wanted, settings.seed))
    stored = [(str(row["id"]), to_json(_output(row))) for row in chain(rows, gold_rows)]
    store = CampaignStore.create(folder, settings, stored, chain(gold, items))
    return NewCampaign(store, contestants, wanted, len(gold), prompts)


def check_names(names: Iterable[str]) -> None:
    """Check that annotators may have these names.

    Raises:
        BlendError: One is malformed.
    """
    for name in names:
        new_key(name)


def add_annotators(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """Make a key for each annotator; earlier keys of a name go on to work.

    Returns:
        Their keys, which are nowhere else.

    Raises:
        BlendError: A name is malformed, or the file can't be written.
    """
    made = {name: new_key(name) for name in names}
    file = Path(folder) / KEYS
    if not made:
        return {}
    try:
        file.touch(mode=0o600)
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for _, line in made.values())
    except OSError as error:
        raise CampaignError(f"{file}: {error.strerror}") from error
    return {name: key for name, (key, _) in made.items()}


def annotator_keys(folder: str | Path) -> Keys:
    """Keys of a campaign's annotators; a line that is removed stops working at once.

    Raises:
        CampaignError: There are none.
        BlendError: The file is malformed.
    """
    file = Path(folder) / KEYS
    keys = Keys.load(str(file), {}) if file.is_file() and file.stat().st_size else None
    if keys is None:
        raise CampaignError(f"{folder}: nobody may vote; `blend campaign invite {folder} NAME` adds an annotator")
    return keys


_Pair = tuple[tuple[str, Side], tuple[str, Side]]


def balanced_pairs(pools: Sequence[Sequence[_Pair]], count: int, seed: int) -> Iterator[tuple[int, _Pair]]:
    """`count` of the pairs of all prompts, so that every two contestants meet about equally often.

    Prompts take turns, in an order drawn by hash. Each gives the pair whose contestants have met least; of those
    the one whose contestants have least items, then a draw.

    Yields:
        Index of the prompt, and the pair.
    """
    order = sorted(range(len(pools)), key=lambda at: draw_by_hash(f"prompt\0{at}", seed))
    left = {at: list(pools[at]) for at in order if pools[at]}
    met: Counter[frozenset[str]] = Counter()
    shown: Counter[str] = Counter()
    while left:
        for at in [*left]:

            def cost(pair: _Pair, at: int = at) -> tuple[int, int, bytes]:
                (one, _), (other, _) = pair
                drawn = draw_by_hash(f"pair\0{at}\0{one}\0{other}", seed)
                return met[frozenset((one, other))], shown[one] + shown[other], drawn

            pair = min(left[at], key=cost)
            names = [name for name, _ in pair]
            met[frozenset(names)] += 1
            shown.update(names)
            yield at, pair
            count -= 1
            if not count:
                return
            left[at].remove(pair)
            if not left[at]:
                del left[at]


def _contestants(rows: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> tuple[str, ...]:
    models = dict.fromkeys(name_of(one, at) for row in rows for at, one in enumerate(row["candidates"] or ()))
    special = {
        BLEND_CONTESTANT: any(row["fused"] is not None for row in rows),
        RANKER_CONTESTANT: any(row["ranking"] for row in rows),
    }
    known = [*models, *(name for name, there in special.items() if there)]
    for name in wanted:
        if name not in known:
            raise CampaignError(
                f"--contestant {name}: there is none in the rows, but {', '.join(known) or 'nothing'}"
            )
    if len(set(wanted)) == 1:
        raise CampaignError(f"--contestant {wanted[0]}: one alone can't be compared; give two or more, or none")
    return tuple(dict.fromkeys(wanted)) or tuple(name for name in known if name != RANKER_CONTESTANT)


def _pairs(row: Mapping[str, Any], contestants: Sequence[str]) -> list[_Pair]:
    """Pairs of different answers; of several answers of a model the first one counts."""
    sides: dict[str, Side] = {}
    for at, one in enumerate(row["candidates"] or ()):
        sides.setdefault(name_of(one, at), at)
    sides[BLEND_CONTESTANT] = FUSED
    if row["ranking"]:
        sides[RANKER_CONTESTANT] = row["ranking"][0]
    texts = {name: side_text(row, sides[name]) or "" for name in contestants if name in sides}
    there = [(name, sides[name]) for name, text in texts.items() if text.strip()]
    pairs: dict[frozenset[Side], _Pair] = {}
    for one, other in combinations(there, 2):
        if texts[one[0]].strip() != texts[other[0]].strip():
            pairs.setdefault(frozenset((one[1], other[1])), (one, other))  # the ranker's choice is a model's answer
    return list(pairs.values())


def _item(prompt: int, pair: _Pair, *, is_open: bool = True) -> NewItem:
    (first_name, first), (second_name, second) = pair
    return NewItem(prompt, (first, second), (first_name, second_name), is_open=is_open)


def _gold(row: Mapping[str, Any], prompt: int) -> Iterator[NewItem]:
    seen = set()
    for one in read_judgements(row):
        if (pair := frozenset(one.sides)) not in seen:
            seen.add(pair)
            names = [
                BLEND_CONTESTANT if side == FUSED else name_of(row["candidates"][side], int(side))
                for side in one.sides
            ]
            yield NewItem(prompt, one.sides, (names[0], names[1]), one.preferred)


def _output(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as the output of a run, with the results that it has."""
    return write_row(row, [name for name in RESULT_COLUMNS if row.get(name) is not None])

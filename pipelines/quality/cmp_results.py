"""`cmp_results`: comparisons of a row's candidates as MixInstruct's files have them, read and written.

The column is an object, or its JSON text, such as {"alpaca,vicuna": "B is better"}: A is the first name. Beside it,
`cmp_results_judge` names the judge where `blend judge` wrote it; the published files have no such column.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llm_blender_ray.actors.judged_pairs import Preferred

CMP_RESULTS_COLUMNS = ("cmp_results", "cmp_results_judge")
CMP_RESULTS: dict[str, Preferred] = {
    "A is better": "left",
    "B is better": "right",
    "Same good": "both_good",
    "Same bad": "both_bad",
}


def read_pairs(value: Any, candidates: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int, Preferred]]:
    """Comparisons of a value of the column.

    Args:
        value: The object, or its JSON text; anything else has none.
        candidates: Candidates of the row; of several with the same model the first one counts.

    Yields:
        Indexes of A and B, and which is better. Pairs of other names and other verdicts are left out.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if not isinstance(value, Mapping):
        return
    index = _first_indexes(candidates)
    for pair, verdict in value.items():
        left, _, right = pair.partition(",")
        preferred = CMP_RESULTS.get(verdict) if isinstance(verdict, str) else None
        if preferred and left != right and left in index and right in index:
            yield index[left], index[right], preferred


def cmp_results_text(
    candidates: Iterable[Mapping[str, Any]], pairs: Iterable[tuple[Any, Any, Preferred]]
) -> str | None:
    """JSON text of the column.

    Args:
        candidates: Candidates of the row. Those without a model's name, and further ones of a model, are left out.
        pairs: One judge's comparisons: left, right (indexes; others are left out), and which is better.

    Returns:
        The text, with A before B in the order of names; None without a comparison. Both orders of a pair make one
        verdict: an answer preferred in one order, and not contradicted by the other, is better. Else the two are
        the same: bad where more of the judge's verdicts on the pair say bad than good.
    """
    names = {at: name for name, at in _first_indexes(candidates).items()}
    found: dict[tuple[str, str], list[Preferred]] = {}
    for left, right, preferred in pairs:
        if left in names and right in names:
            a, b = names[left], names[right]
            one = preferred if a < b else _SWAPPED.get(preferred, preferred)
            found.setdefault((min(a, b), max(a, b)), []).append(one)
    texts = {f"{a},{b}": _verdict(found[a, b]) for a, b in sorted(found)}
    return json.dumps(texts, ensure_ascii=False) if texts else None


_SWAPPED: dict[Preferred, Preferred] = {"left": "right", "right": "left"}


def _verdict(verdicts: list[Preferred]) -> str:
    lead = verdicts.count("left") - verdicts.count("right")
    if lead:
        return "A is better" if lead > 0 else "B is better"
    return "Same bad" if verdicts.count("both_bad") > verdicts.count("both_good") else "Same good"


def _first_indexes(candidates: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Index of the first candidate of each model."""
    return {one["model"]: at for at, one in reversed([*enumerate(candidates)]) if one["model"]}

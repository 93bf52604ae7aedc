"""Settings of strategies: which candidates are compared, and how comparisons make a ranking; one class per kind.

`actors.tournaments.strategies` documents what each kind does, costs and guarantees. A strategy is a mapping with a
`kind`, or text: `swiss`, or with options `swiss:rounds=4,orders=one`.
"""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field

from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.shorthand import read_shorthand

Aggregation = Literal["max-logits", "max-wins", "borda", "least-squares", "bradley-terry"]
Reference = Literal["longest", "shortest", "median", "first", "last"]


class Common(Settings):
    """Settings that every strategy has."""

    orders: Literal["both", "one"] = "both"  # of a pair; one: a candidate is on the left in half of its pairs
    aggregation: Aggregation = "least-squares"
    budget: Annotated[int, Field(ge=1)] | None = None  # forwards for one row at most
    seed: Annotated[int, Field(ge=0)] = 0


class Full(Common):
    """Every pair; with the defaults it is the original's ranking."""

    kind: Literal["full"] = "full"
    aggregation: Aggregation = "max-logits"


class Sparse(Common):
    """Every candidate against `degree` others."""

    kind: Literal["sparse"] = "sparse"
    degree: Annotated[int, Field(ge=2, multiple_of=2)] = 6  # even: only so is there a balanced graph of any size


class SparseRefine(Common):
    """Sparse, then all pairs of the leaders in both orders."""

    kind: Literal["sparse-refine"] = "sparse-refine"
    orders: Literal["both", "one"] = "one"  # of the sparse round
    degree: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    leaders: Annotated[int, Field(ge=2)] | None = None  # None: top k + 2, or half of them when no k is known


class Stoppable(Common):
    """Settings of strategies that can end after any round."""

    rounds: Annotated[int, Field(ge=1)]  # at most
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None  # stop when the top k is this sure
    deadline_s: Annotated[float, Field(gt=0)] | None = None  # seconds after which no further round begins


class Focus(Stoppable):
    """Sparse, then rounds of the comparisons with most information about the top k."""

    kind: Literal["focus"] = "focus"
    orders: Literal["both", "one"] = "one"
    degree: Annotated[int, Field(ge=2, multiple_of=2)] = 4  # of the first round
    width: Annotated[float, Field(gt=0)] = 1.3  # forwards of a further round, for each candidate
    rounds: Annotated[int, Field(ge=1)] = 3
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = 0.7


class Swiss(Stoppable):
    """Rounds that pair candidates of similar score."""

    kind: Literal["swiss"] = "swiss"
    rounds: Annotated[int, Field(ge=1)] = 5


class Knockout(Common):
    """Elimination, replayed for every further place."""

    kind: Literal["knockout"] = "knockout"


class Bubble(Common):
    """Passes of a bubble sort, each of which brings the best of the rest to its place."""

    kind: Literal["bubble"] = "bubble"
    passes: Annotated[int, Field(ge=1)] | None = None  # None: top k, or a whole sort when no k is known


class ToReference(Common):
    """Every candidate against one of them: the original's `rank_with_ref`."""

    kind: Literal["reference"] = "reference"
    reference: Reference | Annotated[int, Field(ge=0)] = "longest"  # or the place of a candidate in its row


_Kind = Full | Sparse | SparseRefine | Focus | Swiss | Knockout | Bubble | ToReference
_SCHEMAS: dict[str, type[_Kind]] = {schema.model_fields["kind"].default: schema for schema in get_args(_Kind)}


def _from_text(value: object) -> object:
    """`kind` or `kind:option=value,...` as settings, the values being YAML; anything but text as it is."""
    if not isinstance(value, str):
        return value
    kind = value.partition(":")[0]
    if kind not in _SCHEMAS:
        raise ValueError(f"unknown strategy {kind!r}, expected one of {', '.join(_SCHEMAS)}")
    return read_shorthand(value, _SCHEMAS[kind])


Strategy = Annotated[Annotated[_Kind, Discriminator("kind")], BeforeValidator(_from_text)]


def default_strategy(top_k: int | None) -> _Kind:
    """Default strategy: all pairs for a whole order, else the one that measured best."""
    return Full() if top_k is None else Focus()

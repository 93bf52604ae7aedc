"""Signs that a ranker's scores decide nothing: equal scores for all answers, or orders that contradict each other.

Applied to the comparisons of a run (`pipelines.bulk.failures`) and to a trained ranker's held-out pairs
(`pipelines.train.heldout`).
"""

from collections.abc import Sequence

# Log-odds below which two answers count as equal (a preference of 50.02%): a collapsed ranker's outputs are not
# all the same, they differ by rounding.
EQUAL = 1e-3
MOST = 0.95  # share of rows above which a ranker is constant
NEAR_CHANCE = 0.6  # share of agreeing pairs below which consistency is close to that of coin flips
TOO_FEW = 3  # rows or pairs too few to judge a ranker by
MANY = 20  # pairs from which a share between 1/2 and `NEAR_CHANCE` is worth a line


def orders_agree(forward: float, back: float) -> bool:
    """Whether both logits of a pair, one for each order, prefer the same answer; two ties agree."""
    return forward * back < 0 or forward == back == 0


def all_equal(leads: Sequence[float]) -> bool:
    """Whether no pair of a row has a winner.

    Args:
        leads: How much better one answer of each pair is, in log-odds.
    """
    return bool(leads) and all(abs(lead) < EQUAL for lead in leads)


def constant_sign(constant: int, ranked: int) -> str | None:
    """Text about a ranker that gives all answers of nearly every row the same score; None for any other.

    Args:
        constant: Rows on which `all_equal` holds.
        ranked: All rows with different answers.
    """
    if ranked < TOO_FEW or constant <= MOST * ranked:
        return None
    return (
        f"constant: on {constant:,} of {ranked:,} rows no two answers' scores differ by {EQUAL:g} or more; "
        "the ranking may be arbitrary"
    )


def contradiction_sign(agreeing: int, pairs: int) -> str | None:
    """Text about a ranker whose two orders contradict each other; None for any other.

    Args:
        agreeing: Pairs on which `orders_agree` holds.
        pairs: Pairs compared in both orders.
    """
    if pairs >= TOO_FEW and 2 * agreeing < pairs:
        return f"contradicts itself: {order_agreement(agreeing, pairs)}; place decides more than content"
    if pairs >= MANY and agreeing < NEAR_CHANCE * pairs:
        return f"hardly consistent: {order_agreement(agreeing, pairs)}; coin flips would agree on 50%"
    return None


def order_agreement(agreeing: int, pairs: int) -> str:
    """Text with the share of pairs on which both orders agree; `pairs` > 0."""
    return f"both orders of {agreeing:,} of {pairs:,} pairs agree ({agreeing / pairs:.0%})"

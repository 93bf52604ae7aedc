"""State of a tournament: its players, and the logits so far.

Candidates with the same text are one player: a ranker can't distinguish them, so they are compared once. Players
take their seats by a hash of seed and text. All that strategies do goes by seats, so a result depends on neither
the order of the candidates nor the process; a strategy needs no other randomness.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

Pair = tuple[int, int]  # left, then right


class Board:
    """Players by seat, 0 to P-1.

    Attributes:
        candidates: Per seat, the indexes of the candidates that are this player.
        logits_PP: `logits_PP[left, right]`, NaN where not compared.
        skipped: Cells without an answer of the scorer; they are not scored again.
        placed: The best players by a strategy's own rule, best first; it overrides any score.
    """

    def __init__(self, keys: Sequence[str | None], *, seed: int, symmetric: bool, salt: str = "") -> None:
        """Seat the players.

        Args:
            keys: Texts of the candidates, None for a missing one.
            seed: Of the draw for seats.
            symmetric: logit(j, i) = -logit(i, j).
            salt: Of the draw too; it differs between rows with equal texts.
        """
        indexes: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            if key is not None:
                indexes.setdefault(key, []).append(i)
        self.symmetric = symmetric
        self.candidates = [
            indexes[key] for key in sorted(indexes, key=lambda key: draw_by_hash(f"{salt}{key}", seed))
        ]
        self.seat = {i: seat for seat, here in enumerate(self.candidates) for i in here}
        self.copies_P = np.array([len(here) for here in self.candidates], dtype=int)
        self.logits_PP = np.full((self.size, self.size), np.nan)
        self.skipped: set[Pair] = set()
        self.placed: list[int] = []

    @property
    def size(self) -> int:
        """P, the number of players."""
        return len(self.candidates)

    def knows(self, pair: Pair) -> bool:
        """Whether the cell's logit is known."""
        return not np.isnan(self.logits_PP[pair])

    def settled(self, pair: Pair) -> bool:
        """Whether the cell needs no (further) forward: its logit is known, or there is none."""
        return pair in self.skipped or self.knows(pair)

    def met(self, i: int, j: int) -> bool:
        """Whether the two were put to the scorer in any order."""
        return self.settled((i, j)) or self.settled((j, i))

    def enter(self, pair: Pair, logit: float) -> None:
        """Set the logit of a cell, and of its mirror where scores are symmetric."""
        left, right = pair
        self.logits_PP[left, right] = logit
        if self.symmetric:
            self.logits_PP[right, left] = -logit

    def skip(self, pair: Pair) -> None:
        """Leave the cell without a logit for good."""
        left, right = pair
        self.skipped.update([(left, right), (right, left)] if self.symmetric else [(left, right)])

    def beats(self, i: int, j: int) -> bool:
        """Whether i came out better than j, whom it has met; a tie goes to the lower seat."""
        margin = np.nan_to_num(self.logits_PP[i, j]) - np.nan_to_num(self.logits_PP[j, i])
        return bool(margin > 0 or (margin == 0 and i < j))

    def parts(self) -> list[int]:
        """By seat, the part of the graph of comparisons it belongs to: the lowest seat in it."""
        part = list(range(self.size))
        for i, j in np.argwhere(~np.isnan(self.logits_PP)):
            low, high = sorted((part[i], part[j]))
            part = [low if each == high else each for each in part]
        return part

    def both_orders(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Each pair in both orders."""
        return [order for i, j in pairs for order in ((i, j), (j, i))]

    def one_order(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Each pair in the order that evens out how often the two stand on the left."""
        known_PP = ~np.isnan(self.logits_PP)
        surplus_P = known_PP.sum(1) - known_PP.sum(0)
        oriented = []
        for i, j in pairs:
            left, right = (j, i) if surplus_P[i] > surplus_P[j] else (i, j)
            surplus_P[left] += 1
            surplus_P[right] -= 1
            oriented.append((left, right))
        return oriented


def draw_by_hash(key: str, seed: int) -> bytes:
    """The text's place in a seeded draw: what breaks ties, so that the order of a row's candidates never does."""
    text = key.encode("utf-8", "surrogatepass")  # JSON may hold half a surrogate pair
    return hashlib.blake2b(text, digest_size=16, key=seed.to_bytes(8, "little")).digest()

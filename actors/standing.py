"""How well each model has done so far: the order of answers when nobody can compare them."""

from collections.abc import Sequence

from actors.records import Candidate, Ranking

WEIGHT = 0.02  # of the newest ranking: about the last fifty count


class Standing:
    """An average, by model, of the share of others that its answers were ranked above; the newest weigh most.

    A model that was never ranked stands in the middle; models that stand equally keep the order they were given in.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._shares = dict.fromkeys(models, 0.5)

    def add(self, candidates: Sequence[Candidate], ranking: Ranking) -> None:
        """One more ranking of these candidates; one of fewer than two tells nothing."""
        others = len(ranking.order) - 1
        for place, at in enumerate(ranking.order if others else ()):
            model = candidates[at].model
            if model in self._shares:
                share = 1 - place / others
                self._shares[model] += WEIGHT * (share - self._shares[model])

    def ranking(self, candidates: Sequence[Candidate]) -> Ranking:
        """The candidates in the order of their models, scored by that; nothing was compared."""
        scores = tuple(
            None if candidate.text is None else self._shares.get(candidate.model or "", 0.5)
            for candidate in candidates
        )
        order = sorted(
            (at for at, score in enumerate(scores) if score is not None), key=lambda at: -(scores[at] or 0.0)
        )
        n = len(candidates)
        return Ranking(tuple(order), scores, ((None,) * n,) * n, 0, complete=False)

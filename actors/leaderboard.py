"""Running average of each model's ranks: the order of answers when the ranker is not available."""

from collections.abc import Sequence

from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, digest
from llm_blender_ray.actors.tournaments.board import draw_by_hash

NEWEST_WEIGHT = 0.02  # of the newest ranking: about the last 50 count


class Leaderboard:
    """An average, by model, of the share of others that its answers were ranked above; the newest weigh most.

    A model that was never ranked stands in the middle. Where models stand equally, a draw over their answers
    decides, so that no model gains by its place in the config.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._shares = dict.fromkeys(models, 0.5)

    def add(self, candidates: Sequence[Candidate], ranking: Ranking) -> None:
        """One more ranking of these candidates; one of fewer than two is ignored."""
        others = len(ranking.order) - 1
        for place, at in enumerate(ranking.order if others else ()):
            model = candidates[at].model
            if model in self._shares:
                share = 1 - place / others
                self._shares[model] += NEWEST_WEIGHT * (share - self._shares[model])

    def ranking(self, candidates: Sequence[Candidate], prompt: Prompt | None = None) -> Ranking:
        """The candidates in the order of their models, scored by that; nothing was compared."""
        scores = tuple(
            None if candidate.text is None else self._shares.get(candidate.model or "", 0.5)
            for candidate in candidates
        )
        salt = digest(prompt).hex() if prompt else ""
        draws = [draw_by_hash(f"{salt}{candidate.text}\0{candidate.model}", seed=0) for candidate in candidates]
        present = (at for at, score in enumerate(scores) if score is not None)
        order = sorted(present, key=lambda at: (-(scores[at] or 0.0), draws[at]))
        n = len(candidates)
        return Ranking(tuple(order), scores, ((None,) * n,) * n, 0, complete=False)

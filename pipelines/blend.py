"""One prompt after the other, no Ray: the reference that the bulk path and the service must agree with."""

from collections.abc import Sequence

from actors.records import Blend, Candidate, Prompt
from actors.stages import Fuse, Generate, Rank, TakeBest
from configs.schema import BlendConfig


class Blender:
    """Base LLMs, ranker and fuser of a config, all in this process."""

    def __init__(self, config: BlendConfig) -> None:
        """Raises ModelLoadError when a model can't be used."""
        self._generate = [Generate(model) for model in config.models]
        self._rank = Rank(config.placing_ranker)
        self._fuse = Fuse(config.fuser) if config.fuser else TakeBest()

    async def blend(self, prompt: Prompt, given: Sequence[Candidate] = ()) -> Blend:
        """The blend of one prompt; an LLM that already has a candidate in `given` is not asked again."""
        blends = [Blend(prompt, tuple(given))]
        for stage in self._generate:
            blends = await stage(blends)
        return self._fuse(await self._rank(blends))[0]

"""Commands in two steps: check the command line and the config, then start. `blend submit` does the first alone."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from pydantic import BaseModel

_Options = ParamSpec("_Options")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command whose options and config are checked.

    Attributes:
        start: Runs the command in this process.
        config: What its config file holds after all overrides; None: it has none.
    """

    start: Callable[[], None]
    config: BaseModel | None = None


CLUSTER_COMMANDS: dict[str, Callable[..., Prepared]] = {}  # by their words on the command line


def works_on_cluster(words: str) -> Callable[[Callable[_Options, Prepared]], Callable[_Options, None]]:
    """Decorate a command that `blend submit` can run as a job; here it starts when it is called.

    Args:
        words: Of the command line that name it.
    """

    def register(prepare: Callable[_Options, Prepared]) -> Callable[_Options, None]:
        CLUSTER_COMMANDS[words] = prepare

        @functools.wraps(prepare)
        def command(*args: _Options.args, **options: _Options.kwargs) -> None:
            prepare(*args, **options).start()

        return command

    return register

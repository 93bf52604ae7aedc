"""`blend plan`: the placement of a run, as a table."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.model_files import has_chat_template
from llm_blender_ray.actors.prices import billed_parts
from llm_blender_ray.cluster.address import LOCAL_ADDRESS, address_of
from llm_blender_ray.cluster.capacity import grown_capacity, local_capacity
from llm_blender_ray.cluster.placement import Capacity, Node, Placement
from llm_blender_ray.cluster.plan import READ_CPUS, Plan, make_plan
from llm_blender_ray.cluster.preflight import check_local_models, check_variables
from llm_blender_ray.configs.schema import BlendConfig, LocalLLM, RayCluster


def show_plan(
    config: BlendConfig, gpus: int | None, *, measured: str | None = None, answer_tokens: int | None = None
) -> None:
    """Print the waves of a run with their resources, and what it will cost where it has an input and a price.

    Args:
        config: The run.
        gpus: GPUs of the cluster; None: those that are there.
        measured: Output of an earlier run of the config over some of the rows, for the estimate of costs.
        answer_tokens: Tokens of an answer for the same, without such a run.

    Raises:
        BlendError: There is no earlier run that was measured.
        PlanError: A part cannot run.
        ClusterError: Environment variables of its models are not set.
    """
    lines = _cost_lines(config, measured, answer_tokens)
    show_waves(config.ray, functools.partial(make_plan, config), gpus, lines)
    check_variables(config.ray, config)
    check_local_models(config.ray, config.parts.values())


def show_waves(
    ray: RayCluster, planned: Callable[[Capacity], Plan], gpus: int | None, lines: Iterable[str]
) -> None:
    """Print a plan, then lines.

    Args:
        ray: The cluster.
        planned: Makes the plan.
        gpus: See `show_plan`.
        lines: Iterated after the plan is printed.
    """
    have = _capacity(ray)
    if gpus is not None:
        have = _with_gpus(have, gpus)
    made = planned(have)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # of a file or pipe, for which rich takes 80
    _show(made, console)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _cost_lines(config: BlendConfig, measured: str | None, answer_tokens: int | None) -> Iterator[str]:
    """Estimate of the run's cost; nothing where nothing is billed, or there is no input yet."""
    if config.input is not None and billed_parts(config.parts, config.prices):
        from llm_blender_ray.pipelines.bulk.estimate import estimated_lines  # rows, judges, fusers: 2 s of imports

        yield from estimated_lines(config, config.input, measured, answer_tokens)


def announce(made: Plan) -> None:
    """Print the plan before a run: on a terminal the table; in a log one line, if there are several waves."""
    console = Console(stderr=True)
    lines = []
    if console.is_terminal:
        _show(made, console)
    else:
        lines = [*([plan_summary(made)] if len(made.waves) > 1 else []), *node_lines(made.placements)]
    for line in lines:
        print(line, file=console.file, flush=True)
    for line in bare_prompts(placement.model for wave in made.waves for placement in wave):
        print(line, file=console.file, flush=True)


def bare_prompts(parts: Iterable[object]) -> Iterator[str]:
    """Find the LLMs that get bare text because there is no chat template for them.

    Args:
        parts: Settings of the parts of a run. Hub models count once they are in the hub's cache.

    Yields:
        One line for each such LLM.
    """
    for part in parts:
        if isinstance(part, LocalLLM) and part.chat_template is None:
            folder = _folder(part)
            if folder is not None and not has_chat_template(folder):
                yield (
                    f"{part.name}: its tokenizer has no chat template, so prompts reach it as bare text; "
                    "chat_template sets one, or bare to mean it"
                )


def _folder(llm: LocalLLM) -> Path | None:
    """Local folder of the model, if there is one."""
    folder = Path(llm.model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache  # a quarter of a second, for hub models alone
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(llm.model, "config.json", revision=llm.revision)
    except HFValidationError:  # a path; loading reports a missing folder
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _show(made: Plan, console: Console) -> None:
    for number, wave in enumerate(made.waves, 1):
        console.print(wave_table(wave, made.capacity, f"wave {number} of {len(made.waves)}"))
    for line in (plan_summary(made), *node_lines(made.placements)):
        console.print(line, highlight=False, soft_wrap=True)


def node_lines(placements: Iterable[Placement]) -> Iterator[str]:
    """What models on several nodes expect of the nodes.

    Args:
        placements: All pools of a run.

    Yields:
        One line for each such model.
    """
    for pool in placements:
        weights = pool.model.weights
        if not pool.node_gpus or weights is None:
            continue
        where = (
            "must be at this path on every node with GPUs, which a run checks and a plan cannot"
            if weights.is_path
            else "is read from each node's own cache of the hub"
        )
        yield f"{pool.name}: one replica takes {pool.node_shape}; {weights.model} {where}"


def _capacity(ray: RayCluster) -> Capacity:
    if ray.nodes:
        return grown_capacity(ray)
    if address_of(ray) == LOCAL_ADDRESS:
        return local_capacity(ray)
    from llm_blender_ray.cluster.session import capacity, session  # Ray, which no other plan needs

    with session(ray):
        return capacity(ray)


def _with_gpus(have: Capacity, gpus: int) -> Capacity:
    """Capacity of one machine with all resources and `gpus` GPUs."""
    amounts = have.amounts()
    own = {name: amount for name, amount in amounts.items() if name not in ("CPU", "GPU")}
    kinds = {node.accelerator for node in have.nodes if node.accelerator}
    return Capacity((Node(amounts["CPU"], float(gpus), own, kinds.pop() if len(kinds) == 1 else None),))


def wave_table(wave: tuple[Placement, ...], have: Capacity, title: str) -> Table:
    """One wave as a table: a line per pool, then the sums."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("actors", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("replicas", "CPUs", "GPUs", "other"):
        table.add_column(name, justify="right", no_wrap=True)
    needed = {"CPU": READ_CPUS}
    for pool in wave:
        amounts = pool.amounts()
        for name, amount in amounts.items():
            needed[name] = needed.get(name, 0.0) + amount * pool.replicas
        cells = _cells(amounts, pool.model.accelerator_type, pool.node_shape)
        table.add_row(pool.name, pool.settings.label, str(pool.replicas), *cells)
    table.add_section()
    table.add_row("needed, with reading", "", "", *_cells(needed))
    there = have.amounts()
    nodes = f"{len(have.nodes)} nodes" if len(have.nodes) > 1 else ""
    table.add_row("there", nodes, "", *_cells(there))
    return table


def _cells(amounts: dict[str, float], *traits: str | None) -> tuple[str, str, str]:
    other = [f"{name}:{amount:g}" for name, amount in amounts.items() if name not in ("CPU", "GPU")]
    cpus, gpus = (f"{round(amounts.get(name, 0), 6):g}" for name in ("CPU", "GPU"))
    return cpus, gpus, " ".join([*filter(None, traits), *other])


def plan_summary(made: Plan) -> str:
    """The plan in one sentence."""
    if len(made.waves) == 1:
        return "Everything fits at once."
    order = ", then ".join(" + ".join(placement.name for placement in wave) for wave in made.waves)
    return f"{len(made.waves)} waves, one after the other: {order}."

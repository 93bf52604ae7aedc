"""Execution of a bulk run from its start, or from where it was killed: repeating the same call completes it."""

from dataclasses import replace

from llm_blender_ray.actors.prices import check_prices
from llm_blender_ray.cluster.preflight import check_hub_models, check_local_models, check_variables
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.keys import run_identity
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.bulk.own_outputs import own_outputs
from llm_blender_ray.pipelines.bulk.repair import report_damaged
from llm_blender_ray.pipelines.bulk.resume import earlier_state, finished_summary
from llm_blender_ray.pipelines.bulk.retry import can_retry
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint


def execute(run: Run, *, overwrite: bool = False, update: bool = False, retry_failed: bool = False) -> Summary:
    """Execute a run, or the rest of it.

    The output is not touched before the plan is known to fit.

    Args:
        run: The work.
        overwrite: Replace an existing output, and ignore its checkpoints; a killed run with the same settings is
            resumed.
        update: The config or the input may have changed; results that are still valid are reused.
        retry_failed: Run failed rows again, and keep other results (`pipelines.bulk.retry`).

    Returns:
        The summary.

    Raises:
        BlendError: The run failed; one line.
    """
    run = replace(run, identity=run_identity(run.identity, run.parts))
    taken = [output for output in run.outputs if output.is_taken(overwrite=overwrite)]
    store = CheckpointStore(run.output.work_folder)
    damaged = store.damaged()
    own = own_outputs(run.input, run.outputs, store.run)
    mark = fingerprint(run.input, run.limit, own)
    state = earlier_state(run, store, mark, damaged, taken, overwrite=overwrite, update=update)
    if state.finished and state.fingerprint == mark and (done := finished_summary(run, store)):
        retry_failed = retry_failed or _may_spend_more(run, done.manifest)
        if not retry_failed:
            return done
        if not can_retry(done.manifest):
            return replace(done, nothing_failed=True)
    check_variables(run.cluster, *run.parts.values())
    check_local_models(run.cluster, run.parts.values())
    check_hub_models(run.cluster, run.parts.values())
    if run.usd is not None:
        check_prices(run.parts, run.prices)
    if state.there:
        report_damaged(store, damaged)
    for output in run.outputs:
        output.sweep()
    # Ray and pandas: a second of imports, which no refusal above waits for
    from llm_blender_ray.pipelines.bulk.waves import run_waves

    return run_waves(run, store, state, mark, own, overwrite=overwrite, update=update, retry=retry_failed)


def _may_spend_more(run: Run, manifest: Manifest) -> bool:
    """Whether a complete run made fewer calls than it had to, for a budget that has been raised since."""
    before = manifest.budget
    return before is not None and manifest.unpaid > 0 and (run.usd is None or run.usd > before.usd_per_run)

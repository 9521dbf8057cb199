"""What run a trial is, what that takes of the cluster, and how large its model is."""

from dataclasses import replace

from rtrain import config
from rtrain.mesh import Parallel, lay_out
from rtrain.parallel.stage import parameters_of_ranks
from rtrain.report.facts import TRIALS
from rtrain.run import Run
from rtrain.tuning.journal import Entry
from rtrain.tuning.space import Space, changes


def run_of(run: Run, space: Space, entry: Entry) -> Run:
    """The run that a trial is: the recipe with what was drawn for it, in a folder of the search's.

    Raises:
        ConfigError: values that do not go together.
    """
    changed = config.override(run, changes(space, entry.drawn))
    # What a report tells of is committed: a trial that is stopped, paused or taken over goes on from there.
    checkpoint = replace(changed.checkpoint, every=run.evaluation.every, background=False)
    return replace(
        changed,
        name=entry.run or entry.name,
        storage=f"{run.folder}/{TRIALS}",
        checkpoint=checkpoint,
        tracking=replace(changed.tracking, group=changed.tracking.group or run.name),
    )


def needs_of(run: Run) -> dict[str, float]:
    """What a trial takes of the cluster."""
    cluster = run.cluster
    needs = {"CPU": cluster.workers * cluster.cpus_per_worker, "GPU": float(cluster.workers * cluster.gpus_per_worker)}
    return {kind: amount for kind, amount in needs.items() if amount}


def parameters_of(run: Run) -> int:
    """Elements of the model's weights, tables included."""
    blueprint = run.blueprint
    dense = parameters_of_ranks(blueprint.pieces, Parallel(), lay_out(Parallel(), 1))[0]
    return dense + sum(table.rows * table.dim for table in blueprint.tables)

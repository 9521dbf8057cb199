"""The runs that `chaos` makes of a run: on how many rows, and in folders that a later rehearsal may replace."""

from dataclasses import replace

from rtrain import config
from rtrain.data.cursor import batches_per_epoch
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.run import Run
from rtrain.storage import Folder, check_writable

MARK = "rehearsal.json"
"""In a rehearsal's folder, from before it is trained: its config. A folder without it is the user's."""


def ending_an_epoch(run: Run, rows: int) -> Run:
    """The run itself if its steps reach the end of an epoch of `rows`, else on so few that two thirds of them do.

    Only of an epoch that has ended does the data say by itself whether a sample is missing.
    """
    steps = run.total_steps(rows)
    if steps >= batches_per_epoch(rows, run.global_batch):
        return run
    fewer = max(1, steps * 2 // 3) * run.global_batch
    # One less than fills the batches where each rank can spare it, so that padding is rehearsed too.
    fewer -= run.global_batch > run.cluster.workers
    return replace(config.override(run, {"data.train_rows": fewer}), duration=Duration(steps=steps))


def refuse_foreign(run: Run) -> None:
    """Refuse a name whose folder holds anything but an earlier rehearsal.

    Raises:
        ConfigError: it does. A rehearsal that was trained on with another config is the user's too.
    """
    folder = Folder(run.folder)
    names = folder.names()
    own = MARK in names and ("run.json" not in names or folder.read_json(MARK) == folder.read_json("run.json"))
    if names and not own:
        raise ConfigError(
            f"chaos: {run.folder!r} is where a rehearsal goes, but what it holds is not one, so it is not replaced. "
            "Move it away, or give the run another --name"
        )


def replace_earlier(run: Run) -> None:
    """Delete the earlier rehearsal of this name, if there is one, and mark the folder for this one.

    Raises:
        ConfigError: as `refuse_foreign`, or storage that cannot be written.
    """
    refuse_foreign(run)
    check_writable(run.storage)
    folder = Folder(run.folder)
    for name in folder.names():
        if name != MARK:  # last, so that what is left of a deletion that was cut short is known again
            folder.child(name).remove()
    folder.write_json(MARK, config.to_dict(run))

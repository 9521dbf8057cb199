"""Weights & Biases, offline unless told otherwise."""

import os
import sys
import uuid
import warnings
from collections.abc import Mapping
from typing import Literal

import wandb

from rtrain.errors import ClusterError, RtrainWarning, one_line
from rtrain.tracking.protocol import Opening
from rtrain.tracking.workspace import Workspace
from rtrain.uris import mask_text

CANNOT = (wandb.Error, OSError, ValueError, RuntimeError, TimeoutError)
ANSWER_S = 15.0
"""Seconds within which a server answers at the start."""


class Wandb:
    """One wandb run for all attempts; offline files lie in `wandb/` of the run's folder."""

    def __init__(self, opening: Opening):
        mode = opening.tracking.wandb_mode
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means: nothing is sent anywhere
        elif not sys.stdin or not sys.stdin.isatty():
            os.environ.setdefault("WANDB_SILENT", "true")
        self.place = Workspace(opening.folder, "wandb")
        # wandb falls back to a folder in /tmp when its own is not there: make it, or say why not.
        try:
            self.place.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_start(error) from error
        identity = opening.id_of("wandb") or uuid.uuid4().hex[:8]
        try:
            self.run = self._start(opening, identity, mode)
        except CANNOT as error:
            if mode == "offline":
                raise _cannot_start(error) from error
            self.run = self._offline_instead(opening, identity, error)
        opening.keep_id("wandb", identity)

    def _start(self, opening: Opening, identity: str, mode: Literal["offline", "online"]) -> wandb.Run:
        return wandb.init(
            project=opening.tracking.project,
            name=opening.shown,
            group=opening.tracking.group or None,
            id=identity,
            resume="allow",
            dir=str(self.place.path.parent),
            mode=mode,
            config=dict(opening.config),
            allow_val_change=True,
            # The metadata would hold the command line, and a secret with it.
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                login_timeout=5,
                init_timeout=ANSWER_S,
            ),
        )

    def _offline_instead(self, opening: Opening, identity: str, error: Exception) -> wandb.Run:
        """What cannot be sent now is written as if offline, and sent by the user when there is a server again."""
        wandb.teardown()  # what is left of the start that failed
        try:
            run = self._start(opening, identity, "offline")
        except CANNOT as also:
            raise _cannot_start(also) from also
        where = f"{opening.folder.uri}/wandb"
        text = (
            f"tracking: wandb cannot start online ({mask_text(one_line(error))}). The run goes on and its points are "
            f"written to {where}: 'wandb sync --sync-all {where}' sends them. Set WANDB_API_KEY (or run 'wandb login') "
            "on every node if that is what it lacks"
        )
        warnings.warn(text, RtrainWarning, stacklevel=4)
        return run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """wandb gathers the calls of one step itself."""
        self.run.log({k: float(v) for k, v in values.items()}, step=step)
        self.place.copy_if_due(lambda: None)

    def flush(self) -> None:
        """Nothing to do: wandb's own process holds what was logged, and outlives this one."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Set the summary and end the wandb run as finished."""
        self.run.summary.update({k: float(v) for k, v in summary.items()})
        self._end(0)

    def close(self) -> None:
        """End the wandb run as failed; the next attempt goes on with it."""
        self._end(1)

    def _end(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        if wandb.run is None:  # no run of the user's own in this process
            # `finish` returns before wandb's process has written its last block: the copy that follows would lack it.
            wandb.teardown()
        self.place.close()


def _cannot_start(error: Exception) -> ClusterError:
    what = "See that the run's folder is writable and local ports may be opened, or take 'wandb' out of tracking.to"
    return ClusterError(f"tracking: wandb cannot start offline ({one_line(error)}). {what}")

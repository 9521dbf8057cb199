"""Sends what trackers had not taken when a run ended: its spool to MLflow, and what wandb is to be asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from rtrain.storage import Folder
from rtrain.tracking.protocol import Opening, Tracking
from rtrain.tracking.secrets import mask
from rtrain.tracking.spool import SPOOL

WITHIN_S = 600.0


@dataclass(frozen=True)
class Synced:
    """What came of it."""

    sent: int
    """Values that MLflow took."""
    left: int
    """Values that it has not taken."""
    why: str
    """Why not; empty where nothing is left."""
    wandb: str
    """The command that sends what wandb has written offline; empty where there is none."""

    def __str__(self) -> str:
        lines = [f"MLflow has taken {self.sent} values" if self.sent else "nothing waits for MLflow"]
        if self.why:
            lines = [f"MLflow has not taken {self.left} values: {self.why}"]
        return "\n".join([*lines, *([f"what wandb has is sent by: {self.wandb}"] if self.wandb else [])])


def sync(
    tracking: Tracking,
    *,
    run_name: str,
    folder: str,
    config: Mapping[str, object],
    finished: bool,
    within_s: float = WITHIN_S,
) -> Synced:
    """Send what lies in the run's `folder`; what is left stays there.

    `finished`: whether the run reached its end, which a killed process could not say itself.

    Raises:
        ClusterError: the run goes on, and sends it itself.
    """
    place = Folder(folder)
    offline = [name for name in place.child("wandb").names() if name.startswith("offline-run-")]
    command = f"wandb sync --sync-all {place.uri}/wandb" if offline else ""
    if "mlflow.jsonl" not in place.child(SPOOL).names():
        return Synced(0, 0, "", command)
    from rtrain.tracking.mlflow import MLflow

    opening = Opening(tracking, run_name=run_name, folder=place, config=mask(config), attempt=0, resume_step=0)
    tracker = MLflow(opening, late="FINISHED" if finished else "FAILED")
    waiting = tracker.waiting
    left, why = tracker.deliver(within_s)
    return Synced(waiting - left, left, why, command)

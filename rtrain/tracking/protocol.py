"""What is configured, what a tracker does, and what each one is opened with."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rtrain.errors import ConfigError
from rtrain.storage import Folder
from rtrain.uris import mask_uris

MLFLOW_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
IDS = "trackers.json"


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where curves are sent besides the run's own folder."""

    to: tuple[Literal["tensorboard", "wandb", "mlflow", "jsonl"], ...] = ("tensorboard",)
    """The trackers that get the curves; empty: none."""
    project: str = "rtrain"
    """wandb project and MLflow experiment."""
    group: str = ""
    """What the run is one of: wandb's group, a tag `group` in MLflow, and before the run's name in both. Where none is
    given, of a trial its search."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """offline: written into the run's folder, sent later by `wandb sync`; online: sent while the run goes on."""
    mlflow_uri: str = ""
    """MLflow tracking URI; empty: a SQLite file `mlflow.db` in the run's folder."""

    def __post_init__(self) -> None:
        if len(set(self.to)) != len(self.to):
            raise ConfigError(f"tracking.to: a tracker is named twice: {', '.join(self.to)}")
        if not self.project.strip():
            raise ConfigError("tracking.project: must not be empty")
        scheme = self.mlflow_uri.partition(":")[0].partition("+")[0]
        if self.mlflow_uri and scheme not in MLFLOW_SCHEMES:
            raise ConfigError(
                f"tracking.mlflow_uri: {mask_uris(self.mlflow_uri)!r} would be MLflow's file store, which MLflow has "
                "closed. Use sqlite:////absolute/path/mlflow.db or a server's http(s):// address, or leave it empty"
            )


class Tracker(Protocol):
    """Takes the points of one run; used on rank 0 only, from one thread.

    One whose server is away opens all the same.
    Once open, a tracker never ends a run: what it cannot deliver it keeps and tries again later.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step; several calls may give parts of one step."""

    def flush(self) -> None:
        """Bring what was logged to where a killed process cannot lose it, as far as the tracker can."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """The run reached its end: store the summary and let go."""

    def close(self) -> None:
        """The attempt ended without reaching the run's end: store what there is and let go."""


class Opening:
    """What every tracker is opened with."""

    def __init__(
        self,
        tracking: Tracking,
        *,
        run_name: str,
        folder: Folder,
        config: Mapping[str, object],
        attempt: int,
        resume_step: int,
    ):
        self.tracking, self.run_name, self.folder = tracking, run_name, folder
        self.config = config
        """Flat and with its secrets masked."""
        self.attempt, self.resume_step = attempt, resume_step
        self._keeping = threading.Lock()

    @property
    def shown(self) -> str:
        """The run's name where runs of several groups are listed together."""
        group = self.tracking.group
        return f"{group}/{self.run_name}" if group else self.run_name

    def id_of(self, tracker: str) -> str:
        """The id under which an earlier attempt was tracked; empty when there is none."""
        return str(self._ids().get(tracker, ""))

    def keep_id(self, tracker: str, identity: str) -> None:
        """Remember the id for the next attempt; a tracker's own thread may do so too."""
        with self._keeping:
            ids = self._ids()
            if ids.get(tracker) != identity:
                self.folder.write_json(IDS, ids | {tracker: identity})

    def _ids(self) -> dict[str, Any]:
        if not self.folder.exists(IDS):
            return {}
        try:
            ids: dict[str, Any] = self.folder.read_json(IDS)
        except ValueError:  # not ours, or cut off by a full disk: a new id is the lesser evil
            return {}
        return ids

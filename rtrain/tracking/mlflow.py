"""MLflow, on SQLite in the run's folder or on the server that is named."""

import re
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtrain.errors import ClusterError, RtrainWarning
from rtrain.tracking.courier import Courier
from rtrain.tracking.mlflow_client import Metric, MlflowClient, MlflowException, Param, quieten
from rtrain.tracking.protocol import Opening
from rtrain.tracking.spool import Line, Spool
from rtrain.tracking.workspace import Workspace
from rtrain.uris import mask_text

MOST = 500
"""Metrics or params of one request; MLflow takes 1000 and 100."""
LONGEST = 6000
"""Characters of a param."""
START_S, OWN_START_S = 5.0, 60.0
"""Seconds that the start waits for a server, and for a new database to be built."""
END_S = 30.0
"""Seconds that the end waits for a store that takes what is left; for one that fails, one try."""
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says of a run that was removed, or that another server knows nothing of."""


class MLflow:
    """One MLflow run for all attempts. Points go out together every 2 s: each request is a transaction.

    What was not taken yet lies in `spool/mlflow.jsonl`; the next attempt, or `rtrain sync`, sends it first. A point
    that comes again is stored once: MLflow keeps one of the same name, step, value and time, and what an earlier
    attempt has stored of a step is left as it is.

    `late`: opened to send what an attempt that ended has left, all of it; the status of a run that could not say its
    end itself.
    """

    def __init__(self, opening: Opening, *, late: str = ""):
        self.opening, self.late = opening, late
        uri = opening.tracking.mlflow_uri
        known = opening.id_of("mlflow")
        if not known:
            _refuse_impossible(uri)
        try:
            self.place = None if uri else Workspace(opening.folder, "mlflow.db")
            if self.place:
                self.place.fetch()
            self.spool = Spool(opening.folder, "mlflow", keep=self._wanted, alone=bool(late))
        except OSError as error:
            raise _cannot(f"{opening.folder.uri}", str(error)) from error
        self.uri = f"sqlite:///{self.place.path.absolute()}" if self.place else uri
        self.waiting = self.spool.values
        """Values that earlier attempts have left."""
        self.step = opening.resume_step
        self.told = False
        self.run = known
        self.marker = opening.id_of("mlflow.marker")
        self.made_before = bool(self.marker)
        if not self.marker:
            self.marker = uuid.uuid4().hex
            opening.keep_id("mlflow.marker", self.marker)
        self.stored: dict[str, set[int]] | None = {} if known or self.made_before else None
        quieten()
        forgets = not (self.place and self.place.scratch)  # else it is safe when the database has been copied
        self.courier = Courier(self.spool, self._connect, self._deliver, forgets=forgets)
        if not late:
            self.courier.settle(OWN_START_S if self.place else START_S)
            self._tell()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Spool the values; they are sent every 2 s."""
        self.step = step
        self._add(step, values)
        self._tell()
        if self.place and self.place.scratch:
            with self.courier.pause(0.1) as paused:
                if paused and self.place.copy_if_due(lambda: None):
                    self.spool.forget()

    def flush(self) -> None:
        """Into the spool, which outlives the process."""
        self.spool.sync()

    def finish(self, summary: Mapping[str, float]) -> None:
        """Log the summary and end the MLflow run as finished."""
        self._add(self.step, summary)
        self._end("FINISHED")

    def close(self) -> None:
        """End the MLflow run as failed; the next attempt goes on with it."""
        self._end("FAILED")

    def deliver(self, within_s: float) -> tuple[int, str]:
        """Send what an earlier attempt has left, and let go: how many values are left, and why."""
        self.courier.settle(within_s)
        return self._let_go()

    def _wanted(self, line: Line) -> bool:
        """Of steps that are not taken again; the end that an earlier attempt came to is none any more."""
        if self.late:
            return True
        return "end" not in line and int(line.get("step", 0)) <= self.opening.resume_step

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        named = {_name(k): float(v) for k, v in values.items()}
        now = int(time.time() * 1000)
        self.spool.add({"attempt": self.opening.attempt, "step": step, "at": now, "values": named})

    def _tell(self) -> None:
        """Once for each time that it is away."""
        if self.courier.problem or not self.courier.connected:
            if not self.told:
                why = mask_text(self.courier.problem) or "no answer yet"
                text = (
                    f"tracking: MLflow at {mask_text(self.uri)} takes nothing ({why}). The run goes on; its points "
                    f"wait in {self.spool.uri}, and are sent when it answers again"
                )
                warnings.warn(text, RtrainWarning, stacklevel=3)
            self.told = True
        else:
            self.told = False

    def _end(self, status: str) -> None:
        self.spool.add({"attempt": self.opening.attempt, "end": status})
        self.courier.settle(OWN_START_S if self.place else END_S)
        left, why = self._let_go()
        if why:
            text = (
                f"tracking: MLflow at {mask_text(self.uri)} has not taken {left} values and the run's end "
                f"({why}). They wait in {self.spool.uri}: 'rtrain sync {self.opening.folder.uri}' sends them, as does "
                "the next start of the run"
            )
            warnings.warn(text, RtrainWarning, stacklevel=3)

    def _let_go(self) -> tuple[int, str]:
        self.courier.stop(1.0)
        empty = self.spool.is_empty
        why = "" if empty else mask_text(self.courier.problem) or "no answer in time"
        left = 0 if empty else self.spool.values
        if self.place and self.place.close() and empty:
            self.spool.forget()
        self.spool.close()
        return left, why

    def _connect(self) -> None:
        """The MLflow run, made or gone on with, and its params."""
        self.client = MlflowClient(tracking_uri=self.uri)
        self.run = self._known_run() or self._made_run()
        self._params()
        self.opening.keep_id("mlflow", self.run)

    def _known_run(self) -> str:
        if self.run:
            try:
                self.client.update_run(self.run, status="RUNNING")
                if self.opening.attempt:
                    self.client.set_tag(self.run, "attempt", self.opening.attempt)
                return self.run
            except MlflowException as error:
                if error.error_code not in GONE:
                    raise
        return ""

    def _made_run(self) -> str:
        project = self.opening.tracking.project
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            artifacts = f"{self.opening.folder.uri}/mlflow-artifacts" if self.place else None
            number = self.client.create_experiment(project, artifact_location=artifacts)
        else:
            number = experiment.experiment_id
            # One whose making was answered too late, or to a process that had been killed.
            if self.made_before and (made := self._marked(number)):
                return made
        self.made_before = True
        tags = {
            **({"group": self.opening.tracking.group} if self.opening.tracking.group else {}),
            "attempt": str(self.opening.attempt or 1),
            "rtrain.folder": self.opening.folder.uri,
            "rtrain.marker": self.marker,
        }
        return str(self.client.create_run(number, run_name=self.opening.shown, tags=tags).info.run_id)

    def _marked(self, experiment: str) -> str:
        found = self.client.search_runs([experiment], f"tags.`rtrain.marker` = '{self.marker}'", max_results=1)
        return str(found[0].info.run_id) if found else ""

    def _params(self) -> None:
        """Params are written once in MLflow; what a later attempt changed becomes a tag."""
        before: dict[str, str] = self.client.get_run(self.run).data.params
        now = {_name(k): str(v)[:LONGEST] for k, v in self.opening.config.items()}
        new = [Param(k, v) for k, v in now.items() if k not in before]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.run, params=new[start : start + 100])
        if self.late:
            return
        changed = [f"{k}: {before[k]} -> {v}" for k, v in now.items() if k in before and before[k] != v]
        if changed:
            self.client.set_tag(self.run, f"config.attempt-{self.opening.attempt}", "; ".join(changed)[:LONGEST])

    def _deliver(self, lines: list[dict[str, Any]]) -> None:
        metrics = [
            Metric(name, value, line["at"], line["step"])
            for line in lines
            for name, value in line.get("values", {}).items()
            if not self._is_stored(name, line["step"])
        ]
        for start in range(0, len(metrics), MOST):
            self.client.log_batch(self.run, metrics=metrics[start : start + MOST])
        ends = [line["end"] for line in lines if "end" in line]
        if ends:
            self.client.set_terminated(self.run, ends[-1])
        elif self.late:
            self.client.set_terminated(self.run, self.late)

    def _is_stored(self, name: str, step: int) -> bool:
        """Whether an earlier attempt stored a step of that curve; each curve is asked for once."""
        if self.stored is None:
            return False
        if name not in self.stored:
            self.stored[name] = {point.step for point in self.client.get_metric_history(self.run, name)}
        return step in self.stored[name]


def _refuse_impossible(uri: str) -> None:
    """A database of a file that can never be there, which waiting does not mend."""
    path = uri.partition("?")[0].removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""
    if not path:
        return
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        raise _cannot(mask_text(uri), f"{above} is a file")
    if Path(path).is_dir():
        raise _cannot(mask_text(uri), "it is a folder")


def _cannot(where: str, why: str) -> ClusterError:
    return ClusterError(
        f"tracking: MLflow cannot be used at {where} ({why}). Check that the folder is writable, set "
        "tracking.mlflow_uri, or take 'mlflow' out of tracking.to"
    )


def _name(key: str) -> str:
    """A name that MLflow takes: `ndcg@10` becomes `ndcg_at_10`, `optim.$type` becomes `optim.type`."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_").replace("$", ""))

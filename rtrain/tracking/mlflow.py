"""MLflow, on SQLite in the run's folder or on the server that is named."""

import logging
import os
import re
import time
import warnings
from collections.abc import Mapping

# Nothing is sent to MLflow's makers on the user's behalf; it is read at import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rtrain.errors import ClusterError, RtrainWarning, one_line
from rtrain.tracking.protocol import Opening
from rtrain.tracking.uris import mask_text
from rtrain.tracking.workspace import Workspace

EVERY_S = 2.0
MOST = 500
"""Metrics or params of one request; MLflow takes 1000 and 100."""
LONGEST = 6000
"""Characters of a param."""


class MLflow:
    """One MLflow run for all attempts. Points go out together every 2 s: each request is a transaction."""

    def __init__(self, opening: Opening):
        uri = opening.tracking.mlflow_uri
        self.place = None if uri else Workspace(opening.folder, "mlflow.db")
        if self.place:
            self.place.fetch()
            uri = f"sqlite:///{self.place.path.absolute()}"
        self.waiting: list[Metric] = []
        self.sent = time.monotonic()
        self.step = opening.resume_step
        # A new database is built by some 50 migrations, and MLflow tells of each.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self.client = MlflowClient(tracking_uri=uri)
            self.run = self._run(opening)
            self._params(opening)
        except Exception as error:  # SQLAlchemy, requests and MLflow have no common root
            raise ClusterError(
                f"tracking: MLflow cannot be used at {mask_text(uri)} ({one_line(error)}). Check that the "
                "folder is writable or the server up, set tracking.mlflow_uri, or take 'mlflow' out of tracking.to"
            ) from error
        opening.keep_id("mlflow", self.run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values; they are sent every 2 s."""
        self.step = step
        self._queue(step, values)
        if time.monotonic() - self.sent >= EVERY_S:
            self._send()
        if self.place:
            self.place.copy_if_due(self._send)

    def flush(self) -> None:
        """Send what is queued."""
        self._send()

    def finish(self, summary: Mapping[str, float]) -> None:
        """Log the summary and end the MLflow run as finished."""
        self._queue(self.step, summary)
        self._end("FINISHED")

    def close(self) -> None:
        """End the MLflow run as failed; the next attempt goes on with it."""
        self._end("FAILED")

    def _queue(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.waiting += [Metric(_name(k), float(v), now, step) for k, v in values.items()]

    def _run(self, opening: Opening) -> str:
        known = opening.id_of("mlflow")
        if known:
            try:
                self.client.update_run(known, status="RUNNING")
                self.client.set_tag(known, "attempt", opening.attempt)
                return known
            except MlflowException:
                pass  # the database was removed or another server is named: a new run it is
        project = opening.tracking.project
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            artifacts = f"{opening.folder.uri}/mlflow-artifacts" if self.place else None
            number = self.client.create_experiment(project, artifact_location=artifacts)
        else:
            number = experiment.experiment_id
        tags = {"attempt": str(opening.attempt), "rtrain.folder": opening.folder.uri}
        return str(self.client.create_run(number, run_name=opening.run_name, tags=tags).info.run_id)

    def _params(self, opening: Opening) -> None:
        """Params are written once in MLflow; what a later attempt changed becomes a tag."""
        before: dict[str, str] = self.client.get_run(self.run).data.params
        now = {_name(k): str(v)[:LONGEST] for k, v in opening.config.items()}
        new = [Param(k, v) for k, v in now.items() if k not in before]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.run, params=new[start : start + 100])
        changed = [f"{k}: {before[k]} -> {v}" for k, v in now.items() if k in before and before[k] != v]
        if changed:
            self.client.set_tag(self.run, f"config.attempt-{opening.attempt}", "; ".join(changed)[:LONGEST])

    def _send(self) -> None:
        self.sent = time.monotonic()
        try:
            while self.waiting:
                self.client.log_batch(self.run, metrics=self.waiting[:MOST])
                del self.waiting[:MOST]
        except Exception as error:  # a server that is away: the points stay queued for the next time
            text = f"tracking: MLflow has not taken {len(self.waiting)} values yet: {one_line(error)}"
            warnings.warn(text, RtrainWarning, stacklevel=2)

    def _end(self, status: str) -> None:
        self._send()
        try:
            self.client.set_terminated(self.run, status)
        except Exception as error:
            text = f"tracking: MLflow was not told the end of the run: {one_line(error)}"
            warnings.warn(text, RtrainWarning, stacklevel=2)
        if self.place:
            self.place.close()


def _name(key: str) -> str:
    """A name that MLflow takes: `ndcg@10` becomes `ndcg_at_10`, `optim.$type` becomes `optim.type`."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_").replace("$", ""))

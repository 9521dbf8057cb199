"""MLflow's client as curves and the registry want it: no word to its makers or on stdout, and tries that fail soon."""

import logging
import os

# Nothing is sent to MLflow's makers on the user's behalf; it is read at import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Where the run is to be seen is printed to stdout, which belongs to whoever asked for --json.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A try is to fail soon: who asks tries again, and the end of a run, or of a command, waits for one.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


def quieten() -> None:
    """A new database is built by some 50 migrations, and MLflow tells of each; its import has set the level."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


__all__ = ["Metric", "MlflowClient", "MlflowException", "Param", "quieten"]

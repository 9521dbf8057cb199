"""Opens the trackers that a config names."""

from collections.abc import Callable, Mapping

from rtrain.errors import ConfigError
from rtrain.storage import Folder
from rtrain.tracking.protocol import Opening, Tracker, Tracking
from rtrain.tracking.secrets import mask

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny sqlalchemy alembic"}


def open_trackers(
    tracking: Tracking,
    *,
    run_name: str,
    folder: str,
    config: Mapping[str, object],
    attempt: int,
    resume_step: int = 0,
) -> list[Tracker]:
    """The trackers that `tracking.to` names, writing into the run's `folder` (any fsspec URI); for rank 0 only.

    `config`: the run's flat config; values of keys that look like secrets are masked before they are stored.
    `attempt` and `resume_step`: a later attempt goes on in the same wandb and MLflow run, and what
    was logged beyond `resume_step` is dropped where the store can do that (TensorBoard, JSON lines), and not stored
    again elsewhere.

    Raises:
        ConfigError: a package that is not installed.
        ClusterError: a tracker that can never start as it is configured; one whose server is away does start.
    """
    opening = Opening(
        tracking,
        run_name=run_name,
        folder=Folder(folder),
        config=mask(config),
        attempt=attempt,
        resume_step=resume_step,
    )
    opened: list[Tracker] = []
    try:
        for name in tracking.to:
            opened.append(_opener(name)(opening))
    except BaseException:
        for tracker in opened:
            tracker.close()
        raise
    return opened


def _opener(name: str) -> Callable[[Opening], Tracker]:
    # Imported here, so that a run loads only the packages of the trackers that it uses.
    try:
        if name == "tensorboard":
            from rtrain.tracking.tensorboard import TensorBoard

            return TensorBoard
        if name == "wandb":
            from rtrain.tracking.wandb import Wandb

            return Wandb
        if name == "mlflow":
            from rtrain.tracking.mlflow import MLflow

            return MLflow
    except ImportError as error:
        raise ConfigError(
            f"tracking.to: {name!r} cannot be imported ({error}). Install it (pip install {PACKAGES[name]}), "
            "or take it out of tracking.to"
        ) from error
    from rtrain.tracking.jsonl import JsonLines

    return JsonLines

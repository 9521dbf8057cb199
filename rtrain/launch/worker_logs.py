"""What workers wrote to stdout and stderr: kept in the run's folder where the run fails, since Ray's folder goes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rtrain.checkpoint.fence import Driver, Fenced
from rtrain.errors import RunFailed
from rtrain.launch import embedded
from rtrain.storage import Folder
from rtrain.tracking import mask_text

FOLDER = "worker-logs"
"""In the run's folder: the files of the last start that failed. Their names end with the worker's process id."""
MOST_BYTES = 1 << 20
"""Of a file its end is kept."""
RAYS_OWN = (":job_id:", ":actor_name:", ":task_name:")
"""How lines begin that Ray writes into these files for itself."""


@contextmanager
def kept_on_failure(run_folder: str, driver: Driver) -> Iterator[None]:
    """Where the work in it fails, keep the logs of the embedded Ray's workers; the error then says where.

    A cluster keeps its own logs, so nothing is done there.
    """
    try:
        yield
    except Fenced:
        raise  # the folder is another driver's now
    except RunFailed as error:  # what the user must mend says all by itself
        target = ""
        with suppress(Exception):  # storage that is full or gone must not hide why the run failed
            target = _keep(run_folder, driver)
        if not target:
            raise
        raise type(error)(f"{error}. What the workers wrote is in {target}") from error


def _keep(run_folder: str, driver: Driver) -> str:
    """Copy them; the URI of their folder, empty where there is nothing to keep."""
    logs = embedded.logs()
    written = {path.name: _end_of(path) for path in logs.glob("worker-*.[eo]*")} if logs else {}
    written = {name: text for name, text in written.items() if text}
    if not written:
        return ""
    driver.check()
    folder = Folder(run_folder).child(FOLDER)
    folder.remove()
    for name, text in written.items():
        folder.write(name, text.encode())
    return folder.uri


def _end_of(path: Path) -> str:
    """The last lines of a log that are not Ray's, without secrets of URIs in them."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - MOST_BYTES)
        file.seek(start)
        lines = file.read(MOST_BYTES).decode(errors="replace").splitlines(keepends=True)
    if start:
        lines = lines[1:]  # cut off: a half secret would not be known as one
    return mask_text("".join(line for line in lines if not line.startswith(RAYS_OWN)))

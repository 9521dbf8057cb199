"""TensorBoard event files."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from rtrain.errors import ClusterError
from rtrain.tracking.protocol import Opening
from rtrain.tracking.workspace import Workspace


class TensorBoard:
    """Scalars under their names, the config as a table, in `tensorboard/` of the run's folder."""

    def __init__(self, opening: Opening):
        self.place = Workspace(opening.folder, "tensorboard")
        resumed = opening.attempt > 1 or opening.resume_step > 0
        try:
            _next_second(self.place.path)
            # purge_step: TensorBoard then hides what an earlier attempt wrote from that step on.
            self.writer = SummaryWriter(
                str(self.place.path), purge_step=opening.resume_step + 1 if resumed else None, flush_secs=10
            )
        except OSError as error:
            raise ClusterError(
                f"tracking: TensorBoard cannot write to {self.place.path} ({error}). "
                "Make it writable, or take 'tensorboard' out of tracking.to"
            ) from error
        self.step = opening.resume_step
        rows = "".join(f"|{key}|{_cell(value)}|\n" for key, value in opening.config.items())
        self.writer.add_text("config", f"|key|value|\n|-|-|\n{rows}", opening.resume_step)
        self.writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a value."""
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), step)
        self.place.copy_if_due(self.writer.flush)

    def flush(self) -> None:
        """Into the event file."""
        self.writer.flush()

    def finish(self, summary: Mapping[str, float]) -> None:
        """The summary as scalars at the last step."""
        for name, value in summary.items():
            self.writer.add_scalar(name, float(value), self.step)
        self.close()

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()
        self.place.close()


def _next_second(folder: Path) -> None:
    """Wait until a file made now comes after those of earlier attempts: TensorBoard reads files in their names' order.

    A name begins with the second of its making and goes on with the host's name and the process, so that of two
    attempts within one second either could come first.
    """
    made = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    time.sleep(min(max(0.0, max(made, default=0) + 1 - time.time()), 1.0))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

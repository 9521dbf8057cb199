"""The one progress bar of a run: a bar on a terminal or in a notebook, plain lines in a log."""

import importlib
import importlib.util
import sys
import time
from types import TracebackType
from typing import Any, Literal, TextIO

Mode = Literal["auto", "bar", "lines", "off"]


class Progress:
    """Step, examples/s, loss, best validation metric and time left, on standard error.

    `mode`: "bar" redraws one line; "lines" prints a line at most every `every_s` seconds and one at
    the end; "auto" takes the bar on a terminal and in a notebook, lines anywhere else (a log file,
    Ray's forwarded worker output); "off" prints nothing. `initial` is the step that a resume starts
    from. Nothing here raises for a stream that has gone away: a picture is not worth a run.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        description: str,
        every_s: float = 5.0,
        stream: TextIO | None = None,
        mode: Mode = "auto",
        initial: int = 0,
    ):
        self.total_steps, self.description, self.every_s = total_steps, description, every_s
        self.stream = sys.stderr if stream is None else stream
        self.mode = _choose(self.stream) if mode == "auto" else mode
        self.step = initial
        # Time left is reckoned from the first update on: before it lies the start-up.
        self._anchor: tuple[int, float] | None = None
        self._printed = float("-inf")
        self._latest = ""
        self._shown = ""
        self._bar: Any = _bar(total_steps, initial, description, self.stream) if self.mode == "bar" else None

    def update(self, step: int, *, examples_per_s: float, loss: float, best: str = "") -> None:
        """Training has come to `step`; `best` is shown as it is, such as `auc 0.7412`."""
        now = time.monotonic()
        if self._anchor is None or step < self.step:
            self._anchor = (step, now)
        self.step = step
        left = self._left(now)
        rate, loss_text = short(examples_per_s), f"loss {loss:.4f}"
        if self._bar is not None:
            # Short words, and the time left first: a narrow terminal cuts the end off.
            parts = [f"{clock(left)} left" if left is not None else "", f"{rate} ex/s", loss_text, best]
            self._draw(", ".join(p for p in parts if p))
            return
        parts = [f"{rate} examples/s", loss_text]
        parts += [f"best {best}"] if best else []
        parts += [f"{clock(left)} left"] if left is not None else []
        share = f" ({100 * step / self.total_steps:.0f}%)" if self.total_steps else ""
        self._latest = ", ".join([f"{self.description}: step {step}/{self.total_steps}{share}", *parts])
        if now - self._printed >= self.every_s or step >= self.total_steps:
            self._print_latest(now)

    def note(self, text: str) -> None:
        """A line of its own; above the bar where there is one."""
        if self._bar is None:
            self._line(text)
            return
        try:
            self._bar.clear()
            self._line(text)
            self._bar.refresh()
        except (OSError, ValueError):
            self.mode = "off"

    def close(self) -> None:
        """Leave the line of the bar, or print the last line if it was held back; may be called twice."""
        if self._bar is not None:
            try:
                self._bar.close()
            except (OSError, ValueError):
                self.mode = "off"
            self._bar = None
        elif self._latest:
            self._print_latest(time.monotonic())
        self._latest = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _left(self, now: float) -> float | None:
        assert self._anchor is not None
        step, began = self._anchor
        done = self.step - step
        return (self.total_steps - self.step) * (now - began) / done if done > 0 else None

    def _draw(self, text: str) -> None:
        try:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.n = self.step
            self._bar.refresh()
        except (OSError, ValueError):
            self.mode = "off"

    def _print_latest(self, now: float) -> None:
        if self.mode == "lines" and self._latest != self._shown:
            self._printed, self._shown = now, self._latest
            self._line(self._latest)

    def _line(self, text: str) -> None:
        if self.mode == "off":
            return
        try:
            print(text, file=self.stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=self.stream, flush=True)
        except (OSError, ValueError):  # the pipe or the file is closed
            self.mode = "off"


def short(number: float) -> str:
    """Three digits of a count: `51.0k`, `1.20M`, `732`."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            scaled = number / factor
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{suffix}"
    return f"{number:.0f}" if abs(number) >= 10 else f"{number:.2g}"


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `3:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _choose(stream: TextIO) -> Mode:
    try:
        is_terminal = stream.isatty()
    except ValueError:  # closed
        return "off"
    return "bar" if is_terminal or (_in_notebook() and stream is sys.stderr) else "lines"


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel: the shell that takes its cells from a front end."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _bar(total: int, initial: int, description: str, stream: TextIO) -> Any:
    # tqdm.auto warns in a notebook without ipywidgets; asking first keeps that quiet.
    widgets = _in_notebook() and importlib.util.find_spec("ipywidgets") is not None
    tqdm = importlib.import_module("tqdm.notebook" if widgets else "tqdm.std").tqdm
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        file=stream,
        dynamic_ncols=True,
        # No percentage: all of it has to fit into 80 columns.
        bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
    )

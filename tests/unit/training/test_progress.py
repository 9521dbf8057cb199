"""Progress as a log file, a terminal and a notebook show it."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import textwrap

import pytest

from rtrain.training import progress
from rtrain.training.progress import Progress, clock, short


class Clock:
    """A monotonic clock that moves by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def drive(bar, times, moments=None):
    for step, seconds in moments or [(10, 0), (20, 1), (30, 1), (40, 4), (100, 1)]:
        times.now += seconds
        bar.update(step, examples_per_s=51_234.0, loss=0.61234, best="auc 0.7412" if step > 20 else "")
    bar.close()


def test_lines_come_at_most_every_s_and_the_last_step_always(monkeypatch):
    stream, times = io.StringIO(), Clock(monkeypatch)
    drive(Progress(100, description="dlrm", stream=stream), times)
    assert stream.getvalue().splitlines() == [
        "dlrm: step 10/100 (10%), 51.2k examples/s, loss 0.6123",
        "dlrm: step 40/100 (40%), 51.2k examples/s, loss 0.6123, best auc 0.7412, 0:12 left",
        "dlrm: step 100/100 (100%), 51.2k examples/s, loss 0.6123, best auc 0.7412, 0:00 left",
    ]


def test_close_prints_a_line_that_was_held_back_once(monkeypatch):
    stream, times = io.StringIO(), Clock(monkeypatch)
    bar = Progress(100, description="dlrm", stream=stream)
    drive(bar, times, [(10, 0), (20, 1)])
    bar.close()
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "dlrm: step 10/100 (10%)",
        "dlrm: step 20/100 (20%)",
    ]


def test_time_left_is_reckoned_anew_after_a_step_back(monkeypatch):
    stream, times = io.StringIO(), Clock(monkeypatch)
    bar = Progress(100, description="dlrm", stream=stream, every_s=0)
    drive(bar, times, [(10, 0), (50, 4), (20, 60), (30, 10)])
    assert [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()] == [
        "loss 0.6123", "0:05 left", "loss 0.6123", "1:10 left",
    ]  # fmt: skip


def test_notes_are_lines_and_off_is_silent(monkeypatch):
    for mode, told in (("lines", "resumed from step 80\n"), ("off", "")):
        stream = io.StringIO()
        with Progress(100, description="dlrm", stream=stream, mode=mode) as bar:
            bar.note("resumed from step 80")
        assert stream.getvalue() == told


def test_a_stream_that_is_closed_or_narrow_never_raises():
    closed = io.StringIO()
    bar = Progress(100, description="dlrm", stream=closed)
    closed.close()
    bar.update(10, examples_per_s=1.0, loss=float("nan"))
    bar.close()
    assert Progress(100, description="dlrm", stream=closed).mode == "off"

    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Progress(100, description="dlrm", stream=narrow, mode="lines").note("größer")
    assert narrow.buffer.getvalue() == b"gr??er\n"


def test_a_log_file_gets_whole_lines_at_once(tmp_path):
    with open(tmp_path / "log", "w") as file:
        bar = Progress(100, description="dlrm", stream=file)
        bar.update(10, examples_per_s=5.0, loss=1.0)
        assert (tmp_path / "log").read_text() == "dlrm: step 10/100 (10%), 5 examples/s, loss 1.0000\n"


def on_terminal(script, columns):
    """What a child that owns a terminal of that width writes to its standard error."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (40, columns))
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=follower)
    os.close(follower)
    out = b""
    while True:
        ready, _, _ = select.select([leader], [], [], 60)
        assert ready, f"the child wrote nothing more in 60 s: {out!r}"
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the child closed its side
            break
        if not chunk:
            break
        out += chunk
    os.close(leader)
    assert child.wait(60) == 0
    return out.decode()


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_gets_one_bar_that_fits_and_notes_above_it(columns):
    out = on_terminal(
        """
        import time
        from rtrain.training.progress import Progress
        with Progress(1600, description="dlrm-movielens") as bar:
            assert bar.mode == "bar"
            for step in range(10, 1610, 10):
                bar.update(step, examples_per_s=51234.0, loss=0.6123, best="auc 0.7412")
                if step == 800:
                    bar.note("attempt 2: goes on from step 780")
        """,
        columns,
    )
    drawn = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", d) for d in re.split(r"[\r\n]+", out)]
    assert "attempt 2: goes on from step 780" in drawn
    last = next(d for d in reversed(drawn) if d.strip())
    assert last.startswith("dlrm-movielens |") and "1600/1600, 0:00 left, 51.2k ex/s, loss 0.6123, auc 0.7412" in last
    assert all(len(d) <= columns for d in drawn)
    assert out.count("\n") == 2, "the note and the end of the bar, nothing else"


def test_a_notebook_without_ipywidgets_gets_a_bar_and_no_warning(monkeypatch, recwarn):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: shell)}))
    find_spec = progress.importlib.util.find_spec
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda n: None if n == "ipywidgets" else find_spec(n))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(100, description="dlrm") as bar:
        assert bar.mode == "bar"
        bar.update(50, examples_per_s=10.0, loss=0.5)
        bar.note("a note")
    assert "50/100, 10 ex/s, loss 0.5000" in stream.getvalue() and "\na note\n" in stream.getvalue().replace("\r", "\n")
    assert not recwarn.list


def test_words():
    assert [short(n) for n in (0.5, 7, 12, 999, 51_234, 1_200_000)] == ["0.5", "7", "12", "999", "51.2k", "1.20M"]
    assert [clock(s) for s in (0, 42.4, 725, 11045)] == ["0:00", "0:42", "12:05", "3:04:05"]

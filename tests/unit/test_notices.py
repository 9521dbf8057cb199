"""What libraries warn of is in the run's folder and not on its terminal; what is the user's own stays there."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rtrain import notices
from rtrain.errors import RtrainWarning
from rtrain.storage import Folder

LIBRARY = "/opt/site-packages/lib/old.py"
RECIPE = """
import sys, warnings
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
import rtrain
from rtrain.duration import Duration

class Mine(rtrain.Callback):
    def step_end(self, state, point):
        warnings.warn("this is mine")

folder = Path(sys.argv[1])
rows = {"x": [0.1, 0.9] * 200, "item": [0, 1] * 200, "at": list(range(400)), "label": [0, 1] * 200}
pq.write_table(pa.table(rows), folder / "rows.parquet")
schema = rtrain.Schema(features=(rtrain.Dense(name="x"), rtrain.Id(name="item", rows=2)), time="at")
run = rtrain.Run(
    name="small", model=rtrain.DLRM(dim=4, bottom=(4,), top=(4,)),
    data=rtrain.Interactions(source=str(folder / "rows.parquet"), schema=schema),
    optim=rtrain.AdamW(), sparse_optim=rtrain.RowWiseAdagrad(), global_batch=64, duration=Duration(epochs=1),
    metrics=(rtrain.LogLoss(),), evaluation=rtrain.Evaluation(monitor="log_loss", boosting_rows=0),
    storage=str(folder / "runs"),
)
result = rtrain.train(run, launcher="inline", callbacks=[Mine()])
rtrain.train(run, launcher="inline", fresh=True, quiet=True, callbacks=[Mine()])
rtrain.predict_column(result.export, run.data.source, str(folder / "taught.parquet"))
"""


def warn(path: str, text: str, category: type[Warning] = UserWarning) -> None:
    """As a file at `path` does."""
    code = compile(f"import warnings; warnings.warn({text!r}, category)", path, "exec")
    exec(code, {"category": category})


def log(path: str, text: str, level: int = logging.WARNING) -> None:
    """As a file at `path` does, of a library that has a handler of its own."""
    logger = logging.Logger("lib")
    logger.addHandler(logging.StreamHandler())
    logger.handle(logging.LogRecord("lib", level, path, 7, text, None, None))


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The folder of one that has begun."""
    (tmp_path / "run.json").write_text("{}")
    return str(tmp_path)


def kept(run: str, name: str = "driver") -> list[str]:
    """The lines, less their times."""
    return [line.partition(" ")[2] for line in (Path(run) / notices.FOLDER / f"{name}.log").read_text().splitlines()]


def test_a_runs_terminal_is_the_runs(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    others = [line for line in done.stderr.splitlines() if not line.startswith("small: ")]
    assert [line for line in others if "this is mine" not in line] == [], done.stderr
    assert any(line.startswith(f"{script}:") for line in others)
    assert done.stdout == ""
    first = f"{tmp_path}/runs/small~1"
    files = kept(first, "rank-00000"), kept(first)
    assert all(len(set(lines)) == len(lines) for lines in files)
    found = [line for lines in files for line in lines]
    assert any("table_updates.py:" in line and "deprecating ShardedTensor" in line for line in found)
    assert any(line.startswith("torchrec/distributed/planner/types.py:") for line in found)
    assert any(line.startswith("torch/fx/_symbolic_trace.py:") and "is_fx_tracing" in line for line in found)


def test_a_library_is_kept_and_the_user_is_seen(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as shown, notices.aside(run, "driver"):
        warnings.simplefilter("always")
        for _ in range(2):
            warn(LIBRARY, "deprecated\nsince  long")
            log(LIBRARY, "of no use")
        log(LIBRARY, "what it does", logging.INFO)
        warn("/home/me/model.py", "mine")
        warn(notices.__file__, "a library's, in C++")
        warn(notices.__file__, "rtrain's own", RtrainWarning)
        log(LIBRARY, "it failed", logging.ERROR)
        log("/home/me/model.py", "my log")
    assert [str(one.message) for one in shown] == ["mine", "rtrain's own"]
    assert capsys.readouterr().err == "it failed\nmy log\n"
    lines = kept(run)
    assert lines[:2] == ["lib/old.py:1 UserWarning: deprecated since long", "lib/old.py:7 WARNING: of no use"]
    assert len(lines) == 5


def test_what_a_file_tells_already_is_not_told_again(run: str) -> None:
    for texts in (("one", "two"), ("two", "token=hf_secret s3://me:pw@bucket")):
        with warnings.catch_warnings(), notices.aside(run, "driver"):
            warnings.simplefilter("always")
            for text in texts:
                warn(LIBRARY, text)
    lines = kept(run)
    assert [line.rpartition(": ")[2] for line in lines[:2]] == ["one", "two"]
    assert len(lines) == 3
    assert "pw" not in lines[2]


def test_the_innermost_run_gets_it_and_all_is_as_before_after(run: str, tmp_path: Path) -> None:
    before = warnings.showwarning, logging.StreamHandler.emit
    with notices.aside(), notices.aside(run, "driver"):
        with notices.aside(run, "rank-00000"), notices.aside():
            log(LIBRARY, "of the rank")
        log(LIBRARY, "of the driver")
    assert kept(run, "rank-00000") == ["lib/old.py:7 WARNING: of the rank"]
    assert kept(run) == ["lib/old.py:7 WARNING: of the driver"]
    assert (warnings.showwarning, logging.StreamHandler.emit) == before


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with notices.aside(str(tmp_path), "driver"):
        log(LIBRARY, "too early")
    assert Folder(str(tmp_path)).names() == []


def test_asked_for_they_are_on_the_terminal(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notices.SHOW, "1")
    with notices.aside(run, "driver"):
        log(LIBRARY, "shown")
    assert "shown" in capsys.readouterr().err
    assert not os.path.exists(f"{run}/{notices.FOLDER}")

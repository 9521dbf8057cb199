"""A day of Criteo's shape, 10 million rows that this writes: trained through, and once more with a kill in the middle.

python -m bench.day                         --rows, --folder (a gigabyte and a half of it), --json

Both runs are one process each, by the same recipe, with data ten times their window. Printed are the peak of each
one's own memory (what it shares with the page cache, as mapped files are, left out) and that in each tenth of the
undisturbed run, whether the killed one ends with the same test AUC and the same weights, and what the ledger says of
each row.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.asked import parser
from rtrain import (
    AUC,
    DLRM,
    AdamW,
    ByTime,
    Checkpoint,
    Cluster,
    Dense,
    Duration,
    Evaluation,
    Id,
    Interactions,
    Parallel,
    RowWiseAdagrad,
    Run,
    Schema,
    main,
)
from rtrain.checkpoint.marker import MARKER

DENSE, IDS, TABLE_ROWS, GROUP = 13, 26, 20_000, 65_536
SCHEMA = Schema(
    features=(
        *(Dense(name=f"d{i}", mean=0.5, std=0.29) for i in range(DENSE)),
        *(Id(name=f"c{i}", rows=TABLE_ROWS) for i in range(IDS)),
    ),
    time="time",
)
POLL_S = 0.1


def write(path: Path, rows: int) -> None:
    """A group of rows at a time."""
    draw, writer = np.random.default_rng(0), None
    for at in range(0, rows, GROUP):
        count = min(GROUP, rows - at)
        columns: dict[str, Any] = {f"d{i}": draw.random(count, dtype=np.float32) for i in range(DENSE)}
        columns |= {f"c{i}": (draw.random(count) ** 3 * TABLE_ROWS).astype(np.int32) for i in range(IDS)}
        columns["label"] = (draw.random(count) < 0.1 + 0.5 * (columns["c0"] < 1000)).astype(np.int8)
        table = pa.table(columns | {"time": np.arange(at, at + count)})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table, row_group_size=GROUP)
    assert writer is not None, "there are rows"
    writer.close()


def run() -> Run:
    return Run(
        name="day",
        model=DLRM(dim=8, bottom=(32,), top=(32,)),
        data=Interactions(source=os.environ["BENCH_DATA"], schema=SCHEMA, split=ByTime(valid=0.01, test=0.02)),
        optim=AdamW(lr=1e-3),
        sparse_optim=RowWiseAdagrad(lr=1e-2),
        global_batch=8192,
        duration=Duration(epochs=1),
        parallel=Parallel(dense="ddp"),
        evaluation=Evaluation(every=Duration(steps=400), boosting_rows=0),
        checkpoint=Checkpoint(every=Duration(steps=200)),
        cluster=Cluster(workers=1),
        metrics=(AUC(),),
    )


class Watched:
    """A run in a process of its own, and what memory it has."""

    def __init__(self, name: str, folder: Path):
        command = [sys.executable, "-m", "bench.day", "train", "--launcher", "inline", "--name", name, "--json"]
        command += ["--storage", str(folder / "runs")]
        environment = os.environ | {"BENCH_DATA": str(folder / "day.parquet")}
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        self.private: list[int] = []
        """Bytes, `POLL_S` apart."""

    def until(self, done: Any) -> None:
        """Or until it ends."""
        of = psutil.Process(self.process.pid)
        while self.process.poll() is None and not done():
            memory = of.memory_info()
            self.private.append(memory.rss - memory.shared)
            time.sleep(POLL_S)

    def answer(self) -> dict[str, Any]:
        """The run's line of JSON, when it has ended."""
        self.until(lambda: False)
        assert self.process.stdout is not None and self.process.returncode == 0, "the run failed: see above"
        found: dict[str, Any] = json.loads(self.process.stdout.read())
        return found


def measured(folder: Path, rows: int) -> dict[str, Any]:
    """Of both runs."""
    write(folder / "day.parquet", rows)
    whole = Watched("whole", folder)
    wanted = whole.answer()
    killed = Watched("killed", folder)
    middle = folder / "runs" / "killed" / "checkpoints" / "step-00000400"
    killed.until((middle / MARKER).exists)
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait(timeout=60)
    again = Watched("killed", folder)
    found = again.answer()
    tenth = max(1, len(whole.private) // 10)
    digests = [
        {p.name: p.read_bytes() for p in sorted(Path(values["export"]).glob("model-*"))} for values in (wanted, found)
    ]
    proof = [sys.executable, "-m", "rtrain", "ledger", str(folder / "runs" / "killed"), "--verify"]
    said = subprocess.run(proof, capture_output=True, text=True, timeout=600)
    return {
        "rows": rows,
        "bytes_on_disk": (folder / "day.parquet").stat().st_size,
        "peak_private_bytes": max(whole.private),
        "private_bytes_by_tenth": [max(whole.private[i * tenth : (i + 1) * tenth], default=0) for i in range(10)],
        "test_auc": [wanted["test"]["auc"], found["test"]["auc"]],
        "same_weights": digests[0] == digests[1] != {},
        "ledger": [said.returncode, " ".join(said.stdout.split())],
    }


def asked() -> argparse.Namespace:
    of = parser("bench.day", __doc__)
    of.add_argument("--rows", type=int, default=10_000_000)
    of.add_argument("--folder", type=Path, help="where rows and runs go; left out, one that is removed")
    of.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    return of.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        main(run)
        sys.exit()
    options = asked()
    with tempfile.TemporaryDirectory() as scratch:
        result = measured(options.folder or Path(scratch), options.rows)
    if options.json:
        print(json.dumps(result))
    else:
        by_tenth = ", ".join(f"{count / 1e9:.2f}" for count in result["private_bytes_by_tenth"])
        print(f"{result['rows']:,} rows, {result['bytes_on_disk'] / 1e9:.2f} GB in a Parquet file")
        print(f"own memory at most {result['peak_private_bytes'] / 1e9:.2f} GB; in each tenth of the run: {by_tenth}")
        print(f"test AUC {result['test_auc'][0]!r}, killed and gone on {result['test_auc'][1]!r}")
        print(f"the same weights: {result['same_weights']}; ledger: {result['ledger'][1]}")

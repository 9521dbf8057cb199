"""A table that is larger than what export and predictor take of memory: written block by block, mapped to be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.encode import encode
from rtrain.data.interactions import Interactions
from rtrain.duration import Duration
from rtrain.export import weights
from rtrain.metrics import AUC
from rtrain.models.dlrm import DLRM
from rtrain.optim import SGD
from rtrain.run import Evaluation, Handoff, Run
from rtrain.schema import Dense, Id, Schema
from tests.unit.training.jobs import train

ROOT = Path(__file__).parents[3]
ROWS, DIM = 1_500_000, 16
TABLE = ROWS * DIM * 4
PROBE = """
import json, sys, threading, time
from pathlib import Path

from rtrain import config
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.export import weights
from rtrain.export.artifact import Predictor, export


def own():  # bytes of this process's own, without what is mapped of files
    (line,) = [x for x in open("/proc/self/status") if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


small, run, out = sys.argv[1:]
asked = [{"item": n * 100_000, "x": 0.5} for n in range(15)]
Predictor(small).predict([{"item": 1, "x": 0.5}])  # what is loaded once
weights.BLOCK_BYTES = 1 << 22
begin, most, done = own(), [0], threading.Event()


def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], own())


threading.Thread(target=watch).start()
made = config.from_dict(json.loads(Path(run, "run.json").read_text()))
(step,) = CheckpointFolders(run).committed()
stored = Stored(CheckpointFolders(run).of(step), step)
export(made.model, made.data.schema, stored, out, run="large", metrics={})
answers = Predictor(out).predict(asked)
done.set()
print(json.dumps({"grown": most[0] - begin, "answers": answers}))
"""


def run_of(place: Path, name: str, rows: int) -> Run:
    return Run(
        name=name, model=DLRM(dim=DIM, bottom=(16,), top=(8,)), global_batch=64, duration=Duration(steps=3),
        data=Interactions(
            source=f"{place}/rows.parquet",
            schema=Schema(features=(Id(name="item", rows=rows), Dense(name="x")), time="at"),
        ),
        sparse_optim=SGD(lr=0.1), storage=f"{place}/runs", evaluation=Evaluation(monitor="auc"), metrics=(AUC(),),
        handoff=Handoff(export=rows < ROWS),
    )  # fmt: skip


def rows_in(place: Path) -> Path:
    draw = np.random.default_rng(0)
    columns = {"item": draw.integers(0, 9, 400), "x": draw.normal(size=400), "at": np.arange(400)}
    pq.write_table(pa.table(columns | {"label": draw.integers(0, 2, 400).astype(float)}), place / "rows.parquet")
    return place


def stored_of(run: Run) -> Stored:
    (step,) = CheckpointFolders(run.folder).committed()
    return Stored(CheckpointFolders(run.folder).of(step), step)


def test_a_process_of_less_memory_exports_it_and_answers(tmp_path: Path) -> None:
    small, large = run_of(rows_in(tmp_path), "small", 9), run_of(tmp_path, "large", ROWS)
    words = [sys.executable, "-c", PROBE, str(train(small)["export"]), large.folder, f"{tmp_path}/export"]
    train(large)
    ended = subprocess.run(
        words, capture_output=True, text=True, timeout=300, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["grown"] < TABLE / 3, said["grown"]
    stored = stored_of(large)
    model = large.model.build(large.data.schema, seed=0)  # type: ignore[attr-defined]
    model.load_state_dict({name: stored.tensor(logical) for name, logical in stored.weights().items()})
    asked = pa.table({"item": [n * 100_000 for n in range(15)], "x": [0.5] * 15})
    columns_15 = encode(asked, large.data.schema, label=False, where="asked", first_row=0)  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted = model.eval()(columns_15.batch(global_rows=15)).sigmoid()
    assert np.abs(wanted.numpy() - said["answers"]).max() < 1e-7


def test_files_are_cut_between_tensors_and_read_by_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(rows_in(tmp_path), "small", 90)
    train(run)
    stored = stored_of(run)
    for file_bytes, block_bytes in ((1 << 30, 1 << 30), (500, 100), (1, 1)):
        out = weights.Folder(f"{tmp_path}/{file_bytes}")
        monkeypatch.setattr(weights, "FILE_BYTES", file_bytes)
        monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
        files = weights.write_weights(out, stored, lambda: None)
        found = {}
        for name in files:
            found |= load_file(f"{tmp_path}/{file_bytes}/{name}")
        assert set(found) == set(stored.weights()) and (len(files) > 1) == (file_bytes <= 500)
        for name, logical in stored.weights().items():
            assert torch.equal(found[name], stored.tensor(logical))

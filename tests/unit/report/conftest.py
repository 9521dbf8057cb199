"""A run's folder as a finished run leaves it, with curves of a plausible shape."""

import json
import math
import random

import pytest

TABLES = [("user_id", 944), ("item_id", 1683), ("gender", 3), ("occupation", 22), ("genres", 20), ("hour", 24)]
DIM = 16


def history(steps=780, every=10, resumed_at=400):
    rng, lines = random.Random(0), []
    lines.append({"kind": "start", "step": 0, "total_steps": steps, "attempt": 1})
    for step in range(every, steps + 1, every):
        if resumed_at and step == resumed_at + every:
            text = f"attempt 2: goes on from step {resumed_at}"
            lines.append({"kind": "event", "step": resumed_at, "text": text, "at": 1795434091.0})
            lines.append({"kind": "start", "step": resumed_at, "total_steps": steps, "attempt": 2})
        lines.append({
            "kind": "train", "step": step, "epoch": step / 156, "elapsed_s": step * 0.021,
            "loss": 0.545 + 0.15 * math.exp(-step / 120) + rng.gauss(0, 0.011),
            "examples_per_s": 24_500 + rng.gauss(0, 900) - (9_000 if step == every else 0),
            "lr": 1e-3 * min(1, step / 80) * (0.5 + 0.5 * math.cos(math.pi * step / steps)), "grad_norm": 0.4,
        })  # fmt: skip
        if step % 150 < every or step == steps:
            gain = 1 - math.exp(-step / 170)
            fade = max(0, step - 500) / 280 * 0.006
            lines.append({
                "kind": "valid", "step": step, "auc": 0.655 + 0.108 * gain - fade,
                "log_loss": 0.672 - 0.082 * gain + fade, "ndcg@10": 0.741 + 0.062 * gain - fade / 2,
            })  # fmt: skip
    return lines


def placement(world=2):
    tables = []
    for name, rows in TABLES:
        share, shards, at = -(-rows // world), [], 0
        for rank in range(world):
            size = max(0, min(share, rows - at))
            shards.append({"rank": rank, "offsets": [at, 0], "sizes": [size, DIM], "bytes": size * DIM * 4})
            at += size
        tables.append({
            "table": name, "rows": rows, "dim": DIM, "sharding": "row_wise", "kernel": "fused", "shards": shards,
            "features": ["item_id", "history"] if name == "item_id" else [name], "bytes": rows * DIM * 4,
        })  # fmt: skip
    held = [sum(t["shards"][r]["bytes"] for t in tables) for r in range(world)]
    return {
        "world_size": world,
        "axes": {"pipeline": 1, "data": world, "tensor": 1},
        "ranks": [
            {
                "rank": r, "node": "127.0.0.1", "pid": 100 + r, "device": "cpu",
                "coordinates": {"pipeline": 0, "data": r, "tensor": 0},
            }
            for r in range(world)
        ],
        "tables": tables,
        "bytes_per_rank": [
            {
                "rank": r, "parameters": 37_376, "gradients": 24_916, "optimizer": 24_916,
                "tables": held[r], "tables_optimizer": held[r] // 16,
            }
            for r in range(world)
        ],
    }  # fmt: skip


RUN = {
    "$type": "rtrain.run:Run",
    "name": "dlrm-movielens",
    "model": {"$type": "rtrain.models.dlrm:DLRM", "dim": 16, "bottom": [64], "top": [64, 32], "dropout": 0.1},
    "data": {
        "$type": "rtrain.data.interactions:Interactions",
        "source": "ml-100k",
        "schema": {
            "$type": "rtrain.schema:Schema",
            "features": [
                {"$type": "rtrain.schema:Id", "name": "user_id", "entity": "user", "rows": 944, "vocabulary": []},
                {"$type": "rtrain.schema:Id", "name": "gender", "rows": 0, "vocabulary": ["F", "M"]},
            ],
            "group": "user_id",
        },
    },
    "optim": {"$type": "rtrain.optim:AdamW", "lr": 0.001, "weight_decay": 0.0},
    "global_batch": 512,
    "duration.epochs": 5,
    "evaluation": {"$type": "rtrain.run:Evaluation", "monitor": "auc", "patience": 3},
    "tracking": {"$type": "rtrain.tracking.protocol:Tracking", "to": ["tensorboard"]},
    "storage": "s3://AKIA:hunter2@bucket/runs",
}


def result(lines):
    valid = [line for line in lines if line["kind"] == "valid"]
    best = max(valid, key=lambda line: line["auc"])
    return {
        "run": "dlrm-movielens",
        "test": {"auc": 0.7534, "log_loss": 0.5951, "ndcg@10": 0.7894},
        "valid": {k: v for k, v in best.items() if k not in ("kind", "step")},
        "baseline_auc": 0.7312,
        "baseline": {"auc": 0.7312, "log_loss": 0.6108, "ndcg@10": 0.7911},
        "baseline_valid": {"auc": 0.7287, "log_loss": 0.6123, "ndcg@10": 0.7863},
        "steps": 780,
        "best_step": best["step"],
        "monitor": "auc",
        "stop": "",
        "world_size": 2,
        "attempts": 2,
        "checkpoint": "/runs/dlrm-movielens/checkpoints/step-00000600",
        "export": "/runs/dlrm-movielens/export",
        "served": True,
        "served_max_difference": 5.96e-08,
        "report": "/runs/dlrm-movielens/report.html",
        "breakdown": {
            "data": 0.61, "forward": 4.9, "backward": 5.3, "optimizer": 1.15, "communication": 4.2, "other": 1.9,
        },
        "examples_per_s": 22_840.0,
        "peak_bytes_per_rank": [912_345_678, 908_765_432],
        "command": "python recipes/dlrm_movielens.py train --optim.lr 1e-3 --data.token hunter2",
        "timeline": {
            "start-up": 9.0, "workers": 21.0, "build": 8.0, "loop": 18.06, "test": 2.0, "baseline": 1.0,
            "export": 1.34, "serving check": 10.0,
        },
        "commit": "0123456789ab+changes",
        "seconds": 71.4,
    }  # fmt: skip


def curves():
    steps = [i / 50 for i in range(51)]
    return {
        "": {
            "roc": {"false": steps, "true": [x**0.4 for x in steps]},
            "calibration": {"predicted": [0.2, 0.5, 0.8], "observed": [0.25, 0.5, 0.75], "rows": [9.0, 9.0, 9.0]},
            "scores": {"edges": [-2.0, -1.0, 0.0, 1.0], "without": [5.0, 5.0, 2.0], "with": [2.0, 5.0, 8.0]},
        }
    }


SURROUNDINGS = {
    "data": "89abcdef01234567",
    "versions": {"rtrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
    "nodes": {"127.0.0.1": {"cpu": "AMD EPYC", "cores": 2, "memory_bytes": 25_276_502_016, "gpus": ["H100", "H100"]}},
}


class Made:
    """A run's folder that tests may spoil."""

    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True)
        self.history = history()
        self.put("run.json", RUN)
        self.put("history.jsonl", self.history)
        self.put("placement.json", placement())
        self.put("result.json", result(self.history))
        self.put("curves.json", curves())
        self.put("surroundings.json", SURROUNDINGS)

    def put(self, name, value):
        lines = isinstance(value, list)
        text = "".join(json.dumps(line) + "\n" for line in value) if lines else json.dumps(value, indent=1)
        (self.path / name).write_text(text)

    def older(self):
        """As an rtrain left it that told neither scores nor surroundings nor where the time went."""
        for name in ("curves.json", "surroundings.json"):
            (self.path / name).unlink()
        tree = json.loads((self.path / "result.json").read_text())
        self.put("result.json", {k: v for k, v in tree.items() if k not in ("timeline", "commit")})

    def change(self, name, **changes):
        tree = json.loads((self.path / name).read_text())
        self.put(name, tree | changes)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "dlrm-movielens")


@pytest.fixture
def make_placement():
    return placement

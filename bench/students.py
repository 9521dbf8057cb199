"""A student beside its teacher: bytes, milliseconds and AUC of each export, and what the gate says; prints JSON.

    python -m bench.students

Rows are planted as recipes/dlrm_synthetic.py's, fewer of them. The teacher is an Ensemble of DLRM and DCNv2. Students
are a small DLRM, once of the labels alone and once of the teacher's logits beside them. `gate` holds each against the
teacher on the same test rows: the worse end of the difference's 95 % interval has to lie within the tolerance.
Milliseconds are of `Predictor.predict`, one thread, medians of the pairs' medians with least and greatest.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rtrain
from bench.asked import parser
from bench.programs import CALLS, pairs
from recipes.dlrm_synthetic import SCHEMA, run
from rtrain import DLRM, DCNv2, Distillation, Duration, Ensemble, Evaluation, Handoff, Interactions, Parallel
from rtrain.data.synthetic import plant
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.release.gate import Gate
from rtrain.release.quality import NotWorse

TEACHER = Ensemble(models=(DLRM(dim=16, bottom=(128, 64), top=(256, 128)), DCNv2(dim=16, deep=(256, 128))))
SMALL: dict[str, Any] = {"dim": 4, "bottom": (16,), "top": (16,), "first_order": True}
STUDENTS = {"labels alone": DLRM(**SMALL), "taught": DLRM(**SMALL, distillation=Distillation())}
SIZES = (1, 64)


def trained(folder: Path, name: str, model: Any, source: str, epochs: int) -> tuple[str, float]:
    """The run's folder, and its AUC of the test split."""
    schema = replace(SCHEMA, teacher="teacher_logit") if model.distillation else SCHEMA
    made = run()
    made = replace(
        made, name=name, model=model, data=Interactions(source=source, schema=schema, split=made.data.split),
        storage=f"{folder}/runs", duration=Duration(epochs=epochs), parallel=Parallel(dense="ddp"),
        handoff=Handoff(program="onnx"),
        evaluation=Evaluation(monitor="auc"),
    )  # fmt: skip
    found = rtrain.train(made, launcher="inline", quiet=True)
    assert found is not None
    return made.folder, found.metrics["auc"]


def main() -> None:
    asking = parser("bench.students", __doc__)
    asking.add_argument("--rows", type=int, default=1_000_000, help="that are planted (default 1000000)")
    asking.add_argument("--epochs", type=int, default=3, help="of each training (default 3)")
    asking.add_argument("--tolerance", type=float, default=0.005, help="of AUC, in the gate (default .005)")
    asking.add_argument("--pairs", type=int, default=5, help="of timing (default 5)")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, taught = Path(name), f"{name}/taught.parquet"
        plant(folder / "rows.parquet", rows=asked.rows)
        found = {"teacher": trained(folder, "teacher", TEACHER, f"{name}/rows.parquet", asked.epochs)}
        rtrain.predict_column(f"{found['teacher'][0]}/export", f"{name}/rows.parquet", taught)
        for student, model in STUDENTS.items():
            found[student] = trained(folder, student.replace(" ", "-"), model, taught, asked.epochs)
        sides = {who: Predictor(f"{of}/export") for who, (of, _) in found.items()}
        data = run().data
        rows = rows_of(replace(data, source=taught).open().raw("test", 0, max(SIZES)), SCHEMA)
        calls = {
            size: pairs(asked.pairs, {who: [partial(p.predict, rows[:size])] * CALLS[size] for who, p in sides.items()})
            for size in SIZES
        }
        for who, (of, auc) in found.items():
            files = sum(path.stat().st_size for path in Path(of, "export").glob("model-*.safetensors"))
            told = {"who": who, "bytes": files, "auc": round(auc, 5)}
            told |= {f"ms_{size}": took[f"{who}_ms"] for size, took in calls.items()}
            if who != "teacher":
                gate = Gate(checks=(NotWorse(margin=asked.tolerance),))
                (decision,) = gate.judge(of, f"{found['teacher'][0]}/export").decisions
                told["gate"] = {"passed": decision.passed, "said": decision.said}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

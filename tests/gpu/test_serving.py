"""What a GPU answers is what the processor answers: a ranking export, whole and in fewer bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rtrain import Handoff
from rtrain.export.artifact import Predictor
from rtrain.export.fastest import fastest
from rtrain.export.request import rows_of
from rtrain.handoff.served import SAME, apart
from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("tables", ["trained", "float16", "int8", "int4"])
def test_answers_are_those_of_the_processor(tmp_path: Path, tables: str) -> None:
    write_rows(tmp_path)
    run = replace(run_of(tmp_path, "gpu"), handoff=Handoff(rows=64, tables=tables, tolerance=0.1))  # type: ignore[arg-type]
    train(run)
    export, dataset = f"{run.folder}/export", run.data.open()
    rows = rows_of(dataset.raw("test", 0, 256), dataset.schema)
    there, here = Predictor(export, device="cuda"), Predictor(export, program="eager")
    compiled = Predictor(export, device="cuda", program="compiled")
    chosen = Predictor(export, device="cuda")
    assert fastest(export, chosen).keys() == {"eager", "compiled"}
    beside = Predictor(export, device="cuda", tables="host")
    assert {x.device.type for x in beside.lookup.tables.values()} == {"cpu"}
    assert {parameter.device.type for parameter in beside.lookup.whole.dense.parameters()} == {"cuda"}
    assert there.program is None and there.device.type == "cuda" and compiled.program is not None
    if tables == "trained":
        assert {parameter.device.type for parameter in there.model.parameters()} == {"cuda"}
    for count in (1, 64, 256):
        assert apart(there.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(beside.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(chosen.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(compiled.predict(rows[:count]), here.predict(rows[:count])) <= SAME

"""A program's dense part in int8: where it pays it answers, as close as the head states; where not, nothing changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtrain import DLRM
from rtrain.errors import ConfigError
from rtrain.export import quantised_program
from rtrain.export.artifact import Predictor, apart_of
from rtrain.export.program import Program
from rtrain.release.gate import Gate
from rtrain.release.quality import lost_to_bits
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Handoff
from tests.unit.export.test_program import DIM, asked_of, folder, head_of, run_of
from tests.unit.export.test_quantised import WIDE
from tests.unit.training.jobs import train

__all__ = ["folder"]
WIDE_LAYERS = DLRM(dim=DIM, bottom=(64,), top=(256, 128))


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is measured of a machine that others use is not what a test is of: times are given."""

    def give(before: float, after: float) -> None:
        real = quantised_program.compared

        def timed(*given: Any, **named: Any) -> dict[str, Any]:
            found = real(*given, **named)
            assert len(found["ms_1"]) == len(found["ms_64"]) == 2 and min(found["ms_1"]) > 0
            return found | {"ms_1": [before, after], "ms_64": [before, after]}

        monkeypatch.setattr(quantised_program, "compared", timed)

    return give


@pytest.mark.parametrize("tables", ["trained", "int8"])
def test_it_answers_as_it_states(folder: Path, pays: Any, tables: Any) -> None:
    pays(2.0, 1.0)
    run = run_of(folder, f"dense-{tables}", WIDE_LAYERS, program="onnx", dense="int8", tables=tables, tolerance=WIDE)
    export = Path(str(train(run)["export"]))
    head = head_of(export)
    stated = head["program"]["dense"]
    assert stated["kept"] == "int8" and stated["rows"] == 1250 and len(stated["auc"]) == 2
    before, after = stated["bytes"]
    assert after == (export / "program.onnx").stat().st_size < before, "weights are a quarter, the graph is larger"
    rows, said = asked_of(run)
    apart = np.abs(np.array(Predictor(str(export)).predict(rows)) - said).max()
    whole = stated["difference"] + head.get("tables", {}).get("difference", 0)
    assert 0 < apart <= whole + 1e-5 and whole < 0.1 and apart_of(head) == pytest.approx(whole)
    verdict = Gate(checks=(Servable(), Faithful())).judge(run.folder)
    assert verdict.passed, verdict.decisions
    lost, told = lost_to_bits("auc", head | {"program": {"dense": stated | {"auc": [0.8, 0.7]}}, "tables": {}}, True)
    assert lost == pytest.approx(0.1) and told == ", and int8 dense part takes 0.10000 more"


def test_where_it_is_no_faster_the_program_stays(folder: Path, pays: Any) -> None:
    pays(1.0, 1.0)
    run = run_of(folder, "no-faster", WIDE_LAYERS, program="onnx", dense="int8", tolerance=WIDE)
    export = Path(str(train(run)["export"]))
    head = head_of(export)
    stated = head["program"]["dense"]
    assert stated["kept"] == "trained" and (export / "program.onnx").stat().st_size == stated["bytes"][0]
    assert apart_of(head) == 0 and Gate(checks=(Servable(), Faithful())).judge(run.folder).passed


def test_a_loss_beyond_the_tolerance_is_refused_and_the_export_is_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a program whose answers are turned around."""

    class Turned(Program):
        def __call__(self, given: Any) -> Any:
            return -super().__call__(given)

    run = run_of(folder, "lossy", WIDE_LAYERS, program="onnx", dense="int8", tolerance=0.0)
    monkeypatch.setattr(quantised_program, "Program", Turned)
    with pytest.raises(ConfigError, match=r"handoff.dense: int8 costs .* of auc .*The program stays as it is"):
        train(run)
    export = Path(run.folder) / "export"
    assert "dense" not in head_of(export)["program"] and len(Predictor(str(export)).predict(asked_of(run)[0])) > 0


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match="handoff.dense: int8 is of an ONNX program. Set handoff.program to measured"):
        Handoff(dense="int8")
    with pytest.raises(ConfigError, match="handoff.dense: must be trained or int8, got 'int4'"):
        Handoff(dense="int4", program="onnx")  # type: ignore[arg-type]

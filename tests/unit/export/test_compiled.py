"""Programs compiled where they answer: the trainer's answers, a cache that is only the user's, and refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtrain.errors import CheckpointError, ConfigError, RtrainWarning
from rtrain.export import compiled
from rtrain.export.artifact import Predictor, prepare
from rtrain.export.compiled import key_of
from rtrain.export.fastest import fastest
from rtrain.release.gate import Gate
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Handoff, Run
from tests.unit.export.test_program import MODELS, NO_GRAPH, asked_of, folder, head_of, run_of
from tests.unit.training.jobs import train

__all__ = ["folder"]  # a fixture


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's libraries are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "rtrain" / "programs"


@pytest.fixture(scope="module")
def of_din(folder: Path, cache: Path) -> Run:
    """A finished run, whose lists are of any length, and whose export is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        run = run_of(folder, "compiled", MODELS["din"], program="compiled")
        train(run)
    return run


def library_in(kept: Path, run: Run) -> Path:
    (path,) = kept.glob(f"{key_of(head_of(f'{run.folder}/export'), 'cpu')}-*.pt2")
    return path


def answers_as_the_trainer(run: Run, predictor: Predictor) -> None:
    rows, said = asked_of(run)
    assert predictor.program is not None
    answers = np.array(predictor.predict(rows))
    assert answers.shape == said.shape and np.abs(answers - said).max() < 1e-5
    alone = np.array([predictor.predict([row])[0] for row in rows[:100]])  # among them histories of none and of one
    assert np.abs(alone - said[:100]).max() < 1e-5


def test_it_answers_what_the_trainer_said(of_din: Run, kept: Path) -> None:
    stated = head_of(f"{of_din.folder}/export")["program"]
    assert stated["kind"] == "compiled" and 0 <= stated["difference"] <= 1e-5 and "opset" not in stated
    assert stated["ms_1"] > 0 and stated["ms_64"] > 0 and stated["eager"].keys() == {"ms_1", "ms_64"}
    answers_as_the_trainer(of_din, Predictor(f"{of_din.folder}/export"))
    assert library_in(kept, of_din).exists() and kept.stat().st_mode & 0o777 == 0o700


def test_the_library_is_no_part_of_the_export(of_din: Run) -> None:
    files = [path.name for path in Path(f"{of_din.folder}/export").iterdir()]
    assert not [name for name in files if name.endswith((".pt2", ".so", ".onnx"))]


def test_the_gate_asks_it(of_din: Run) -> None:
    verdict = Gate(checks=(Servable(), Faithful())).judge(of_din.folder)
    assert verdict.passed, verdict.decisions


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "din"])
def test_all_that_ranks_can_be(name: str, folder: Path) -> None:
    run = run_of(folder, f"compiled-{name}", MODELS[name], program="compiled")
    answers_as_the_trainer(run, Predictor(str(train(run)["export"])))


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_tables_of_fewer_bits_too(bits: str, folder: Path) -> None:
    run = run_of(folder, f"compiled-{bits}", MODELS["din"], program="compiled", tables=bits, tolerance=1.0)
    export = str(train(run)["export"])
    rows, _ = asked_of(run)
    by_library, eager = Predictor(export), Predictor(export, program="eager")
    assert by_library.program is not None and eager.program is None
    assert np.abs(np.array(by_library.predict(rows)) - np.array(eager.predict(rows))).max() < 1e-5


def test_a_second_process_takes_what_is_kept(of_din: Run, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_in(kept, of_din)
    before = library.stat().st_ino
    monkeypatch.setenv("CXX", "no-compiler")  # it need not compile
    answers_as_the_trainer(of_din, Predictor(f"{of_din.folder}/export"))
    assert library.stat().st_ino == before


@pytest.mark.parametrize("compiler", [None, "no-compiler"])
def test_a_library_that_is_not_whole_is_compiled_again(
    compiler: str | None, of_din: Run, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_in(kept, of_din)
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    if compiler:
        monkeypatch.setenv("CXX", compiler)
        with pytest.warns(RtrainWarning, match=r"torch's modules answer: there is no C\+\+ compiler"):
            assert Predictor(f"{of_din.folder}/export").program is None
        assert not library.exists()
        library.write_bytes(whole)
    else:
        prepare(f"{of_din.folder}/export")  # as who is going to time what loads it
        assert library_in(kept, of_din).stat().st_size > 0.9 * len(whole)
        answers_as_the_trainer(of_din, Predictor(f"{of_din.folder}/export"))


def test_what_answers_is_measured_where_it_answers(
    of_din: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = f"{of_din.folder}/export"
    predictor = Predictor(export, program="eager")
    times = fastest(export, predictor)
    assert times.keys() == {"eager", "compiled"} and all(len(of) == 2 and min(of) > 0 for of in times.values())
    assert times["compiled"][0] < times["eager"][0]  # a row costs torch's modules several times as much
    answers_as_the_trainer(of_din, predictor)
    monkeypatch.setattr("rtrain.export.fastest.alternated", lambda *_: (1.0, 2.0))
    slower = Predictor(export, program="eager")
    assert fastest(export, slower)["compiled"] == (2.0, 2.0) and slower.program is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.warns(RtrainWarning, match=r"torch's modules answer: there is no C\+\+ compiler"):
        assert fastest(export, slower) == {} and slower.program is None


def test_what_cannot_be_done_before_is_left_to_who_loads(of_din: Run, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{")
    for nothing in (str(tmp_path), str(tmp_path / "none"), of_din.folder):
        prepare(nothing)


def test_a_process_that_is_killed_leaves_no_file(of_din: Run, tmp_path: Path) -> None:
    code = (
        "import os, signal; from rtrain.export.artifact import Predictor; "
        f"one = Predictor({f'{of_din.folder}/export'!r}); assert one.program is not None; "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    there = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=there, timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.glob("aotinductor*"))


def test_the_key_is_of_all_that_matters(of_din: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of(f"{of_din.folder}/export")
    key = key_of(head, "cpu")
    assert key == key_of(head | {"metrics": {}, "program": {}}, "cpu")
    weights = {name: "0" * 64 for name in head["files"]}
    assert key != key_of(head | {"files": weights}, "cpu") and key != key_of(head | {"model": {}}, "cpu")
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    assert key != key_of(head, "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "another")
    assert key != key_of(head, "cpu")


def test_a_cache_that_others_write_is_not_used(of_din: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    programs = tmp_path / "rtrain" / "programs"
    programs.mkdir(parents=True)
    programs.chmod(0o777)
    with pytest.raises(
        CheckpointError, match=r"cannot be compiled here: the cache cannot be used \(.*others may write"
    ):
        Predictor(f"{of_din.folder}/export", program="compiled")
    with pytest.warns(RtrainWarning, match="torch's modules answer: the cache cannot be used"):
        predictor = Predictor(f"{of_din.folder}/export")
    programs.chmod(0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(CheckpointError, match=rf"\({tmp_path}, in which it is, may be written by everybody\)"):
        Predictor(f"{of_din.folder}/export", program="compiled")
    rows, said = asked_of(of_din)
    assert predictor.program is None and np.abs(np.array(predictor.predict(rows)) - said).max() < 1e-5


def test_without_a_compiler(of_din: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(
        RtrainWarning, match=r"torch's modules answer: there is no C\+\+ compiler \('no-compiler', by CXX\)"
    ):
        assert Predictor(f"{of_din.folder}/export").program is None
    run = run_of(folder, "no-compiler", MODELS["dlrm"], program="compiled")
    with pytest.raises(ConfigError, match=r"handoff.program: compiled cannot be had: there is no C\+\+ compiler"):
        train(run)
    assert not list(Path(run.folder).glob("checkpoints/*"))


def test_a_model_that_has_no_graph_stays_eager(folder: Path) -> None:
    run = run_of(folder, "no-graph", NO_GRAPH["branching"], program="compiled")
    with pytest.raises(ConfigError, match=r"compiled cannot be had: it cannot be compiled \(\w+: .*\). Set it to"):
        train(run)
    assert not (Path(run.folder) / "export/export.json").exists()


def test_of_many_those_that_were_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KEPT", 2)
    for number in range(3):
        (tmp_path / f"{number}.pt2").write_bytes(b"")
        os.utime(tmp_path / f"{number}.pt2", (number, number))
    compiled._clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.pt2", "2.pt2"]


@pytest.mark.parametrize("dense", ["int8"])
def test_fewer_bits_of_the_dense_part_are_onnx_s(dense: Any) -> None:
    with pytest.raises(ConfigError, match="handoff.dense: int8 is of an ONNX program"):
        Handoff(program="compiled", dense=dense)


def test_what_the_process_is_asked_by_has_the_key_of_the_export(of_din: Run, tmp_path: Path) -> None:
    asked = {
        "export": f"{of_din.folder}/export", "key": "of another", "modules": [], "device": "cpu",
        "to": str(tmp_path / "program.pt2"),
    }  # fmt: skip
    command = [sys.executable, "-m", "rtrain.export.compiler"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == {"why": "the export was written again meanwhile"}, done.stderr
    assert not (tmp_path / "program.pt2").exists()

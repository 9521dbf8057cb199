"""The dense part as ONNX: the answers of the trainer, of real runs by the real ONNX Runtime; what speaks against it."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from recipes import two_tower_movielens
from rtrain.data.interactions import Interactions
from rtrain.data.split import ByTime
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, ConfigError, RtrainWarning
from rtrain.export import chosen
from rtrain.export.artifact import Predictor
from rtrain.export.chosen import choose
from rtrain.export.formats import refuse_export
from rtrain.export.request import rows_of
from rtrain.export.shards import Shard
from rtrain.mesh import Parallel
from rtrain.metrics import AUC
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.ensemble import Ensemble
from rtrain.models.hstu_ranker import HSTURanker
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.release.gate import Gate
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Evaluation, Handoff, Run
from rtrain.schema import Dense, Id, IdSequence, Label, Schema
from rtrain.serving.app import application_of
from rtrain.storage import sha256_of
from tests.unit.training.jobs import train

ROWS, ITEMS, DIM = 5000, 40_000, 8
SCHEMA = Schema(
    features=(
        Dense(name="price"),
        Id(name="user", rows=50),
        Id(name="item", entity="item", rows=ITEMS),
        IdSequence(name="history", rows=ITEMS, table="item", max_length=6, times="had"),
    ),
    time="at",
)
TWO = replace(SCHEMA, more_labels=(Label(name="like"),))
MODELS: dict[str, RankingConfig] = {
    "dlrm": DLRM(dim=DIM, bottom=(8,), top=(16,), first_order=True, dropout=0.1),
    "deepfm": DeepFM(dim=DIM, deep=(16,)),
    "dcnv2": DCNv2(dim=DIM, rank=4, layers=2, deep=(16,)),
    "mixture": DCNv2(dim=DIM, rank=4, layers=2, experts=2, deep=(16,), structure="stacked"),
    "din": DIN(dim=DIM, candidate="item", attention=(8,), top=(16,)),
    "mmoe": MMoE(dim=DIM, experts=2, expert=(16,), towers=(8,)),
    "ple": PLE(dim=DIM, levels=2, expert=(16,), towers=(8,)),
    "ensemble": Ensemble(models=(DLRM(dim=DIM, bottom=(8,), top=(16,)), DCNv2(dim=DIM, rank=4)), weights=(0.7, 0.3)),
}


@dataclass(frozen=True, kw_only=True)
class Branching(DLRM):
    """What it computes depends on the numbers, in Python: no graph can say so."""

    def dense_part(self, schema: Schema) -> nn.Module:
        return Branches(super().dense_part(schema))


class Branches(nn.Module):
    def __init__(self, within: nn.Module):
        super().__init__()
        self.within = within

    def forward(self, dense_BD: Tensor, vectors_BV: Tensor) -> Tensor:
        logits: Tensor = self.within(dense_BD, vectors_BV)
        return logits if float(dense_BD.sum()) > 0 else 2 * logits


NO_GRAPH: dict[str, RankingConfig] = {
    "branching": Branching(dim=DIM, bottom=(8,), top=(16,)),
    # Groups of histories of similar length, whose sizes it counts in Python.
    "hstu": HSTURanker(dim=DIM, candidate="item", layers=1, heads=2, buckets=8, top=(16,)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows whose histories have 0 to 6 items."""
    made, draw = tmp_path_factory.mktemp("program"), np.random.default_rng(0)
    at, lengths = 1_700_000_000 + np.arange(ROWS) * 60, draw.integers(0, 7, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ago = [np.sort(draw.integers(1, 10**6, length))[::-1] for length in lengths]
    item, price = draw.integers(0, ITEMS, ROWS), draw.normal(size=ROWS)
    columns = {
        "price": price,
        "user": draw.integers(0, 50, ROWS),
        "item": item,
        "history": pa.ListArray.from_arrays(offsets, pa.array(draw.integers(0, ITEMS, lengths.sum()))),
        "had": pa.ListArray.from_arrays(offsets, pa.array(np.repeat(at, lengths) - np.concatenate(ago))),
        "at": at,
        "label": (price + draw.normal(size=ROWS) > 0).astype(np.int64),
        "like": (item % 2 == 0).astype(np.int64),
    }
    pq.write_table(pa.table(columns), made / "rows.parquet")
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled here is not for the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run_of(folder: Path, name: str, model: RankingConfig, **handoff: Any) -> Run:
    schema = TWO if model.several_labels else SCHEMA
    return Run(
        name=name, model=model, storage=f"{folder}/runs",
        data=Interactions(source=f"{folder}/rows.parquet", schema=schema, split=ByTime(valid=0.1, test=0.25)),
        optim=AdamW(lr=1e-2), sparse_optim=RowWiseAdagrad(lr=0.1), global_batch=256, duration=Duration(steps=12),
        parallel=Parallel(dense="ddp"), evaluation=Evaluation(monitor="auc", boosting_rows=0), metrics=(AUC(),),
        handoff=Handoff(**handoff),
    )  # fmt: skip


def head_of(export: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(export) / "export.json").read_text())
    return found


@pytest.fixture(scope="module")
def by_onnx(folder: Path) -> Run:
    """A finished run whose export answers by ONNX."""
    run = run_of(folder, "by-onnx", MODELS["din"], program="onnx")
    train(run)
    return run


@pytest.fixture
def copied(by_onnx: Run, tmp_path: Path) -> Path:
    """Its export, to be spoiled."""
    for path in (Path(by_onnx.folder) / "export").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def plain(copied: Path) -> Path:
    """The same without the program, as exports were before there was one."""
    (copied / "program.onnx").unlink()
    head = head_of(copied)
    del head["program"], head["files"]["program.onnx"]
    (copied / "export.json").write_text(json.dumps(head | {"format": 1}))
    return copied


def asked_of(run: Run) -> tuple[list[dict[str, Any]], np.ndarray]:
    """At least 1,000 rows of the test split as requests, and what the trainer recorded of them."""
    recorded = json.loads((Path(run.folder) / "predictions.json").read_text())
    assert len(recorded["rows"]) >= 1000
    schema = run.data.schema  # type: ignore[attr-defined]
    return rows_of(run.data.open().raw("test", 0, len(recorded["rows"])), schema), np.array(recorded["predictions"])


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_what_the_trainer_said(name: str, folder: Path) -> None:
    run = run_of(folder, name, MODELS[name], program="onnx")
    export = str(train(run)["export"])
    stated = head_of(export)["program"]
    assert stated["kind"] == "onnx" and 0 <= stated["difference"] <= 1e-5 and stated["opset"] == 18
    by_program, eager = Predictor(export), Predictor(export, program="eager")
    assert by_program.program is not None and eager.program is None
    rows, said = asked_of(run)
    answers = np.array(by_program.predict(rows))
    assert answers.shape == said.shape and np.abs(answers - said).max() < 1e-5
    assert np.abs(np.array(eager.predict(rows)) - said).max() < 1e-5
    alone = np.array([by_program.predict([row])[0] for row in rows[:100]])  # among them histories of none and of one
    assert np.abs(alone - said[:100]).max() < 1e-5
    with torch.inference_mode():
        table = run.data.open().raw("test", 0, 64)
        logits = [one.outputs(table, where="test", first_row=0) for one in (by_program, eager)]
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5) and not torch.equal(logits[0], torch.zeros_like(logits[0]))


def test_tables_are_no_part_of_the_file(by_onnx: Run) -> None:
    size = (Path(by_onnx.folder) / "export/program.onnx").stat().st_size
    assert 0 < size < ITEMS * DIM * 4 / 10


def test_what_is_named_is_what_runs(by_onnx: Run) -> None:
    rows, _ = asked_of(by_onnx)
    predictor, table = Predictor(f"{by_onnx.folder}/export"), by_onnx.data.open().raw("test", 0, 3)
    predictor.program = lambda given: torch.zeros(len(given["dense"]))  # type: ignore[assignment]
    assert predictor.predict(rows[:5]) == [0.5] * 5
    assert predictor.outputs(table, where="test", first_row=0).tolist() == [0.0] * 3


def test_the_gate_asks_the_program(by_onnx: Run) -> None:
    verdict = Gate(checks=(Servable(), Faithful())).judge(by_onnx.folder)
    assert verdict.passed, verdict.decisions


@pytest.mark.parametrize("times, kind", [((1.0, 2.0), "onnx"), ((2.0, 1.0), "eager")])
def test_the_faster_one_is_named(
    times: tuple[float, float], kind: str, plain: Path, by_onnx: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "alternated", lambda batches, onnx, eager: times)
    choose(str(plain), ("onnx",), by_onnx.data.open().raw("test", 0, 100))
    head = head_of(plain)
    other = "eager" if kind == "onnx" else "onnx"
    assert head["program"]["kind"] == kind and head["program"]["ms_1"] == 1.0
    assert head["program"][other].items() >= {"ms_1": 2.0, "ms_64": 2.0}.items()
    assert ("program.onnx" in head["files"]) == (plain / "program.onnx").exists() == (kind == "onnx")
    assert head["format"] == (3 if kind == "onnx" else 1)
    assert (Predictor(str(plain)).program is not None) == (kind == "onnx")


def test_what_is_measured_is_what_the_head_says(folder: Path) -> None:
    export = train(run_of(folder, "measured", MODELS["dlrm"], program="measured"))["export"]
    stated = head_of(export)["program"]
    others = [stated[kind] for kind in ("eager", "onnx", "compiled") if kind != stated["kind"]]
    assert all(0 < stated["ms_1"] * stated["ms_64"] <= other["ms_1"] * other["ms_64"] for other in others)
    programs = [told for told in (stated, *others) if "difference" in told]
    assert stated["ms_1"] > 0 and stated["ms_64"] > 0 and len(programs) == 2
    assert all(told["difference"] <= 1e-5 for told in programs)
    assert Path(f"{export}/program.onnx").exists() == (stated["kind"] == "onnx")


def test_eager_makes_none(folder: Path) -> None:
    export = train(run_of(folder, "eager", MODELS["dlrm"], program="eager"))["export"]
    head = head_of(export)
    assert "program" not in head and head["format"] == 1 and not Path(str(export), "program.onnx").exists()


def test_one_that_was_altered_is_refused(copied: Path) -> None:
    path = copied / "program.onnx"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    for program in ("stated", "eager"):
        with pytest.raises(CheckpointError, match="program.onnx is missing or was altered. Export the run again"):
            Predictor(str(copied), program=program)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["beside.bin", "../beside.bin", "{folder}/beside.bin"])
def test_a_program_reads_no_other_file(where: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from elsewhere, whose weights are in a file that no sha256 is of."""
    import onnx
    from onnx.external_data_helper import set_external_data

    path, beside = copied / "program.onnx", copied / "in" / "beside.bin"
    program = onnx.load(str(path))
    weight = max(program.graph.initializer, key=lambda one: len(one.raw_data))
    content = weight.raw_data
    set_external_data(weight, location=where.format(folder=copied))
    weight.ClearField("raw_data")
    path.write_bytes(program.SerializeToString())
    for folder in (beside.parent, beside.parent / "within"):
        folder.mkdir()
        (folder / "beside.bin").write_bytes(content)
        monkeypatch.chdir(folder)
    (copied / "beside.bin").write_bytes(content)
    head = head_of(copied)
    head["files"]["program.onnx"] = sha256_of(path)
    (copied / "export.json").write_text(json.dumps(head))
    with pytest.raises(CheckpointError, match="it does not load .*External data path validation failed"):
        Predictor(str(copied))


DAMAGES: dict[str, Any] = {
    "no JSON": ("export.json", b"{"),
    "no head": ("export.json", b"[]"),
    "an empty head": ("export.json", b"{}"),
    "a format that is a word": {"format": "abc"},
    "no model": {"model": None},
    "a model that is run": {"model": {"$type": "rtrain.__main__:x"}},
    "a schema that is none": {"schema": 7},
    "a program that is none": {"program": 3},
    "no weights": {"files": {}},
    "weights that are none": ("model-00000.safetensors", b"\x80\x04."),
    "a program that is no ONNX": ("program.onnx", b"junk"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_said_in_a_line(damage: Any, copied: Path) -> None:
    head = head_of(copied)
    if isinstance(damage, tuple):
        (copied / damage[0]).write_bytes(damage[1])
        head["files"] |= {name: sha256_of(copied / name) for name in head["files"]}
    if not isinstance(damage, tuple) or damage[0] != "export.json":
        (copied / "export.json").write_text(json.dumps(head | (damage if isinstance(damage, dict) else {})))
    readers = (Predictor, application_of) if "program" in str(damage) else (Predictor, application_of, Shard)
    for read in readers:
        with pytest.raises((CheckpointError, ConfigError)) as refused:
            read(str(copied))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("head", "lacks"), [([], "format, files, model"), ({"format": 1, "files": {}}, "model"), ({"files": 3}, "files")]
)
def test_what_a_head_lacks_is_named(head: Any, lacks: str, copied: Path) -> None:
    head = head_of(copied) | head if lacks == "files" else head
    (copied / "export.json").write_text(json.dumps(head))
    with pytest.raises(CheckpointError, match=f"export.json lacks {lacks}. Export the run again"):
        Predictor(str(copied))


def test_an_error_in_a_models_own_code_is_no_damage(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise AttributeError("'Mine' object has no attribute 'width'")

    monkeypatch.setattr(DIN, "blueprint", broken)
    with pytest.raises(CheckpointError, match=r"\(AttributeError: 'Mine' .*mend the code of its model if the error is"):
        Predictor(str(copied))


@pytest.mark.parametrize("change", [{"program": {"kind": "other"}}, {"files": {}}])
def test_a_program_that_is_not_there_is_refused(change: dict[str, Any], copied: Path) -> None:
    head = head_of(copied)
    if "files" in change:
        change = {"files": {name: digest for name, digest in head["files"].items() if name != "program.onnx"}}
    (copied / "export.json").write_text(json.dumps(head | change))
    with pytest.raises(CheckpointError, match="it states a program '(other|onnx)', which is not there"):
        Predictor(str(copied))
    assert Predictor(str(copied), program="eager").program is None


def test_exports_of_before_answer_by_the_model(plain: Path, by_onnx: Run) -> None:
    rows, said = asked_of(by_onnx)
    predictor = Predictor(str(plain))
    assert predictor.program is None and np.abs(np.array(predictor.predict(rows)) - said).max() < 1e-5


def test_without_the_package_it_is_eager_and_says_so(
    folder: Path, by_onnx: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.warns(RtrainWarning, match=r"onnxruntime is not installed: pip install 'rtrain\[onnx\]'") as told:
        export = str(train(run_of(folder, "bare", MODELS["dlrm"], program="measured"))["export"])
    assert len([x for x in told if issubclass(x.category, RtrainWarning)]) == 1
    assert head_of(export)["program"]["kind"] == "eager" and Predictor(export).program is None
    run = run_of(folder, "bare-onnx", MODELS["dlrm"], program="onnx")
    with pytest.raises(
        ConfigError, match="handoff.program: onnx cannot be had: onnxruntime is not installed: pip install"
    ):
        train(run)
    assert not list(Path(run.folder).glob("checkpoints/*"))
    rows, said = asked_of(by_onnx)
    with pytest.warns(RtrainWarning, match="onnxruntime is not installed, torch's modules answer"):
        predictor = Predictor(f"{by_onnx.folder}/export")
    assert predictor.program is None and np.abs(np.array(predictor.predict(rows)) - said).max() < 1e-5


@pytest.mark.parametrize("name", NO_GRAPH)
def test_a_model_that_has_no_graph_stays_eager(name: str, folder: Path) -> None:
    model = NO_GRAPH[name]
    with pytest.warns(RtrainWarning, match=r"it cannot be written as ONNX \(\w+: .*\)") as told:
        export = str(train(run_of(folder, name, model, program="measured"))["export"])
    (text,) = (str(x.message) for x in told if issubclass(x.category, RtrainWarning))
    assert "\n" not in text and len(text) < 500
    assert head_of(export)["program"]["kind"] == "eager" and Predictor(export).program is None
    run = run_of(folder, f"{name}-onnx", model, program="onnx")
    with pytest.raises(ConfigError, match="handoff.program: onnx cannot be had: it cannot be written"):
        train(run)
    assert not (Path(run.folder) / "export/export.json").exists()


def test_one_that_answers_otherwise_is_not_taken(plain: Path, by_onnx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written = chosen.write_program

    def spoiled(whole: Any, named: Any, path: Path) -> str:
        weight = next(value for name, value in whole.named_parameters() if name.endswith("top.0.weight"))
        before = weight.detach().clone()
        weight.data.mul_(1.001)
        try:
            return written(whole, named, path)
        finally:
            weight.data.copy_(before)

    monkeypatch.setattr(chosen, "write_program", spoiled)
    rows = by_onnx.data.open().raw("test", 0, 100)
    with pytest.warns(RtrainWarning, match="ONNX answers otherwise, by .*allowed: 1e-05"):
        choose(str(plain), ("onnx",), rows)
    assert head_of(plain)["program"]["kind"] == "eager"
    with pytest.raises(ConfigError, match="onnx cannot be had: ONNX answers otherwise"):
        choose(str(plain), ("onnx",), rows, must=True)


def test_tables_of_16_bits_are_not_widened_for_it(plain: Path, by_onnx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "WIDENED", ITEMS * DIM * 4 - 1)
    (table, *_) = [t for t in by_onnx.blueprint.tables if t.rows == ITEMS]
    rows = by_onnx.data.open().raw("test", 0, 100)
    with pytest.warns(RtrainWarning, match="its tables of 16 bits would take 0.0 GB of memory to be compared"):
        choose(str(plain), ("onnx",), rows, tables=(replace(table, dtype="float16"),))
    choose(str(plain), ("onnx",), rows, must=True, tables=(table,))
    assert head_of(plain)["program"]["kind"] == "onnx"


def test_what_is_no_number_is_no_small_difference() -> None:
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    found = chosen.largest([chosen.difference(one, one), chosen.difference(one, nan), chosen.difference(one, one)])
    assert not found <= chosen.SAME


@pytest.mark.parametrize("program", ["measured", "onnx"])
def test_only_a_ranking_model_has_one(program: Any) -> None:
    run = replace(two_tower_movielens.run(), handoff=Handoff(program=program))
    with pytest.raises(
        ConfigError, match=f"{program} is of models that score rows, and TwoTower is another. Leave it out"
    ):
        refuse_export(run, None)
    with pytest.raises(ConfigError, match="handoff.program: must be measured, eager, onnx or compiled, got 'fast'"):
        Handoff(program="fast")  # type: ignore[arg-type]

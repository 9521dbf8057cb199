"""The gate on real runs: a worse model, a broken or another export, other requests, budgets; and what is recorded."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

import rtrain
from rtrain import Calibrated, Faithful, NotWorse, SameRequests, Servable, SlicesNotWorse, Within
from rtrain.cli import console
from rtrain.data.split import ByTime
from rtrain.errors import CheckpointError, ConfigError, UserError
from rtrain.export.artifact import Predictor
from rtrain.export.request import json_schema, rows_of
from rtrain.release.finished import Finished
from rtrain.release.gate import RECORD, Gate, Verdict, verdict_of
from rtrain.release.judged import Decision, Judged
from rtrain.release.probe import probe
from rtrain.release.servable import narrower
from rtrain.schema import Id, IdList, Schema
from tests.unit.release.runs import ITEMS, SCHEMA, run_of, write_rows
from tests.unit.training.jobs import train


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The good run, to be spoiled."""
    shutil.copytree(folder / "runs" / "good", tmp_path / "good")
    return tmp_path / "good"


def judged(folder: Path, candidate: str, champion: str = "") -> Judged:
    of = [Finished.read(f"{folder}/runs/{name}") for name in (candidate, champion) if name]
    return Judged(of[0], of[1] if champion else None)


def test_the_first_model_passes_and_the_record_is_of_it_alone(copy: Path) -> None:
    verdict = Gate().judge(str(copy))
    assert verdict.passed and [d.check for d in verdict.decisions][:2] == ["servable", "faithful"], str(verdict)
    assert verdict.decisions[1].numbers["difference"] < 1e-6
    finished = Finished.read(f"{copy}/export")
    assert verdict_of(finished) == verdict
    told = verdict.to_json()
    for newer in (told | {"later": 1}, told | {"decisions": [told["decisions"][0] | {"later": 1}]}):
        with pytest.raises(CheckpointError, match=r"gate.json: a newer rtrain wrote it, with later. Update rtrain"):
            Verdict.from_json(newer)
    assert json.loads((copy / "export" / RECORD).read_text())["passed"] is True
    head = json.loads((copy / "export" / "export.json").read_text())
    (copy / "export" / "export.json").write_text(json.dumps(head | {"step": 1}))
    assert verdict_of(Finished.read(str(copy))) is None


def test_a_worse_model_is_refused_and_a_better_or_equal_one_is_not(folder: Path) -> None:
    worse = NotWorse().decide(judged(folder, "bad", "good"))
    assert not worse.passed and worse.numbers["high"] < -0.03, worse
    assert NotWorse(margin=0.9).decide(judged(folder, "bad", "good")).passed
    better = NotWorse(metric="gauc").decide(judged(folder, "good", "bad"))
    assert better.passed and better.numbers["low"] > 0.03, better
    same = NotWorse().decide(judged(folder, "again", "good"))
    assert same.passed and same.numbers["low"] == same.numbers["high"] == 0.0
    slices = SlicesNotWorse().decide(judged(folder, "bad", "good"))
    assert not slices.passed and "price" in slices.said and slices.numbers["slices"] > 1
    assert SlicesNotWorse().decide(judged(folder, "again", "good")).passed


def test_what_fewer_bits_cost_counts_against_the_candidate(folder: Path, copy: Path) -> None:
    """Its run was judged with tables as they were trained, its clients are answered by others."""
    head = json.loads((copy / "export" / "export.json").read_text())
    of = Judged(Finished.read(str(copy)), Finished.read(f"{folder}/runs/again"))
    for now, passes in ((0.70, True), (0.72, True), (0.69, False)):
        tables = {"kept": "int8", "auc": [0.70, now]}
        (copy / "export" / "export.json").write_text(json.dumps(head | {"tables": tables}))
        decision = NotWorse(metric="auc", margin=0.005).decide(replace(of, candidate=Finished.read(str(copy))))
        lost = pytest.approx(max(0.0, 0.70 - now))
        assert decision.passed is passes and decision.numbers["lost"] == lost and "int8" in decision.said, decision
    unstated = NotWorse(metric="gauc", margin=1.0).decide(replace(of, candidate=Finished.read(str(copy))))
    assert unstated.passed and unstated.said.endswith("of tables as trained, not of int8")


def test_runs_of_another_split_are_compared_by_the_candidates_rows(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "shorter")
    split = replace(run, storage=str(tmp_path), data=replace(run.data, split=ByTime(valid=0.1, test=0.2)))  # type: ignore[type-var]
    train(split)
    of = Judged(Finished.read(split.folder), Finished.read(f"{folder}/runs/good"))
    decision = NotWorse(margin=0.05).decide(of)
    assert decision.passed and "of the candidate's first 1200 test rows, which the champion's export scored anew" in (
        decision.said
    )
    slices = SlicesNotWorse(margin=0.05).decide(of)
    assert slices.passed and "first 1200 test rows" in slices.said and slices.numbers["slices"] > 1
    assert not NotWorse(metric="ndcg@3").decide(judged(folder, "good", "again")).passed


def test_an_altered_weight_or_answer_is_refused(copy: Path) -> None:
    path = next((copy / "export").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    said = json.loads((copy / "predictions.json").read_text())
    said["predictions"][5] += 1e-3
    (copy / "predictions.json").write_text(json.dumps(said))
    of = Judged(Finished.read(str(copy)), None)
    assert Servable().decide(of).passed
    skewed = Faithful().decide(of)
    assert not skewed.passed and skewed.numbers["difference"] == pytest.approx(1e-3, rel=0.01)
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    verdict = Gate().judge(str(copy))
    assert not verdict.passed and "altered" in verdict.decisions[0].said, str(verdict)
    assert [d.passed for d in verdict.decisions[:2]] == [False, False]


def test_a_model_that_takes_its_process_down_or_never_answers_is_refused(copy: Path) -> None:
    assert "not answered after 0.01 s" in probe(f"{copy}/export", [], [], deadline_s=0.01).error
    head = json.loads((copy / "export" / "export.json").read_text())
    head["model"]["$type"] = "tests.unit.release.dying:Dying"
    (copy / "export" / "export.json").write_text(json.dumps(head))
    from tests.unit.release import dying  # noqa: F401 - a class outside rtrain has to be imported by who judges it

    decision = Servable().decide(Judged(Finished.read(str(copy)), None))
    assert not decision.passed and "its process ended with signal 9" in decision.said


def test_clients_of_the_champion_have_to_be_understood(folder: Path) -> None:
    assert SameRequests().decide(judged(folder, "again", "good")).passed
    more = SameRequests().decide(judged(folder, "wider", "good"))
    assert not more.passed and "it needs 'more'" in more.said
    fewer = SameRequests().decide(judged(folder, "good", "wider"))
    assert not fewer.passed and "it takes no 'more'" in fewer.said


NUMBER = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.mark.parametrize(
    ("candidate", "champion", "says"),
    [
        (NUMBER, NUMBER, ""),
        (NUMBER | {"maximum": 99, "title": "x"}, NUMBER, ""),
        (NUMBER | {"maximum": 8}, NUMBER, "maximum 8, the champion's is 9"),
        (NUMBER | {"minimum": 1}, NUMBER, "minimum 1"),
        (NUMBER | {"exclusiveMaximum": 8}, NUMBER | {"exclusiveMaximum": 9}, "exclusiveMaximum 8, the champion's is 9"),
        ({"type": "string"}, NUMBER, "it takes"),
        ({"anyOf": [NUMBER, {"type": "null"}]}, NUMBER, ""),
        (NUMBER, {"anyOf": [NUMBER, {"type": "null"}]}, "it takes"),
        ({"type": "array", "items": NUMBER | {"maximum": 3}}, {"type": "array", "items": NUMBER}, "maximum 3"),
        ({"type": "array", "items": NUMBER, "maxItems": 3}, {"type": "array", "items": NUMBER}, "maxItems 3"),
    ],
)
def test_what_one_value_may_be(candidate: Any, champion: Any, says: str) -> None:
    found = narrower({"properties": {"x": candidate}}, {"properties": {"x": champion}})
    assert (says in found and found.startswith("x: ")) if says else found == ""


@pytest.mark.parametrize("kind", [Id, IdList])
def test_more_ids_than_the_champion_knows_are_no_other_request(kind: Any) -> None:
    """As of a catalogue that grew; fewer are."""
    fewer, more = (json_schema(Schema(features=(kind(name="item", rows=rows),), time="at")) for rows in (10, 12))
    assert narrower(more, fewer) == ""
    assert "item: exclusiveMaximum" in narrower(fewer, more)


@pytest.fixture(scope="module")
def newer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same rows and some that came since, of items that are new, too."""
    path, draw = tmp_path_factory.mktemp("newer"), np.random.default_rng(1)
    write_rows(path)
    old = pq.read_table(path / "rows.parquet")
    many = 1500
    columns = {name: draw.integers(0, 35 if name == "item" else 2, many) for name in ("user", "item", "label")}
    columns |= {"price": draw.normal(size=many), "at": len(old) + np.arange(many), "more": np.zeros(many)}
    table = pa.table({name: columns[name] for name in old.column_names})
    pq.write_table(pa.concat_tables([old, table]), path / "rows.parquet", row_group_size=500)
    more = replace(SCHEMA, features=(SCHEMA.features[0], replace(SCHEMA.features[1], rows=35), *SCHEMA.features[2:]))
    train(run_of(path, "newer", schema=more))
    return path / "runs" / "newer"


def test_a_champion_of_older_rows_scores_the_newer_ones(folder: Path, newer: Path) -> None:
    """As of each day's training: what it said of its own test rows says nothing of these."""
    of = Judged(Finished.read(str(newer)), Finished.read(f"{folder}/runs/good"))
    decision = NotWorse(metric="auc", margin=0.5).decide(of)
    dataset = of.candidate.run.data.open()
    rows = rows_of(dataset.raw("test", 0, dataset.rows("test")), dataset.schema)
    labels = dataset.raw("test", 0, dataset.rows("test"), ["label"])["label"].to_numpy()
    known = np.array([row["item"] < ITEMS for row in rows])
    assert 0 < (~known).sum() < len(rows) / 5
    scores = {}
    for name, run in (("candidate", newer), ("champion", folder / "runs" / "good")):
        answers = Predictor(f"{run}/export").predict([row for row, there in zip(rows, known, strict=True) if there])
        scores[name] = roc_auc_score(labels[known], answers)
        assert decision.numbers[name] == pytest.approx(scores[name], abs=1e-6)
    assert decision.passed and decision.numbers["low"] <= scores["candidate"] - scores["champion"]
    assert decision.numbers["high"] >= scores["candidate"] - scores["champion"]
    assert f"(of the candidate's first {len(rows)} test rows, which the champion's export scored anew but for" in (
        decision.said
    )
    assert f"but for {(~known).sum()} that it refuses (item: " in decision.said
    assert not NotWorse(metric="auc", margin=0.0).decide(of).passed or decision.numbers["low"] >= 0
    assert SameRequests().decide(of).passed
    back = NotWorse(metric="auc", margin=0.5).decide(Judged(of.champion, of.candidate))  # type: ignore[arg-type]
    assert back.passed and "refuses" not in back.said and "scored anew" in back.said


def test_a_champion_is_asked_as_it_was_trained_also_where_the_candidate_reads_less(folder: Path, newer: Path) -> None:
    """The champion that reads `more` is asked with it; without the column it cannot be asked as it is served."""
    before = Finished.read(f"{folder}/runs/wider")
    decision = NotWorse(metric="auc", margin=0.5).decide(Judged(Finished.read(str(newer)), before))
    dataset = Finished.read(str(newer)).run.data.open()
    rows = rows_of(dataset.raw("test", 0, dataset.rows("test")), dataset.schema, before.schema)
    assert all("more" in row for row in rows)
    labels = dataset.raw("test", 0, dataset.rows("test"), ["label"])["label"].to_numpy()
    known = [row["item"] < ITEMS for row in rows]
    answers = Predictor(f"{before.folder.uri}/export").predict([row for row, of in zip(rows, known, strict=True) if of])
    assert decision.numbers["champion"] == pytest.approx(roc_auc_score(labels[known], answers), abs=1e-6)


def test_a_champion_whose_column_is_gone_cannot_be_asked(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path)
    whole = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(whole.drop_columns(["more"]).slice(500), tmp_path / "rows.parquet", row_group_size=500)
    train(run_of(tmp_path, "less"))
    of = Judged(Finished.read(f"{tmp_path}/runs/less"), Finished.read(f"{folder}/runs/wider"))
    decision = NotWorse(metric="auc", margin=0.5).decide(of)
    assert not decision.passed and "these data have no 'more', which the model is asked with" in decision.said


def test_slices_that_the_champion_alone_tells_are_compared_of_other_rows_too(folder: Path, newer: Path) -> None:
    candidate, before = Finished.read(str(newer)), Finished.read(f"{folder}/runs/good")
    without = replace(candidate.run, evaluation=replace(candidate.run.evaluation, slices=()))
    object.__setattr__(candidate, "run", without)
    decision = SlicesNotWorse(metric="auc", margin=0.5).decide(Judged(candidate, before))
    assert decision.passed and decision.numbers["slices"] > 1 and "<price<=" in decision.said


def test_a_champion_that_dies_or_is_gone_refuses_the_candidate(newer: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs" / "good", tmp_path / "dying")
    shutil.copytree(folder / "runs" / "good", tmp_path / "gone")
    head = tmp_path / "dying" / "export" / "export.json"
    kept = json.loads(head.read_text())
    kept["model"]["$type"] = "tests.unit.release.dying:Dying"
    head.write_text(json.dumps(kept))
    gone = Finished.read(str(tmp_path / "gone"))
    assert gone.schema and gone.run
    from tests.unit.release import dying  # noqa: F401 - as above

    next((tmp_path / "gone" / "export").glob("*.safetensors")).unlink()
    for champion, says in ((Finished.read(str(tmp_path / "dying")), "signal 9"), (gone, "safetensors")):
        decision = NotWorse(metric="auc", margin=0.5).decide(Judged(Finished.read(str(newer)), champion))
        assert not decision.passed and says in decision.said, decision.said
        assert "the champion could not be asked for the candidate's test rows" in decision.said


def test_a_champion_of_another_label_says_nothing_of_it(newer: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs" / "good", tmp_path / "other")
    head = json.loads((tmp_path / "other" / "export" / "export.json").read_text())
    head["schema"]["label"]["name"] = "bought"
    (tmp_path / "other" / "export" / "export.json").write_text(json.dumps(head))
    decision = NotWorse(metric="auc", margin=0.5).decide(
        Judged(Finished.read(str(newer)), Finished.read(str(tmp_path / "other")))
    )
    assert not decision.passed and "the champion does not tell 'label', but bought" in decision.said


def test_probabilities_that_are_off_are_refused(folder: Path) -> None:
    of = judged(folder, "good")
    rows = of.candidate.rows[""].scored
    ratio = rows.probabilities.mean() / rows.labels.mean()  # type: ignore[union-attr]
    decision = Calibrated(most=0.5).decide(of)
    assert decision.passed and decision.numbers["ratio"] == pytest.approx(ratio)
    assert not Calibrated(most=abs(ratio - 1) / 2).decide(of).passed


def test_budgets(folder: Path) -> None:
    of = judged(folder, "good")
    seen = Within().decide(of)
    assert seen.passed and seen.numbers["size_mb"] > 0.001 and seen.numbers["memory_mb"] > 50
    for name in ("size_mb", "memory_mb", "latency_ms"):
        assert not Within(**{name: seen.numbers[name] / 1000}).decide(of).passed, name
    with pytest.raises(ConfigError, match=r"Within.rows: must be one of 1, 64, got 3"):
        Within(rows=3)


@dataclass(frozen=True)
class Named:
    """A check of one's own."""

    name: str

    def decide(self, of: Judged) -> Decision:
        return Decision("named", of.candidate.name == self.name, of.candidate.name, {})


def test_a_check_of_ones_own(copy: Path) -> None:
    assert rtrain.Gate(checks=(Named("good"),)).judge(str(copy)).passed
    assert not rtrain.Gate(checks=(Named("better"),)).judge(str(copy)).passed
    with pytest.raises(UserError, match="there are none"):
        rtrain.Gate(checks=())


def test_the_command(folder: Path, copy: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*words: str) -> Any:
        monkeypatch.setattr("sys.argv", ["rtrain", "gate", *words])
        with pytest.raises(SystemExit) as end:
            console()
        return end.value.code, capsys.readouterr()

    code, told = ended(str(copy), "--champion", f"{folder}/runs/again", "--json")
    assert code == 0 and json.loads(told.out)["passed"] is True and "gate: Servable" in told.err
    code, told = ended(str(copy), "--size-mb", "0.001")
    assert code == 1 and told.out.startswith("good: refused\n") and "refused  within budget" in told.out
    code, told = ended(f"{folder}/nothing")
    assert code == 2 and told.err.count("\n") == 1 and "there is no finished run" in told.err

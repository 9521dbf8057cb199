"""`rtrain checkpoints`: what it lists, finds, compares, exports and deletes, as text, JSON and exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rtrain import cli
from rtrain.checkpoint import examine
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.cli.checkpoints import line_of
from rtrain.errors import CheckpointError
from rtrain.parallel.chunks import whole

pytestmark = pytest.mark.usefixtures("world_of_one")


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Steps 1 to 4: of 3 the shard is cut off, 4 was never committed; 1 is the best."""
    folders = CheckpointFolders(str(tmp_path / "run"))
    for step in (1, 2, 3, 4):
        meta = {
            "config": {"optim": {"lr": 0.1 * step}, "sizes": [8]},
            "state": {"best_step": 1, "best": {"auc": 0.75}},
            "attempt": 1,
        }
        tensors = {
            "model.w": torch.arange(6.0).reshape(2, 3) * step,
            "model.b": torch.ones(2),
            "optim.w.m": torch.ones(1),
        }
        save(folders, step, [whole(k, v) for k, v in tensors.items()], meta)
    shard = Path(folders.of(3).path) / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (Path(folders.of(4).path) / "COMMITTED").unlink()
    return str(tmp_path / "run")


@pytest.fixture
def checkpoints(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*words: str, as_json: bool = True) -> tuple[Any, Any]:
        monkeypatch.setattr("sys.argv", ["rtrain", "checkpoints", run, *words, *(["--json"] if as_json else [])])
        with pytest.raises(SystemExit) as ended:
            cli.console()
        out = capsys.readouterr().out
        return ended.value.code, json.loads(out) if as_json else out

    return call


def test_list_says_which_are_whole(checkpoints: Any) -> None:
    code, rows = checkpoints()
    assert code == 0
    assert [(r["step"], r["state"], r["best"]) for r in rows] == [
        (1, "intact", True), (2, "intact", False), (3, "damaged", False), (4, "half-written", False),
    ]  # fmt: skip
    code, text = checkpoints(as_json=False)
    assert " ".join(text.splitlines()[0].split()) == "step 1 intact 0.0 MiB best attempt 1, 1 ranks auc 0.7500"


def test_each_step_shows_metrics_of_its_own(tmp_path: Path) -> None:
    folders = CheckpointFolders(str(tmp_path))
    best = {"best_step": 2, "best": {"auc": 0.9}}
    for step, at, auc in [(1, None, None), (2, 2, 0.9), (3, 2, 0.9), (4, 4, 0.8)]:
        latest = {"latest_step": at, "latest": {} if auc is None else {"auc": auc}}
        save(folders, step, [whole("model.b", torch.ones(2))], {"state": (best if step > 1 else {}) | latest})
    rows = [(row.step, row.metrics.get("auc"), row.metrics_step) for row in examine.listing(folders)]
    assert rows == [(1, None, None), (2, 0.9, None), (3, 0.9, 2), (4, 0.8, None)]
    shown = line_of(examine.listing(folders)[2])
    assert shown.endswith("auc 0.9000  (of step 2)")
    said = examine.compare(examine.at(folders, 2), examine.at(folders, 4))
    assert said["metrics"] == [{"metrics": {"auc": a}, "metrics_step": None} for a in (0.9, 0.8)]


def test_verify_reads_every_byte(checkpoints: Any, run: str) -> None:
    shard = Path(CheckpointFolders(run).of(2).path) / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")  # at its size: a listing does not see it
    code, found = checkpoints("verify")
    assert code == 1
    assert found["1"] == ""
    assert "was altered" in found["2"]
    assert "bytes, not" in found["3"]
    assert checkpoints("verify", "1") == (0, {"1": ""})


def test_show_and_compare(checkpoints: Any) -> None:
    code, shown = checkpoints("show")
    assert (code, shown["step"], shown["tensors"]["model.w"]) == (0, 2, {"shape": [2, 3], "dtype": "float32"})
    code, found = checkpoints("compare", "1", "2")
    assert code == 0
    assert found["config"] == {"optim.lr": [0.1, 0.2]}
    assert found["other_values"] == {"model.w": {"max": 5.0, "mean": 2.5}}
    assert (found["equal_tensors"], found["only_in_first"], found["other_shape"]) == (2, [], {})


def test_export_is_plain_safetensors_of_the_model_alone(checkpoints: Any, tmp_path: Path) -> None:
    code, said = checkpoints("export", "2", "--to", str(tmp_path / "out"))
    assert code == 0
    tensors = load_file(said["uri"])
    assert sorted(tensors) == ["b", "w"]
    assert torch.equal(tensors["w"], torch.arange(6.0).reshape(2, 3) * 2)
    assert checkpoints("export", "3", "--to", str(tmp_path / "out"))[0] == 2


def test_prune_counts_what_is_intact_and_leaves_what_may_be_under_way(checkpoints: Any) -> None:
    assert checkpoints("prune", "--keep", "1") == (0, {"deleted": [], "left": [1, 2, 3]})
    assert checkpoints("list")[1][-1]["state"] == "half-written"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "9"), "no checkpoint of step 9; committed steps: 1, 2, 3"),
        (("compare", "1"), "rtrain checkpoints compare: it takes 2 steps, got 1"),
        (("export",), "say where to with --to FOLDER"),
        (("prune",), "say how many stay with --keep N"),
    ],
)
def test_what_cannot_be_done_is_one_line(checkpoints: Any, words: tuple[str, ...], said: str) -> None:
    code, answer = checkpoints(*words)
    assert code == 2
    assert said in answer["error"]


def test_another_model_is_refused_by_the_names_that_differ(run: str) -> None:
    stored = Stored(CheckpointFolders(run).of(1), 1)
    model = {"model.w": torch.empty(2, 4), "model.c": torch.empty(1)}
    with pytest.raises(CheckpointError) as raised:
        stored.check_model({name: weight.shape for name, weight in model.items()})
    assert "model.w [2, 3] there, [2, 4] here; model.c only here; model.b only there. Train under" in str(raised.value)
    stored.check_model({"model.w": (2, 3), "model.b": (2,)})


@pytest.mark.parametrize(
    ("sign", "tool"), [(".metadata", "torch.distributed.checkpoint"), ("zero_to_fp32.py", "DeepSpeed")]
)
def test_a_foreign_tool_is_named(tmp_path: Path, sign: str, tool: str) -> None:
    folders = CheckpointFolders(str(tmp_path))
    folders.of(1).write(sign, b"")
    with pytest.raises(CheckpointError, match=f"checkpoint step 1: it is a checkpoint of {tool}, which rtrain"):
        Stored(folders.of(1), 1)

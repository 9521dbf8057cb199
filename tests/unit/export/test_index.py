"""An index finds what it states of all items compared, with their very scores, and is refused where it is another's."""

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rtrain.data.columns import Lists
from rtrain.data.holdout import LeaveOneOut, RandomPerUser
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval import Histories, Pairs
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, ConfigError, DataError, RtrainWarning
from rtrain.export.encoders import Encoders
from rtrain.export.index import INDEX, Depth, Index, Stated, find, measured, recalls, seen_of, write_index
from rtrain.metrics import HitRate
from rtrain.metrics.catalogue import NO_ITEM, rank_catalogue
from rtrain.models.mf import MF
from rtrain.models.sasrec import SASRec
from rtrain.optim import RowWiseAdagrad
from rtrain.release.finished import Finished
from rtrain.release.judged import Judged
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Evaluation, Handoff, Run
from rtrain.storage import sha256_of
from tests.unit.training.jobs import train

ITEMS, USERS, GROUPS = 1200, 300, 8


def clustered(items: int, users: int, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Items around 40 means, of lengths that differ by a factor of four, and users around the same means."""
    draw = np.random.default_rng(0)
    means = draw.standard_normal((40, dim))
    of_items, of_users = (means[draw.integers(0, 40, n)] + 0.3 * draw.standard_normal((n, dim)) for n in (items, users))
    of_items *= draw.uniform(0.5, 2, (items, 1))
    return torch.from_numpy(of_users.astype(np.float32)), torch.from_numpy(of_items.astype(np.float32))


def hiding(lists: list[list[int]]) -> Lists:
    return Lists.of(np.array([x for of in lists for x in of], np.int64), np.array([len(x) for x in lists]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, torch.Tensor, torch.Tensor, Path]:
    users, items = clustered(5000, 200)
    path = tmp_path_factory.mktemp("index") / INDEX
    return Index(path, write_index(items.numpy(), path)), users, items, path


def test_the_same_vectors_give_the_same_file(made: Any, tmp_path: Path) -> None:
    _, _, items, path = made
    torch.set_num_threads(2)
    try:
        write_index(items.numpy(), tmp_path / INDEX)
    finally:
        torch.set_num_threads(1)
    assert sha256_of(tmp_path / INDEX) == sha256_of(path)


def test_all_cells_are_all_items_compared(made: Any) -> None:
    """Also where the items of the users differ in number, are all hidden, or are more than any depth."""
    index, users, items, _ = made
    draw = np.random.default_rng(1)
    best = rank_catalogue(users, items, k=60).items_UK
    lists = [best[u, : u % 50].tolist() for u in range(len(users))]
    lists[3], lists[4] = list(range(len(items))), sorted(draw.choice(5000, 4995, replace=False).tolist())
    depths = [Depth(k=10, probes=index.cells), Depth(k=40, probes=index.cells)]
    for k, hidden in ((10, lists), (10, [[]] * 200), (1, lists), (45, lists), (5000, [[]] * 200)):
        wanted = rank_catalogue(users, items, k=k, seen=seen_of(hiding(hidden)))
        found = find(index, depths, users, items, hiding(hidden), k)
        assert found.items_UK.shape == wanted.items_UK.shape
        assert torch.equal(found.items_UK == NO_ITEM, wanted.items_UK == NO_ITEM)
        assert torch.allclose(found.scores_UK, wanted.scores_UK, atol=1e-5)
        assert (found.items_UK == wanted.items_UK).float().mean() > 0.999  # two that differ by a rounding may change


def test_more_is_asked_for_where_items_are_hidden(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index, users, items, _ = made
    hidden = hiding(rank_catalogue(users, items, k=20).items_UK.tolist())
    wanted = rank_catalogue(users, items, k=10, seen=seen_of(hidden))
    monkeypatch.setattr("rtrain.export.index.rank_catalogue", None)  # so that all items are not compared
    depths = [Depth(k=10, probes=1), Depth(k=30, probes=index.cells)]
    assert torch.allclose(find(index, depths, users, items, hidden, 10).scores_UK, wanted.scores_UK, atol=1e-5)


def test_a_cell_with_less_than_k_left_is_not_all_there_is(made: Any) -> None:
    """A cell has some 80 items: a list of 300 from it would end early, and all items are compared then."""
    index, users, items, _ = made
    short = index.search(users.numpy(), 300, 1)[1]
    assert (short == NO_ITEM).any(1).all()
    found = find(index, [Depth(k=300, probes=1)], users, items, hiding([[]] * 200), 300)
    assert torch.equal(found.items_UK, rank_catalogue(users, items, k=300).items_UK)


def test_what_is_stated_is_what_others_find(made: Any) -> None:
    index, users, items, _ = made
    nobody = hiding([[]] * 200)
    stated = measured(index, users, items, nobody)
    assert stated is not None and stated.users == 100 and stated.recall >= 0.99
    assert stated.depths[0].k == 10 and stated.depths[0].probes * 4 <= index.cells
    found = find(index, stated.depths, users[100:], items, hiding([[]] * 100), 10).items_UK
    best = rank_catalogue(users[100:], items, k=10).items_UK
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), best.tolist(), strict=True)]
    assert stated.recall == pytest.approx(np.mean(shares), abs=1e-9)
    assert stated.error == pytest.approx(np.std(shares) / 10, abs=1e-9)
    fewest = [Depth(k=10, probes=1)]
    one_cell = recalls(find(index, fewest, users, items, nobody, 10), rank_catalogue(users, items, k=10)).mean()
    assert one_cell < 0.99  # so it had something to choose
    assert Stated.from_json(json.loads(json.dumps(stated.to_json()))) == stated


def test_vectors_without_groups_get_none(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    users, items = torch.randn(100, 32, generator=draw), torch.randn(2000, 32, generator=draw)
    index = Index(tmp_path / INDEX, write_index(items.numpy(), tmp_path / INDEX))
    assert measured(index, users, items, hiding([[]] * 100)) is None


def test_wrong_vectors_and_files_are_refused(made: Any, tmp_path: Path) -> None:
    index, users, items, path = made
    with pytest.raises(DataError, match="not numbers. Look why the run diverged"):
        write_index(np.full((100, 4), np.nan, np.float32), tmp_path / "x")
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        find(index, [], users, items, hiding([[]] * 200), 0)
    with pytest.raises(CheckpointError, match="5000 items of 16 dimensions in 256 cells, and the export 4999 of 16"):
        index.refuse_other((4999, 16), 256)
    with pytest.raises(CheckpointError, match="dimensions in 256 cells, and the export 5000 of 16 in 32"):
        index.refuse_other((5000, 16), 32)
    (tmp_path / "junk").write_bytes(b"junkjunk" * 20)
    with pytest.raises(CheckpointError, match="faiss cannot read it"):
        Index(tmp_path / "junk", 1.0)
    import faiss

    faiss.write_index(faiss.IndexFlatIP(4), str(tmp_path / "flat"))
    with pytest.raises(CheckpointError, match="it is IndexFlatIP of metric 0, not IndexIVFFlat"):
        Index(tmp_path / "flat", 1.0)
    faiss.write_index(faiss.index_factory(4, "IVF1,Flat"), str(tmp_path / "l2"))
    with pytest.raises(CheckpointError, match="it is IndexIVFFlat of metric 1"):
        Index(tmp_path / "l2", 1.0)
    assert path.exists()


def write(folder: Path) -> None:
    """Users have 30 of the 150 items of their group, in an order of their own."""
    draw = np.random.default_rng(0)
    pairs = [
        (u, int(i) * GROUPS + u % GROUPS)
        for u in range(USERS)
        for i in draw.choice(ITEMS // GROUPS, size=30, replace=False)
    ]
    user, item = (np.array(x) for x in zip(*pairs, strict=True))
    columns = {"user_id": user, "item_id": item, "timestamp": 1_700_000_000 + np.arange(len(pairs))}
    pq.write_table(pa.table(columns), folder / "rows.parquet")


def run_of(folder: Path, name: str, index_from: int | None) -> Run:
    common: dict[str, Any] = {"source": f"{folder}/rows.parquet", "users": USERS, "items": ITEMS}
    made: dict[str, tuple[Any, Any, int]] = {
        "pairs": (
            MF(dim=16),
            Pairs(negatives=Negatives(count=4), split=RandomPerUser(valid=0.1, test=0.2), **common),
            12,
        ),
        "histories": (SASRec(dim=16), Histories(length=10, split=LeaveOneOut(), **common), 1),
    }
    model, data, epochs = made[name]
    return Run(
        name=f"{name}-{index_from}", model=model, data=data, global_batch=64, duration=Duration(epochs=epochs),
        sparse_optim=RowWiseAdagrad(lr=0.3), storage=f"{folder}/runs", evaluation=Evaluation(monitor="hit_rate@10"),
        metrics=(HitRate(k=10),), handoff=Handoff(index_from=index_from),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    write(folder)
    return folder


@pytest.mark.parametrize("name", ["pairs", "histories"])
def test_an_export_finds_by_its_index(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "histories":  # whose vectors are not in groups after so few steps: all cells may be looked into
        monkeypatch.setattr("rtrain.export.index.SHARE", 1)
    done = train(run_of(folder, name, ITEMS // 2))
    encoders = Encoders(str(done["export"]))
    assert encoders.index is not None and encoders.index.recall >= 0.99
    assert json.loads((Path(str(done["export"])) / "export.json").read_text())["index"] == encoders.index.to_json()
    whom, _ = encoders.some(200)
    seen = [encoders.items[n % 50 : n % 50 + n % 20].to_pylist() for n in range(len(whom))]
    best = encoders.recommend(whom, 10, seen=seen, exact=True)
    monkeypatch.setattr("rtrain.export.encoders.rank_catalogue", None)  # nothing compares all but what `find` does
    found = encoders.recommend(whom, 10, seen=seen)
    assert all(len(of) == 10 and not {i for i, _ in of} & set(had) for of, had in zip(found, seen, strict=True))
    scores = [(dict(of), dict(right)) for of, right in zip(found, best, strict=True)]
    assert np.mean([len(of.keys() & right.keys()) / 10 for of, right in scores]) >= 0.98
    assert all(of[i] == pytest.approx(right[i], abs=1e-5) for of, right in scores for i in of.keys() & right.keys())


@pytest.mark.slow
def test_the_gate_holds_an_index_to_what_is_stated(folder: Path) -> None:
    run = run_of(folder, "pairs", ITEMS // 2)
    export = Path(str(train(run)["export"]))
    decision = Faithful().decide(Judged(Finished.read(run.folder), None))
    assert decision.passed and decision.numbers["difference"] <= 1e-5 and decision.numbers["recall"] >= 0.98, decision
    assert "; the index finds" in decision.said and Servable().decide(Judged(Finished.read(run.folder), None)).passed
    head = json.loads((export / "export.json").read_text())
    # One that looks into a cell alone, where more were needed, finds less than is stated.
    blind = {**head["index"], "depths": [{"k": 100, "probes": 1}]}
    (export / "export.json").write_text(json.dumps(head | {"index": blind}))
    decision = Faithful().decide(Judged(Finished.read(run.folder), None))
    assert not decision.passed and decision.numbers["difference"] <= 1e-5, decision
    # One whose scores are not the products.
    before = (export / INDEX).read_bytes()
    vectors = Encoders(str(export)).vectors.numpy() * np.float32(1.001)
    write_index(vectors, export / INDEX)
    files = {**head["files"], INDEX: sha256_of(export / INDEX)}
    (export / "export.json").write_text(json.dumps(head | {"files": files}))
    decision = Faithful().decide(Judged(Finished.read(run.folder), None))
    assert not decision.passed and decision.numbers["difference"] > 1e-4, decision
    (export / INDEX).write_bytes(before)
    (export / "export.json").write_text(json.dumps(head))


@pytest.mark.slow
def test_an_export_of_few_items_or_of_none_asked_for_has_none(folder: Path) -> None:
    for least in (ITEMS + 1, None):
        done = train(run_of(folder, "pairs", least))
        export = Path(str(done["export"]))
        assert not (export / INDEX).exists() and Encoders(str(export)).index is None


def test_an_index_that_does_not_pay_is_told(folder: Path) -> None:
    run = replace(run_of(folder, "pairs", 10), name="untrained", duration=Duration(steps=1))
    with pytest.warns(RtrainWarning, match="so the export has none"):
        export = Path(str(train(run)["export"]))
    assert not (export / INDEX).exists() and Encoders(str(export)).index is None


def test_a_file_that_was_altered_or_is_not_said_is_refused(folder: Path, tmp_path: Path) -> None:
    run = replace(run_of(folder, "pairs", ITEMS // 2), storage=str(tmp_path))
    export = Path(str(train(run)["export"]))
    head, whole = json.loads((export / "export.json").read_text()), (export / INDEX).read_bytes()
    (export / INDEX).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{INDEX} is missing or was altered"):
        Encoders(str(export))
    (export / INDEX).write_bytes(whole)
    for wrong in (
        {k: v for k, v in head.items() if k != "index"},
        head | {"files": {k: v for k, v in head["files"].items() if k != INDEX}},
    ):
        (export / "export.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=rf"does not say of {INDEX} what it is"):
            Encoders(str(export))
    (export / "export.json").write_text(json.dumps(head | {"index": head["index"] | {"cells": 7}}))
    with pytest.raises(CheckpointError, match="in 128 cells, and the export .* in 7. Export the run again"):
        Encoders(str(export))


def test_without_faiss_it_is_said_before_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = str(train(run_of(folder, "pairs", ITEMS // 2))["export"])
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    run = replace(run_of(folder, "pairs", ITEMS // 2), name="bare")
    with pytest.raises(ConfigError, match=r"handoff.index_from: .* needs faiss: pip install 'rtrain\[index\]'. Or"):
        train(run)
    assert not Path(run.folder).exists() or not list(Path(run.folder).glob("checkpoints/*"))
    with pytest.raises(ConfigError, match="needs faiss"):
        Encoders(export)
    assert train(replace(run, handoff=Handoff(index_from=None)))["export"]


def test_from_how_many_is_checked() -> None:
    with pytest.raises(ConfigError, match="handoff.index_from: must be at least 1, or none, got 0"):
        Handoff(index_from=0)

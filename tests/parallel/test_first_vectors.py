"""Tables that begin from vectors of a file: the named rows at every layout, and what a file cannot say.

The control is plain torch, whose tables are given the same rows by hand. Its tolerance is that of `test_models`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from rtrain.errors import ConfigError, DataError
from rtrain.mesh import Parallel
from rtrain.models.dlrm import DLRM
from rtrain.nn.tables import Table, TableOptions, initial_rows
from rtrain.optim import SGD, Adam, SparseOptim
from rtrain.parallel.chunks import Chunk, whole
from rtrain.parallel.first_vectors import FirstVectors, check_vectors
from rtrain.run import Run
from rtrain.training.replica import Replica
from tests.parallel import test_retrieval as retrieval
from tests.parallel.plain import apart, cross_entropy, descend, far
from tests.parallel.worlds import SAVED, in_world, tiny, train, whole_tables

PARITY, DIM = 2e-6, 16
IDS = np.random.default_rng(3).permutation(71)[:40]  # in no order, and not all
VECTORS = np.random.default_rng(4).normal(size=(40, DIM)).astype(np.float32)
SPARSE: dict[str, SparseOptim] = {"sgd": SGD(lr=1.0), "adam": Adam(lr=0.02, eps=1e-5)}


def write(path: str, ids: Any = IDS, vectors: Any = VECTORS, *, sort: bool = False, group: int = 7) -> str:
    order = np.argsort(ids) if sort else np.arange(len(ids))
    table = pa.table({"id": np.asarray(ids)[order], "vector": [vectors[n] for n in order]})
    pq.write_table(table, path, row_group_size=group)
    return path


def run_of(rows: str, file: str, parallel: Parallel, sparse: SparseOptim) -> Run:
    config = DLRM(dim=DIM, bottom=(8,), top=(16,), tables=(TableOptions(table="item", vectors=file),))
    return tiny(rows, parallel, sparse, config=config)


def trained(run: Run, **arguments: Any) -> Any:
    kept: list[Replica] = []
    losses = train(run, before_step=lambda step, replica: kept.__setitem__(slice(None), [replica]), **arguments)
    return losses, whole_tables(kept[0])


def everything(rows: str, log: str, folder: str) -> dict[str, Any]:
    file, size, found = f"{folder}/vectors.parquet", dist.get_world_size(), dict[str, Any]()
    for how in ("table_wise", "row_wise", "column_wise"):
        for name, sparse in SPARSE.items():
            run = run_of(rows, file, Parallel(dense="ddp", embeddings=how), sparse)
            save_to = f"{folder}/kept" if (how, name, size) == ("row_wise", "sgd", 2) else ""
            found[f"{how} {name}"] = trained(run, save_to=save_to)
    gone = run_of(rows, f"{folder}/gone.parquet", Parallel(dense="ddp"), SPARSE["sgd"])
    found["resumed"] = train(gone, load_from=f"{folder}/kept")
    # Only one rank meets what cannot be used, and all are told.
    bad = run_of(rows, f"{folder}/bad.parquet", Parallel(dense="ddp", embeddings="row_wise"), SPARSE["sgd"])
    with pytest.raises(DataError) as caught:
        train(bad)
    found["bad"] = str(caught.value)
    model = replace(retrieval.MODELS["sasrec"], item_vectors=f"{folder}/items.parquet")  # type: ignore[type-var]
    items = retrieval.run_on(retrieval.histories(log), model, Parallel(embeddings="row_wise"), SPARSE["sgd"])
    found["items"] = trained(items)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("vectors"))
    write(f"{path}/vectors.parquet")
    write(f"{path}/items.parquet", [3, 1], VECTORS[:2])
    broken = VECTORS.copy()
    broken[int(IDS.argmax()), 5] = np.nan  # of the last rank's rows
    write(f"{path}/bad.parquet", vectors=broken, sort=True)
    retrieval.write_log(f"{path}/log.parquet")
    return path


@pytest.fixture(scope="module")
def found(rows: str, folder: str) -> dict[int, list[dict[str, Any]]]:
    """World size -> what each rank found; the world of two saves what all resume."""
    return {size: in_world(size, everything, rows, f"{folder}/log.parquet", folder) for size in (2, 1, 4)}


def by_hand(rows: str, sparse: SparseOptim) -> Any:
    run = run_of(rows, "", Parallel(dense="ddp"), sparse)
    config: Any = run.model
    model = config.build(run.data.facts, seed=run.seed)
    tables = dict(model.tables.named_parameters())
    for table in run.blueprint.tables:
        first = initial_rows(table, run.seed, 0, table.rows)
        if table.name == "item":
            for number, vector in zip(IDS, VECTORS, strict=True):
                first[int(number)] = torch.from_numpy(vector)
        tables[f"{table.path}.weight"].data.copy_(first)
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    losses = descend(run, tables, dense, lambda batch: cross_entropy(run, model(batch), batch))
    return losses, {name.split(".")[-2]: table.detach() for name, table in tables.items()}


@pytest.mark.parametrize("sparse", SPARSE)
def test_named_rows_begin_so_at_every_layout(rows: str, sparse: str, found: Any) -> None:
    control = by_hand(rows, SPARSE[sparse])
    for size, ranks in found.items():
        for how in ("table_wise", "row_wise", "column_wise"):
            losses, weights = apart(ranks[0][f"{how} {sparse}"], control)
            assert losses < PARITY and weights < 1e-5, (size, how, losses, weights)


def test_a_resume_reads_no_vectors(found: Any) -> None:
    control = found[2][0]["row_wise sgd"][0][SAVED:]
    assert all(far(ranks[0]["resumed"], control) < PARITY for ranks in found.values())


def test_what_one_rank_cannot_use_is_said_on_all(found: Any) -> None:
    said = {rank["bad"] for ranks in found.values() for rank in ranks}
    (one,) = said
    assert f"the vector of id {IDS.max()} has a number that is missing or not finite" in one


def test_items_of_retrieval_begin_from_vectors(folder: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = retrieval.MODELS["sasrec"]
    run = retrieval.run_on(retrieval.histories(f"{folder}/log.parquet"), model, Parallel(), SPARSE["sgd"])
    plain = retrieval.Plain(run)
    with torch.no_grad():
        plain.tables["item"][torch.tensor([3, 1])] = torch.from_numpy(VECTORS[:2])
    monkeypatch.setattr(retrieval, "plain_of", lambda run: plain)
    control = retrieval.plain_with_tables(run)
    for ranks in found.values():
        assert apart(ranks[0]["items"], control)[0] < 1e-5


def test_no_more_than_the_row_groups_of_a_shard_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, groups = write(str(tmp_path / "v.parquet"), sort=True), list[int]()
    vectors = FirstVectors(Table(name="item", rows=71, dim=DIM, features=("item",), vectors=file))
    batches = vectors.stored.batches
    monkeypatch.setattr(
        vectors.stored, "batches", lambda group, *rest: groups.append(group.index) or batches(group, *rest)
    )
    shard = torch.zeros(20, 8)
    vectors.read_into(Chunk(name="t", shape=(71, DIM), offsets=(30, 4), data=shard))
    wanted = torch.zeros(71, DIM)
    wanted[torch.from_numpy(IDS)] = torch.from_numpy(VECTORS)
    assert torch.equal(shard, wanted[30:50, 4:12])
    ordered = np.sort(IDS)
    assert groups == sorted({n // 7 for n, of in enumerate(ordered) if 30 <= of < 50})


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "width": ([1, 2], VECTORS[:2, :8], "has 8 numbers, but the table has dim 16. Set the table's dim to 8"),
    "outside": ([1, 71], VECTORS[:2], "id 71, but the table has rows=71 (valid 0..70)"),
    "below": ([-1, 2], VECTORS[:2], "id -1, but"),
    "twice at once": ([4, 4], VECTORS[:2], "id 4 is there twice"),
    "twice": ([4, *range(10, 20), 4], VECTORS[:12], "id 4 is there twice"),
    "infinite": ([4], [[np.inf] * DIM], "the vector of id 4 has a number that is missing or not finite"),
    "null within": ([4], [[None, *[1.0] * 15]], "the vector of id 4 has a number that is missing or not finite"),
    "null": ([4, 5], [None, VECTORS[0]], "vector is null in 1 rows"),
    "words": ([4], [["a"] * DIM], "column 'vector' is list<"),
    "ids": ([0.5], VECTORS[:1], "column 'id' is double"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_say(case: str, tmp_path: Path) -> None:
    ids, vectors, said = REFUSED[case]
    file = write(str(tmp_path / "v.parquet"), ids, list(vectors))
    table = Table(name="item", rows=71, dim=DIM, features=("item",), vectors=file)
    with pytest.raises(DataError) as caught:
        FirstVectors(table).read_into(whole("t", torch.zeros(71, DIM)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_that_16_bits_cannot_hold_is_not_made_infinite(tmp_path: Path) -> None:
    file = write(str(tmp_path / "v.parquet"), [3, 4], np.array([[1.5] * DIM, [7e4] * DIM], dtype=np.float32))
    table = Table(name="item", rows=71, dim=DIM, features=("item",), vectors=file, dtype="float16")
    shard = torch.zeros(4, DIM, dtype=torch.float16)
    FirstVectors(table).read_into(Chunk(name="t", shape=(71, DIM), offsets=(0, 0), data=shard))
    assert shard[3].eq(1.5).all()
    with pytest.raises(DataError, match=r"the vector of id 4 has a number that float16 cannot hold. Give the table dt"):
        FirstVectors(table).read_into(whole("t", torch.zeros(71, DIM, dtype=torch.float16)))
    FirstVectors(replace(table, dtype="float32")).read_into(whole("t", torch.zeros(71, DIM)))


def test_what_its_footer_tells_is_said_before_anything_starts(tmp_path: Path) -> None:
    table = Table(name="item", rows=71, dim=DIM, features=("item",), vectors=str(tmp_path / "gone.parquet"))
    with pytest.raises(DataError, match=r"gone.parquet: no such file or folder. Check vectors of table 'item'"):
        check_vectors((table,))
    file = write(str(tmp_path / "v.parquet"), [5, 80], VECTORS[:2])
    with pytest.raises(DataError, match="id 80, but the table has rows=71"):
        check_vectors((replace(table, vectors=file),))


def test_a_row_group_is_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dim = 240_000, 64
    ids, values = pa.array(np.arange(rows)), pa.array(np.random.default_rng(0).normal(size=rows * dim).astype("f4"))
    file = str(tmp_path / "v.parquet")
    pq.write_table(pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(values, dim)}), file)
    vectors, held = FirstVectors(Table(name="t", rows=rows, dim=dim, features=("f",), vectors=file)), list[int]()
    plain, before = vectors._plain, pa.total_allocated_bytes()
    monkeypatch.setattr(vectors, "_plain", lambda b: held.append(pa.total_allocated_bytes() - before) or plain(b))
    shard = torch.zeros(rows, dim)
    vectors.read_into(whole("t", shard))
    assert np.array_equal(shard.flatten().numpy(), values.to_numpy())
    assert len(vectors.stored.row_groups) == 1 and len(held) > 10 and max(held) < shard.nbytes / 3


def test_a_model_without_items_refuses_their_vectors(folder: str) -> None:
    model = replace(retrieval.MODELS["text"], ids=False, item_vectors=f"{folder}/items.parquet")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="model.item_vectors: TextTower has no table of items"):
        retrieval.run_on(retrieval.pairs_with_text(f"{folder}/log.parquet"), model, Parallel(), SPARSE["sgd"])

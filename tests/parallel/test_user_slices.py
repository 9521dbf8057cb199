"""Slices of a retrieval model's users, over several ranks as over one: the metrics of those users' own rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.holdout import RandomPerUser
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval import Histories, Pairs
from rtrain.data.side import SideFeatures
from rtrain.evaluation.baseline import of_baselines
from rtrain.evaluation.columns import Columns
from rtrain.evaluation.scoring import examine, scan
from rtrain.mesh import lay_out
from rtrain.metrics import MRR, NDCG, RecallAt
from rtrain.metrics.beyond import Coverage
from rtrain.models.sasrec import SASRec
from rtrain.models.two_tower import TwoTower
from rtrain.objectives.in_batch_softmax import InBatchSoftmax
from rtrain.objectives.sampled_softmax import SampledSoftmax
from rtrain.run import Cluster, Evaluation, Handoff, Run
from rtrain.schema import Id
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import join
from tests.parallel.worlds import in_world

USERS, ITEMS = 90, 80
METRICS = (NDCG(k=5), RecallAt(k=5), MRR(k=5), Coverage(k=5))


def job(folder: str, kind: str, workers: int) -> Run:
    features = SideFeatures(
        source=f"{folder}/users.parquet", key="user_id", features=(Id(name="sex", vocabulary=("F", "M")),)
    )
    given: dict[str, Any] = {"source": f"{folder}/log.parquet", "users": USERS, "items": ITEMS}
    given |= {"split": RandomPerUser(valid=0.2, test=0.2)}
    pairs = Pairs(**given, negatives=Negatives(count=0), user_features=features)
    histories = Histories(**given, length=8, negatives=Negatives(count=3))
    run = Run(
        name="slices",
        model=TwoTower(dim=8, hidden=(8,), objective=InBatchSoftmax(cosine=True, temperature=0.5), scale=0.3)
        if kind == "pairs"
        else SASRec(dim=8, layers=1, heads=1, dropout=0.0, objective=SampledSoftmax(cosine=True), scale=0.3),
        data=pairs if kind == "pairs" else histories,
        evaluation=Evaluation(
            monitor="ndcg@5", batch=32, slices=("sex", "age", "history") if kind == "pairs" else ("history",)
        ),
        metrics=METRICS,
        handoff=Handoff(export=False, serve_check=False),
        cluster=Cluster(workers=workers, memory_gb_per_worker=1.0),
    )
    return replace(run, parallel=replace(run.parallel, dense="ddp", embeddings="row_wise"))


def examined(folder: str, kind: str) -> dict[str, Any]:
    world = join(gpu=False, timeout_s=60)
    run = job(folder, kind, world.size)
    data, mesh = open_data(run), lay_out(run.parallel, world.size)
    replica = Replica(run, mesh, world, stored=None, training=False)
    batches = list(scan(run, data, "test", mesh, world.rank))
    columns = Columns(data, "test")
    found = examine(replica, batches, METRICS, columns, grouped=True, slices=run.evaluation.slices)
    baseline = of_baselines(run, data, {})[0]["test"]
    scored = columns.told(replica.score(batches)[0][""])
    by_hand: dict[str, float] = {}
    if world.size == 1:
        users = data.users[data._of[scored.rows]]  # type: ignore[attr-defined]
        trained = np.bincount(data.feedback.user[data.codes == 0], minlength=USERS)[users]  # type: ignore[attr-defined]
        masks = {"[sex=F]": users % 2 == 0, "[sex=M]": users % 2 == 1} if kind == "pairs" else {}
        for name in found.slices:
            if "history" in name and name.startswith("ndcg"):
                low, _, high = name.partition("[")[2].strip("]").replace("<=", "<").partition("history")
                at_least = float((low or "-1<")[:-1]) if not high.startswith(">") else float(high[1:])
                at_most = float(high[1:]) if high.startswith("<") else np.inf
                masks["[" + name.partition("[")[2]] = (trained > at_least) & (trained <= at_most)
        for name, mask in masks.items():
            of = {n: x[mask] for n, x in vars(scored).items() if isinstance(x, np.ndarray)}
            part = replace(scored, **of)
            by_hand |= {f"{metric.name}{name}": metric.value(metric.partial(part)) for metric in METRICS}
    return {"values": found.values, "slices": found.slices, "baseline": baseline, "by hand": by_hand}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path, draw = Path(tmp_path_factory.mktemp("log")), np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), draw.integers(5, 66, USERS))
    item = np.concatenate([draw.permutation(ITEMS)[:n] for n in np.bincount(user)])
    log = {"user_id": user, "item_id": item, "timestamp": draw.permutation(len(user))}
    pq.write_table(pa.table(log), path / "log.parquet")
    everybody = np.arange(USERS)
    known = {"user_id": everybody, "sex": ["FM"[n % 2] for n in everybody], "age": draw.normal(40, 9, USERS)}
    pq.write_table(pa.table(known), path / "users.parquet")
    return str(path)


@pytest.mark.parametrize("kind", ["pairs", "histories"])
def test_slices_of_users_are_those_of_their_own_rows_at_any_number_of_ranks(folder: str, kind: str) -> None:
    one, two = (in_world(size, examined, folder, kind) for size in (1, 2))
    assert repr(two[0]["slices"]) == repr(two[1]["slices"]), "the same on every rank"
    found, by_hand = one[0]["slices"], one[0]["by hand"]
    assert two[0]["slices"] == pytest.approx(found, abs=1e-9)
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert len(by_hand) == len(METRICS) * (7 if kind == "pairs" else 5)
    assert one[0]["baseline"].keys() == {*found, *(metric.name for metric in METRICS)}
    if kind == "pairs":
        assert {"ndcg@5[sex=F]", "ndcg@5[sex=M]"} <= found.keys()
        assert len([name for name in found if "[" in name and "age" in name.partition("[")[2]]) == 5 * len(METRICS)

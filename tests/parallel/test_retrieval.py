"""Retrieval models at each layout beside plain torch: losses, what is found of the catalogue, and a resume elsewhere.

The control knows neither TorchRec nor rtrain's towers' wrappings: autograd over whole tables, optimizers written out.
The tolerance is that of `test_models`: 20 steps carry float32's last bit along; what is wrong shows as 1e-3.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rtrain import BPR, FullSoftmax, InBatchSoftmax, SampledBinary, SampledSoftmax, WeightedSum
from rtrain.batch import Jagged
from rtrain.checkpoint.format import Stored
from rtrain.data.hashed import hashes
from rtrain.data.holdout import LeaveOneOut, RandomPerUser
from rtrain.data.negatives import Negatives
from rtrain.data.protocol import Data
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.side import SideFeatures
from rtrain.data.words import Words
from rtrain.duration import Duration
from rtrain.evaluation.scoring import measure, scan
from rtrain.mesh import Parallel, lay_out
from rtrain.metrics import MRR, NDCG, RecallAt
from rtrain.models.hstu import HSTU
from rtrain.models.light_gcn import LightGCN
from rtrain.models.mf import MF
from rtrain.models.plan import drawn
from rtrain.models.protocol import Model
from rtrain.models.sasrec import SASRec
from rtrain.models.text_tower import TextTower
from rtrain.models.two_tower import TwoTower
from rtrain.nn.tables import initial_rows, mask, sequence
from rtrain.objectives.candidates import candidates
from rtrain.objectives.ranks import Alone
from rtrain.optim import SGD, Adagrad, AdamW, RowWiseAdagrad, SparseOptim
from rtrain.parallel.stage import Stage
from rtrain.run import Cluster, Evaluation, Handoff, Run
from rtrain.schema import Id, IdList
from rtrain.text import Text
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import join
from tests.parallel.plain import Control, descend, far
from tests.parallel.worlds import SAVED, in_world, train

# Of a loss of about 1; seen here: 3.6e-7 at most. At Adam's own eps, 1e-8, a gradient that is zero but for rounding
# is a step as large as any other: one such weight made 3.5e-5 of 1e-7 from one step to the next.
PARITY = 2e-6
USERS, ITEMS = 50, 71  # odd, so that row-wise shards differ in size
MODELS = {
    "mf": MF(dim=16, objective=BPR(), scale=0.1),
    "two towers": TwoTower(dim=16, hidden=(8,), objective=InBatchSoftmax(cosine=True, temperature=0.5), scale=0.1),
    "features": TwoTower(dim=16, hidden=(32,), objective=SampledSoftmax(), scale=0.3),
    # Not .3: there one rounding of four ranks put a ReLU on the other side of 0, of which Adagrad made 6e-3.
    "text": TextTower(dim=16, hidden=(32,), objective=SampledSoftmax(cosine=True, temperature=0.2), scale=0.35),
    "text alone": TextTower(dim=16, hidden=(32,), layers=2, ids=False, scale=0.3),
    "light gcn": LightGCN(dim=16, layers=2, objective=BPR(), l2=0.01, scale=0.1),
    "sasrec": SASRec(dim=16, layers=2, heads=2, dropout=0.0, objective=SampledBinary(), scale=0.1),
    # It norms what attention gives: first weights of .1 are so close to 0 that rounding grows to 1.3e-5 in 20 steps.
    "hstu": HSTU(dim=16, layers=2, heads=2, dropout=0.0, buckets=8, scale=0.3),
    "sums": MF(
        dim=16, objective=WeightedSum(of=(SampledSoftmax(correction=0.5), InBatchSoftmax(correction=False))), scale=0.1
    ),
    "sasrec full": SASRec(dim=16, layers=1, heads=2, dropout=0.0, objective=FullSoftmax(), scale=0.1),
    "sasrec softmax": SASRec(dim=16, layers=1, heads=1, dropout=0.0, objective=SampledSoftmax(cosine=True), scale=0.1),
}
SPARSE: dict[str, SparseOptim] = {
    "sgd": SGD(lr=0.1),
    # eps: as Adam's. Of gradients of 1e-4 to 1e-3 a first one of 4e-7, a sum of what cancels out, was a whole step too.
    "adagrad": Adagrad(lr=0.05, eps=1e-4),
    "rowwise": RowWiseAdagrad(lr=0.05),
    "clipped": SGD(lr=0.5, clip_with_dense=True),
}
LAYOUTS: dict[str, tuple[Parallel, str]] = {
    "ddp row_wise": (Parallel(dense="ddp", embeddings="row_wise"), "rowwise"),
    "zero1 table_wise": (Parallel(zero_stage=1, embeddings="table_wise"), "adagrad"),
    "zero3 row_wise": (Parallel(zero_stage=3, embeddings="row_wise"), "sgd"),
    "zero2 row_wise x2": (Parallel(zero_stage=2, embeddings="row_wise", microbatches=2), "rowwise"),
    "ddp column_wise": (Parallel(dense="ddp", embeddings="column_wise"), "adagrad"),
}
SAVED_BY, RESUMED_AS = "zero1 table_wise", "ddp column_wise"
KIND, WORDS = Id(name="kind", rows=5), IdList(name="words", vocabulary=("a", "b", "c"))
TITLE = Words(name="title", rows=4099, longest=5)
Found = dict[str, dict[str, Any]]


def described(number: int) -> dict[str, Any]:
    """What is known of a user or an item; some have no word, some have one that no vocabulary has.

    One has no title, and some a longer one than is read.
    """
    title = f"{'The ' * (number % 2)}Fox {number}{' of Öl' * (number % 3)}" if number else None
    return {"id": number, "kind": number % 5, "words": ["a", "b", "c", "?"][: number % 5], "title": title}


def looked_up(feature: str, number: int) -> list[int]:
    """The rows of a feature's table that an id has."""
    known = described(number)
    if feature.endswith("title"):
        return [hashed(word) for word in (known["title"] or "").lower().split()[: TITLE.longest]]
    return [known["kind"]] if feature.endswith("kind") else [[1, 2, 3, 0]["abc?".index(w)] for w in known["words"]]


@cache
def hashed(word: str) -> int:
    """A word's row."""
    return int(hashes(pa.table({"word": [word]}))[0] % TITLE.rows)


def layouts(model: str) -> dict[str, tuple[Parallel, str]]:
    """Nothing goes microbatch by microbatch that is compared within the whole batch, or spread for all of it."""
    parted = not MODELS[model].objective.whole_batch and model != "light gcn"  # type: ignore[attr-defined]
    return {n: x for n, x in LAYOUTS.items() if x[0].microbatches == 1 or parted}


def common(log: str) -> dict[str, Any]:
    return {"source": log, "users": USERS, "items": ITEMS}


def histories(log: str, negatives: Negatives | None = None) -> Histories:
    return Histories(**common(log), split=LeaveOneOut(), negatives=negatives or Negatives(count=3), length=7)


def pairs(
    log: str, *, kind: type[Pairs] = Pairs, drawn: int = 2, negatives: Negatives | None = None, **features: SideFeatures
) -> Pairs:
    split = RandomPerUser(valid=0.2, test=0.2)
    return kind(**common(log), split=split, negatives=negatives or Negatives(count=drawn), **features)


def pairs_with_features(log: str, *of_items: Id | Words | Text, drawn: int = 2) -> Pairs:
    user = SideFeatures(source=f"{log}.user.parquet", key="id", features=(KIND,))
    item = SideFeatures(source=f"{log}.item.parquet", key="id", features=of_items or (KIND, WORDS))
    return pairs(log, drawn=drawn, user_features=user, item_features=item)


def pairs_with_text(log: str) -> Pairs:
    return pairs_with_features(log, KIND, TITLE)


def pairs_with_text_alone(log: str) -> Pairs:
    """As `Text`, which is the same words."""
    return pairs_with_features(log, Text(name="title", rows=TITLE.rows, max_length=TITLE.longest), drawn=0)


DATA: dict[str, Callable[[str], Data]] = {
    "mf": pairs,
    "two towers": partial(pairs, drawn=0),
    "features": pairs_with_features,
    "text": pairs_with_text,
    "text alone": pairs_with_text_alone,
    "light gcn": partial(pairs, kind=Graph),
    "sums": partial(pairs, negatives=Negatives(count=2, by="popularity", power=0.5, known=True)),
    "sasrec full": partial(histories, negatives=Negatives(by="all")),
}


def run_of(model: str, parallel: Parallel, sparse: str, log: str) -> Run:
    return run_on(DATA.get(model, histories)(log), MODELS[model], parallel, SPARSE[sparse])


def run_on(data: Data, config: Model, parallel: Parallel, sparse: SparseOptim) -> Run:
    return Run(
        name="tiny",
        model=config,
        data=data,
        optim=AdamW(lr=1e-2, eps=1e-5, clip_norm=0.05 if sparse.clip_with_dense else 0.5),  # eps: see PARITY
        sparse_optim=sparse,
        parallel=parallel,
        global_batch=17,
        duration=Duration(epochs=50),
        evaluation=Evaluation(monitor="ndcg@10", batch=13),
        cluster=Cluster(memory_gb_per_worker=1.0),
        handoff=Handoff(export=False),
        metrics=(NDCG(k=10), RecallAt(k=3), MRR(k=10)),
    )


OF_DRAWN = ("mf", "hstu")
"""Whose metrics are also had of drawn candidates."""


def of_drawn(run: Run) -> Run:
    metrics = tuple(replace(metric, sampled=12) for metric in run.metrics)  # type: ignore[type-var]
    return replace(run, metrics=metrics, evaluation=replace(run.evaluation, monitor=metrics[0].name))


def measured(run: Run, stored: Stored | None = None) -> dict[str, float]:
    world = join(gpu=False, timeout_s=600.0)
    mesh = lay_out(run.parallel, world.size)
    replica = Replica(run, mesh, world, stored=stored, training=False)
    return measure(replica, scan(run, open_data(run), "test", mesh, world.rank), run.metrics)


def chosen(model: str, world: int, seed: str) -> list[str]:
    """The layouts that a world trains: of two ranks all, of one and of four a drawn one; without a seed all."""
    names = list(layouts(model))
    return names if world == 2 or not seed else random.Random(f"{seed} {model} {world}").sample(names, 1)


def everything(log: str, folder: str, world: int, seed: str) -> Found:
    found: Found = {}
    for model in MODELS:
        for name in chosen(model, world, seed):
            parallel, sparse = LAYOUTS[name]
            run, folder_of = run_of(model, parallel, sparse, log), f"{folder}/{model} {name}"
            at_first = measured(run)
            losses = train(run, save_to=folder_of if world == 2 else "")
            found[f"{model}: {name}"] = {"losses": losses, "at first": at_first}
            if model in OF_DRAWN:
                found[f"{model}: {name}"]["drawn"] = measured(of_drawn(run))
        run = run_of(model, *LAYOUTS[RESUMED_AS], log)
        found[f"{model}: resumed"] = {"losses": train(run, load_from=f"{folder}/{model} {SAVED_BY}")}
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(str(tmp_path_factory.mktemp("log") / "log.parquet"))


def write_log(path: str) -> str:
    """Users of 3 to 14 items, that like items close to each other; a second between two of them."""
    draw, rows = np.random.default_rng(0), list[tuple[int, int]]()
    for user in range(USERS):
        near = (7 * user + draw.permutation(25)[: 3 + user % 12]) % ITEMS
        rows += [(user, int(item)) for item in near]
    users, items = map(list, zip(*rows, strict=True))
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": range(len(rows))}), path)
    for of, count in (("user", USERS), ("item", ITEMS)):
        pq.write_table(pa.Table.from_pylist([described(n) for n in reversed(range(count))]), f"{path}.{of}.parquet")
    return path


@pytest.fixture(scope="module")
def found(log: str, tmp_path_factory: pytest.TempPathFactory, seed: str) -> dict[int, Found]:
    """World size -> what rank 0 found. The world of two saves what all resume, so it comes first."""
    folder = str(tmp_path_factory.mktemp("kept"))
    return {size: in_world(size, everything, log, folder, size, seed)[0] for size in (2, 1, 4)}


class Plain:
    """Whole tables, the tower of `seed`, and what the batch asks for, looked up by plain indexing."""

    def __init__(self, run: Run):
        blueprint = run.blueprint
        self.tables = {t.name: nn.Parameter(initial_rows(t, run.seed, 0, t.rows)) for t in blueprint.tables}
        pieces, first = blueprint.pieces, blueprint.pieces[0].name
        self.tower = Stage([drawn(p, run.seed, first=first) for p in pieces], [p.takes for p in pieces])

    def __call__(self, batch: Any) -> Any:
        lengths = batch.ids.lengths.view(2, batch.rows)
        whom, item = torch.split(batch.ids.values, lengths.sum(1).tolist())
        named = batch.inputs | {sequence("item"): self._padded("item", item, lengths[1])[0]}
        if "user" in self.tables:
            return self.tower(**named, vectors=self.tables["user"][whom])
        history, real = self._padded("item", whom, lengths[0])
        return self.tower(**named, **{sequence("history"): history, mask("history"): real})

    def _padded(self, table: str, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        real = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        rows = torch.zeros(*real.shape, self.tables[table].shape[1])
        return rows.masked_scatter(real.unsqueeze(-1), self.tables[table][ids]), real


class PlainFeatures(Plain):
    """Of each id a loop over what is known of it."""

    def __call__(self, batch: Any) -> Any:
        lengths = batch.ids.lengths.view(len(batch.ids.keys), batch.rows).sum(1).tolist()
        user, item = torch.split(batch.ids.values, lengths)[:2]
        users = self.tower.pieces[0].user(self.beside("user", user))
        items = encoded(self, item).unflatten(0, (batch.rows, 1, len(item) // batch.rows))
        return users.unsqueeze(1), items

    def beside(self, of: str, ids: Tensor) -> Tensor:
        """[N, V]: the ids' own vectors, and the mean of each feature's."""
        found = [self.tables[of][ids]] if of in self.tables else []
        for name in [name for name in self.tables if name.startswith(f"{of}_")]:
            table, rows = self.tables[name], [looked_up(name, n) for n in ids.tolist()]
            each = [self.one(name, table[row]) if row else torch.zeros(table.shape[1]) for row in rows]
            found.append(torch.stack(each) if each else table[:0])
        return torch.cat(found, dim=1)

    def one(self, name: str, vectors: Tensor) -> Tensor:
        """[E] of a feature's vectors of one id, [T, E]."""
        return vectors.mean(0)


class PlainText(PlainFeatures):
    """Each title alone and without padding, its attention written out."""

    def one(self, name: str, vectors: Tensor) -> Tensor:
        if name != "item_title":
            return super().one(name, vectors)
        text = self.tower.pieces[0].features[-1]
        x = vectors + text.positions[: len(vectors)]
        for block in text.blocks:
            q, k, v = block.attention.qkv(block.attention_norm(x)).unflatten(1, (2, 3, -1)).unbind(2)
            seen = torch.softmax(torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5, dim=2)
            out, down = block.attention.out, block.mlp.down
            x = x + linear(torch.einsum("hqk,khd->qhd", seen, v).flatten(1), out.weight, out.bias)
            x = x + linear(torch.relu(block.mlp.up(block.mlp_norm(x))), down.weight, down.bias)
        return text.norm(x).mean(0)  # type: ignore[no-any-return]


class PlainGraph(Plain):
    """Whole tables, and the mean of the powers of a dense matrix, filled edge by edge, times them."""

    def __init__(self, run: Run):
        super().__init__(run)
        assert isinstance(run.model, LightGCN)
        self.model, data = run.model, run.data.open()
        edges = torch.zeros(USERS, ITEMS)
        for user, item, code in zip(data.feedback.user, data.feedback.item, data.codes, strict=True):
            edges[user, item] = float(code == 0)
        edges = edges / (edges.sum(1, keepdim=True) * edges.sum(0)).sqrt().clamp(min=1)
        whole = torch.zeros(USERS + ITEMS, USERS + ITEMS)
        whole[:USERS, USERS:], whole[USERS:, :USERS] = edges, edges.T
        powers = [torch.linalg.matrix_power(whole, k) for k in range(self.model.layers + 1)]
        self.spread = torch.stack(powers).mean(0)

    def vectors(self) -> tuple[Tensor, Tensor]:
        both = self.spread @ torch.cat([self.tables["user"], self.tables["item"]])
        return both[:USERS], both[USERS:]

    def __call__(self, batch: Any) -> Any:
        lengths = batch.ids.lengths.view(4, batch.rows).sum(1).tolist()
        user, item, _, _ = torch.split(batch.ids.values, lengths)
        item, (of_users, of_items) = item.view(batch.rows, 1, -1) if len(item) else item.view(1, 1, 0), self.vectors()
        own = self.tables["user"][user].unsqueeze(1), self.tables["item"][item].flatten(2)
        cost = self.model.l2 / 2 * sum(x.square().sum(2) for x in own)
        return of_users[user].unsqueeze(1), of_items[item], cost


def plain_of(run: Run) -> Plain:
    if isinstance(run.model, TextTower):
        return PlainText(run)
    if run.data.facts.item_features:
        return PlainFeatures(run)
    return PlainGraph(run) if isinstance(run.model, LightGCN) else Plain(run)


def plain(run: Run, *, learns: bool = True) -> list[float]:
    return plain_with_tables(run, learns=learns)[0]


def plain_with_tables(run: Run, *, learns: bool = True) -> Control:
    """Any retrieval model."""
    model = plain_of(run)

    def loss(batch: Any) -> Tensor:
        summed = run.model.objective.loss(model(batch), batch.target, Alone())  # type: ignore[union-attr]
        return summed / (batch.target[..., 0] >= 0).sum()  # type: ignore[no-any-return]

    losses = descend(run, model.tables, list(model.tower.parameters()), loss, learns=learns)
    return losses, {name: table.detach() for name, table in model.tables.items()}


def by_hand(run: Run, drawn: int = 0) -> dict[str, float]:
    """The catalogue, or so many of it, ranked for each user of the test split by the first weights, user by user."""
    model, data = plain_of(run), run.data.open()
    found: dict[str, list[float]] = {"ndcg@10": [], "recall@3": [], "mrr@10": []}
    items = torch.from_numpy(data.catalogue)
    with torch.no_grad():
        for batch in data.scan("test", global_batch=1, rank=0, world_size=1):
            if batch.items is not None:
                continue
            queries = model(replace(batch, ids=with_one(batch.ids)))[0]
            vectors = run.model.objective.compared(encoded(model, items))  # type: ignore[union-attr]
            scores = vectors @ run.model.objective.compared(queries[0, int(batch.last)])  # type: ignore[union-attr]
            seen, wanted = set(batch.seen.values.tolist()), set(batch.positives.values.tolist())
            pairs = zip(scores.tolist(), items.tolist(), strict=True)
            if drawn:
                of = candidates(data.catalogue, batch.row.numpy(), batch.seen, batch.positives, drawn)
                seen = set(items.tolist()) - set(of.values.tolist())
            order = [item for _, item in sorted((-s, i) for s, i in pairs if i not in seen)]
            hits = np.array([item in wanted for item in order], float)
            gains = 1 / np.log2(np.arange(10) + 2)
            found["ndcg@10"].append(float((hits[:10] * gains).sum() / gains[: len(wanted)].sum()))
            found["recall@3"].append(float(hits[:3].sum() / len(wanted)))
            found["mrr@10"].append(float((hits[:10] / (np.arange(10) + 1)).max()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def encoded(model: "Plain", items: Tensor) -> Tensor:
    """The items' vectors, after their tower or their graph where there is one."""
    if isinstance(model, PlainGraph):
        return model.vectors()[1][items]
    vectors = model.beside("item", items) if isinstance(model, PlainFeatures) else model.tables["item"][items]
    tower = getattr(model.tower.pieces[0], "item", None)
    return tower(vectors) if tower else vectors  # type: ignore[no-any-return]


def with_one(ids: Any) -> Any:
    """A candidate, so that there is something to pad; of a graph and of features nothing is padded."""
    if len(ids.keys) > 2:
        return ids
    lengths = ids.lengths.clone()
    lengths[-1] = 1
    return Jagged(ids.keys, torch.cat([ids.values, torch.zeros(1, dtype=torch.int64)]), lengths)


@pytest.fixture(scope="module")
def control(log: str) -> dict[str, list[float]]:
    return {f"{m} {s}": plain(run_of(m, Parallel(dense="ddp"), s, log)) for m in MODELS for s in SPARSE}


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_trains_as_plain_torch(
    model: str, found: dict[int, Found], control: dict[str, list[float]], seed: str
) -> None:
    worst = {
        f"{size} {layout}": far(ranks[f"{model}: {layout}"]["losses"], control[f"{model} {LAYOUTS[layout][1]}"])
        for size, ranks in found.items()
        for layout in chosen(model, size, seed)
    }
    assert len(worst) == len(layouts(model)) * (1 if seed else 3) + (2 if seed else 0) >= 6
    assert max(worst.values()) < PARITY, worst


@pytest.mark.parametrize("model", MODELS)
def test_the_control_learns(model: str, control: dict[str, list[float]], log: str) -> None:
    """Beside the first weights on the same batches: a loss within the batch goes up and down with what is in it."""
    for sparse in SPARSE:
        untrained = plain(run_of(model, Parallel(dense="ddp"), sparse, log), learns=False)
        assert np.mean(control[f"{model} {sparse}"][-5:]) < np.mean(untrained[-5:])


@pytest.mark.parametrize("model", MODELS)
def test_the_catalogue_is_ranked_alike_at_every_layout(
    model: str, found: dict[int, Found], log: str, seed: str
) -> None:
    run = run_of(model, Parallel(dense="ddp"), "sgd", log)
    expected, drawn = by_hand(run), by_hand(run, 12)
    assert 0 < expected["ndcg@10"] < drawn["ndcg@10"]
    drawn = {f"{name}_of_12_sampled": value for name, value in drawn.items()}
    for size, ranks in found.items():
        for layout in chosen(model, size, seed):
            of_layout = ranks[f"{model}: {layout}"]
            assert of_layout["at first"] == pytest.approx(expected, abs=1e-9)
            if model in OF_DRAWN:
                assert of_layout["drawn"] == pytest.approx(drawn, abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_a_resume_at_another_layout_goes_on_exactly(
    model: str, found: dict[int, Found], control: dict[str, list[float]]
) -> None:
    for ranks in found.values():
        assert far(ranks[f"{model}: resumed"]["losses"], control[f"{model} adagrad"][SAVED:]) < PARITY

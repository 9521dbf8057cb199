"""Metrics of rows that lie on several ranks: the same bit for bit at 1, 2 and 4, and no rank has the rows of all.

Shape legend: N rows of all W ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch.distributed as dist
from numpy.typing import NDArray

from rtrain.data.coded import Coded, coded
from rtrain.evaluation import dealing, exchange, measuring
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.evaluation.exchange import exchanged
from rtrain.evaluation.measuring import measured
from rtrain.metrics import AUC, GAUC, NDCG, FAt, PrecisionAt, RecallAt
from rtrain.metrics.beyond import Coverage
from rtrain.metrics.parted import as_parted
from rtrain.metrics.state import Metric, Partial, Retrieved, Scored, Valued, every_row
from tests.parallel.worlds import in_world
from tests.unit.metrics.test_metrics import ADVERSARIAL, METRICS, random_rows, reference

BY = ("shop", "day")
OF_PAIRS: tuple[Metric, ...] = (GAUC(by=BY), NDCG(k=3, by=BY))
LISTS: tuple[Metric, ...] = (NDCG(k=3), PrecisionAt(k=2), RecallAt(k=3), FAt(k=2), Coverage(k=2))
SEEDS = range(24)


@dataclass(frozen=True, kw_only=True)
class MeanLogit(Metric):
    """Of one's own: sums."""

    name: ClassVar[str] = "mean_logit"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        return Partial(sums={"logits": np.array(scored.logits.sum()), "rows": np.array(float(len(scored.logits)))})

    def value(self, partial: Partial) -> float:
        return float(partial.sums["logits"] / partial.sums["rows"]) if partial.sums["rows"] else float("nan")


@dataclass(frozen=True, kw_only=True)
class Median(Metric):
    """Of one's own: every row."""

    name: ClassVar[str] = "median"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        return every_row(scored)

    def value(self, partial: Partial) -> float:
        return float(np.median(partial.rows["logits"])) if len(partial.rows["logits"]) else float("nan")


@dataclass(frozen=True, kw_only=True)
class Turned(AUC):
    """Of one's own: AUC of what is not 1, by other rows; nothing but `partial` says so."""

    name: ClassVar[str] = "turned"

    def partial(self, scored: Scored) -> Partial:
        return super().partial(replace(scored, labels=1 - scored.labels))


@dataclass(frozen=True, kw_only=True)
class Shifted(GAUC):
    """Of one's own: another value."""

    short: ClassVar[str] = "shifted"

    def value(self, partial: Partial) -> float:
        return super().value(partial) - 0.5


OWN: tuple[Metric, ...] = (MeanLogit(), Median(), Turned(), Shifted())


def with_numbers(rows: Scored) -> Scored:
    return replace(rows, rows=np.arange(len(rows.labels)))


def share_of(rows: Any, owner: NDArray[np.int64]) -> Any:
    mine = owner == dist.get_rank()
    return replace(rows, **{k: v[mine] for k, v in vars(rows).items() if isinstance(v, np.ndarray) and v.shape})


def dealt(seed: int, count: int) -> NDArray[np.int64]:
    """Which rank has each row: uneven, and from seed to seed the last rank or all but the first have none."""
    world, random = dist.get_world_size(), np.random.default_rng(seed)
    if seed % 6 == 0:
        return np.zeros(count, np.int64)
    ranks = world - 1 if seed % 3 == 0 and world > 1 else world
    return random.choice(ranks, count, p=random.dirichlet(np.ones(ranks)))


def table_of(count: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    values = {name: random.integers(0, n, count) for name, n in (("shop", 4), ("day", 3), ("labels", 3), ("many", 60))}
    return pa.table(values)


def columns_of(count: int, seed: int) -> Columns:
    table = table_of(count, seed)

    def of(split: str, names: tuple[str, ...]) -> Coded:
        return coded(table.select(names))

    data: Any = SimpleNamespace(coded=of, numbers=lambda split: range(count))
    return Columns(data, "test")


def whole(metric: Metric, rows: Any) -> float:
    return metric.value(metric.partial(rows))


def found_of_rows(cases: list[str]) -> dict[str, dict[str, float]]:
    found = {}
    for seed in SEEDS:
        rows = with_numbers(random_rows(seed))
        found[f"seed {seed}"] = measured(share_of(rows, dealt(seed, len(rows.labels))), METRICS)
        if np.isfinite(rows.logits).all():
            found[f"own {seed}"] = measured(share_of(rows, dealt(seed, len(rows.labels))), OWN)
    for case in cases:
        rows = with_numbers(ADVERSARIAL[case])
        found[case] = measured(share_of(rows, dealt(1, len(rows.labels))), METRICS)
    nothing = with_numbers(replace(ADVERSARIAL["all tied"], **dict.fromkeys(("logits", "labels"), np.empty(0)),
                                   groups=np.empty(0, np.int64)))  # fmt: skip
    found["no rows"] = measured(nothing, METRICS)
    return found


def found_of_columns() -> dict[str, dict[str, float]]:
    """By slices, and in groups of other columns; lists; numbers."""
    found = {}
    for seed in range(8):
        rows = with_numbers(random_rows(seed))
        count = len(rows.labels)
        columns = columns_of(count, seed)
        parts = slices_of(("shop", "labels", "many"), columns)
        mine = share_of(rows, dealt(seed, count))
        found[f"rows {seed}"] = measured(mine, (*METRICS, *OF_PAIRS, MeanLogit()), columns, parts)
        found[f"lists {seed}"] = measured(share_of(lists(seed), dealt(seed, 60)), LISTS)
        numbers = [metric for metric in METRICS if metric.name in ("rmse", "mse", "mae")]
        found[f"numbers {seed}"] = measured(share_of(valued(seed), dealt(seed, 50)), numbers)
    return found


def lists(seed: int) -> Retrieved:
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(12), 5)
    labels, items = (random.random(60) < 0.3).astype(np.float64), random.integers(0, 30, 60)
    return Retrieved(-np.tile(np.arange(5.0), 12), labels, users, users, items, catalogue=30)


def valued(seed: int) -> Valued:
    random = np.random.default_rng(seed)
    return Valued(random.normal(size=50), random.normal(size=50), rows=np.arange(50))


ROUNDED = ("log_loss", "normalized_entropy", "calibration", "mse", "rmse", "mae", "mean_logit")
"""Sums of floats as each rank has them: the order of additions changes the last bits."""


def assert_same(found: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> None:
    assert found.keys() == other.keys()
    for case, values in found.items():
        assert list(values) == list(other[case])
        for name, value in values.items():
            tolerance = 1e-12 if name.split("[")[0] in ROUNDED else 0.0
            assert other[case][name] == pytest.approx(value, abs=0, rel=tolerance, nan_ok=True), (case, name)


@pytest.fixture(scope="module")
def of_worlds() -> dict[int, list[dict[str, dict[str, float]]]]:
    return {size: in_world(size, found_of_rows, list(ADVERSARIAL)) for size in (1, 2, 4)}


@pytest.fixture(scope="module")
def columns_of_worlds() -> dict[int, list[dict[str, dict[str, float]]]]:
    return {size: in_world(size, found_of_columns) for size in (1, 2, 4)}


def test_every_rank_of_every_world_finds_the_same(of_worlds: Any, columns_of_worlds: Any) -> None:
    for worlds in (of_worlds, columns_of_worlds):
        for ranks in worlds.values():
            assert repr([ranks[0]] * len(ranks)) == repr(ranks)
            assert_same(worlds[1][0], ranks[0])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_values_are_the_references(of_worlds: Any, size: int) -> None:
    found = of_worlds[size][0]
    cases = {f"seed {seed}": random_rows(seed) for seed in SEEDS} | ADVERSARIAL
    for case, rows in cases.items():
        for metric in METRICS:
            expected = reference(metric, rows)
            assert found[case][metric.name] == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True), (case, metric)
            one = whole(metric, rows)
            assert found[case][metric.name] == pytest.approx(one, abs=1e-12, rel=1e-12, nan_ok=True), (case, metric)
    assert np.isnan(list(found["no rows"].values())).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_metrics_of_ones_own_that_know_partial_and_value_alone(of_worlds: Any, size: int) -> None:
    assert [as_parted(metric) for metric in OWN] == [None] * 4
    assert all(as_parted(metric) is metric for metric in (AUC(), GAUC(), NDCG()))
    cases = [name for name in of_worlds[size][0] if name.startswith("own")]
    assert len(cases) > len(SEEDS) / 3
    for case in cases:
        rows = random_rows(int(case.split()[1]))
        expected = {metric.name: whole(metric, rows) for metric in OWN}
        assert of_worlds[size][0][case] == pytest.approx(expected, abs=1e-12, nan_ok=True), case


@pytest.mark.parametrize("size", [1, 2, 4])
def test_slices_and_groups_of_columns_are_those_of_the_rows_themselves(columns_of_worlds: Any, size: int) -> None:
    for seed in range(8):
        rows, found = with_numbers(random_rows(seed)), columns_of_worlds[size][0][f"rows {seed}"]
        table = table_of(len(rows.labels), seed)
        shop, day = (table[name].to_numpy() for name in ("shop", "day"))
        of_pairs = replace(rows, groups=shop * 3 + day)
        for metric in OF_PAIRS:
            assert found[metric.name] == pytest.approx(whole(metric, of_pairs), abs=1e-12, nan_ok=True)
        for column in ("shop", "labels"):
            values = table[column].to_numpy()
            for value in np.unique(values):
                for metric in (*METRICS, *OF_PAIRS):
                    kept, all_rows = values == value, of_pairs if metric in OF_PAIRS else rows
                    part = Scored(all_rows.logits[kept], all_rows.labels[kept], all_rows.groups[kept])
                    expected, name = whole(metric, part), f"{metric.name}[{column}={value}]"
                    assert found[name] == pytest.approx(expected, abs=1e-12, rel=1e-12, nan_ok=True), name
        of_lists = {metric.name: whole(metric, lists(seed)) for metric in LISTS}
        assert columns_of_worlds[size][0][f"lists {seed}"] == pytest.approx(of_lists, abs=1e-12)
        error = valued(seed).predicted - valued(seed).labels
        assert columns_of_worlds[size][0][f"numbers {seed}"]["mse"] == pytest.approx((error**2).mean(), abs=1e-12)


COUNT, USERS = 40_000, 4_000
ALL_METRICS: tuple[Metric, ...] = (*METRICS, GAUC(by=("many", "day")), NDCG(k=3, by=("many", "day")))
"""The second groups are 180, of some 220 rows each."""


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    """What this rank is sent: bytes of all collectives, and the most rows of an exchange."""
    got: dict[str, Any] = {"bytes": 0, "rows": 0}
    all_to_all, gather = dist.all_to_all_single, dist.all_gather_into_tensor
    gather_list = dist.all_gather

    def counting(function: Callable[..., Any], *, rows: bool) -> Callable[..., Any]:
        def call(output: Any, *arguments: Any, **more: Any) -> Any:
            outputs = output if isinstance(output, list) else [output]
            got["bytes"] += sum(one.numel() * one.element_size() for one in outputs)
            got["rows"] = max(got["rows"], output.numel()) if rows else got["rows"]
            return function(output, *arguments, **more)

        return call

    # all_gather_object gathers bytes by `all_gather`, which it finds in its own module.
    with (
        mock.patch.object(dist, "all_to_all_single", counting(all_to_all, rows=True)),
        mock.patch.object(dist.distributed_c10d, "all_gather", counting(gather_list, rows=False)),
        mock.patch.object(dist, "all_gather_into_tensor", counting(gather, rows=False)),
    ):
        yield got


def many_rows() -> Scored:
    random = np.random.default_rng(0)
    logits = random.normal(size=COUNT).round(3)
    labels = (random.random(COUNT) < 0.3).astype(np.float64)
    return with_numbers(Scored(logits, labels, random.integers(0, USERS, COUNT)))


def received(own: bool) -> dict[str, Any]:
    # The first rank has more rows than all others together.
    random = np.random.default_rng(1)
    owner = np.where(random.random(COUNT) < 0.5, 0, random.integers(0, dist.get_world_size(), COUNT))
    mine, columns = share_of(many_rows(), owner), columns_of(COUNT, 0)
    with counted() as got:
        measured(mine, (Median(),) if own else ALL_METRICS, columns)
    return got


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_is_sent_its_share_of_the_rows_however_many_metrics_there_are(size: int) -> None:
    """By scores 2 columns, in groups of the schema's and of other columns 3 each; 8 bytes a number.

    Hashing puts 180 groups evenly to within some 10 % (4 ranks: 45 each, and the root of that); 1.4 is far from W.
    """
    share = COUNT / size
    for got in in_world(size, received, False):
        assert 0.9 * share < got["rows"] < 1.4 * share
        assert got["bytes"] < 1.4 * share * (2 + 3 + 3) * 8 + 200_000  # sums, samples of scores, counts
    for got in in_world(size, received, True):  # one metric that gathers its rows
        assert got["bytes"] > COUNT * 3 * 8


def ranges(tied: float) -> int:
    """Rows that this rank is to have of scores a share of which is one; rank 0 has no rows at first."""
    random, world = np.random.default_rng(0), dist.get_world_size()
    logits = np.where(random.random(COUNT) < tied, 0.25, random.standard_cauchy(COUNT))
    owner = np.sort(random.integers(min(1, world - 1), world, COUNT))
    mine = np.sort(logits)[owner == dist.get_rank()]  # each rank has other scores than the others
    got = exchanged({"logits": mine}, dealing.by_score(mine))["logits"]
    ends = exchange.everyones((float(got.max(initial=-np.inf)), float(got.min(initial=np.inf))))
    assert all(low > high for (_, low), (high, _) in pairwise(ends))
    return len(got)


@pytest.mark.parametrize("tied", [0.0, 0.2, 1.0])
def test_ranges_of_scores_are_even_but_for_rows_of_one_score(tied: float) -> None:
    found = in_world(4, ranges, tied)
    assert sum(found) == COUNT
    assert max(found) <= COUNT / 4 * (1 + 2 / dealing.SAMPLES) + 1.05 * tied * COUNT


def dealt_by_row() -> dict[str, float]:
    """The fault: each row to a rank of its own, whatever its group."""
    rows = many_rows()
    owner = np.arange(COUNT) % dist.get_world_size()
    with mock.patch.object(measuring, "by_group", lambda groups: np.arange(len(groups)) % dist.get_world_size()):
        return measured(share_of(rows, owner), (GAUC(), NDCG(k=3)))


def test_groups_that_are_torn_apart_show() -> None:
    found, rows = in_world(2, dealt_by_row)[0], many_rows()
    for metric in (GAUC(), NDCG(k=3)):
        assert abs(found[metric.name] - whole(metric, rows)) > 1e-4

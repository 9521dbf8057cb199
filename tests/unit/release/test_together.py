"""The gate of two stages: what a ranking model makes of what a retrieval model finds, beside the champion's pair."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain import DLRM, MF, AdamW, Dense, Duration, Evaluation, HitRate, Id, Interactions, Pairs, Run, Schema
from rtrain.cli import console
from rtrain.cli.endpoint import _judged
from rtrain.data.holdout import Random, RandomPerUser
from rtrain.errors import ConfigError
from rtrain.release.finished import Finished
from rtrain.release.gate import Gate, pair_of, verdict_of
from rtrain.release.judged import Decision, Judged
from rtrain.release.together import Together
from rtrain.stages.config import TwoStages
from rtrain.stages.filters import Ranked
from tests.unit.release.runs import PASSES
from tests.unit.training.jobs import train

USERS, ITEMS, LIKED = 60, 40, 20
SCHEMA = Schema(
    features=(
        Id(name="user", rows=USERS), Id(name="item", rows=ITEMS), Dense(name="hour", missing=12.0, mean=12, std=6),
    ),
    group="user",
)  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """Shows nothing."""

    def keep(self, ranked: Sequence[Ranked], context: Mapping[str, Any]) -> Sequence[Ranked]:
        return []


def finder(folder: Path, name: str, seed: int = 0) -> str:
    """Of users who had twelve of the first `LIKED` items."""
    draw = np.random.default_rng(seed)
    rows = [(u, int(i)) for u in range(USERS) for i in draw.choice(LIKED, size=12, replace=False)]
    rows += [(u, int(draw.integers(LIKED, ITEMS))) for u in range(USERS)]  # that all items are known
    user, item = (np.array(x) for x in zip(*rows, strict=True))
    columns = {"user_id": user, "item_id": item, "timestamp": np.arange(len(rows))}
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    data = Pairs(source=f"{folder}/{name}.parquet", users=USERS, items=ITEMS, split=RandomPerUser(valid=0.1, test=0.1))
    run = Run(
        name=name, model=MF(dim=8), data=data, global_batch=64, duration=Duration(epochs=2), storage=f"{folder}/runs",
        evaluation=Evaluation(monitor="hit_rate@5"), metrics=(HitRate(k=5),),
    )  # fmt: skip
    train(run)
    return run.folder


@dataclass(frozen=True, kw_only=True)
class Own(DLRM):
    """A model that is not rtrain's: whoever loads it imports this module."""


def orderer(folder: Path, name: str, *, good: bool, kind: type[DLRM] = DLRM) -> str:
    """Which puts those items first, or last."""
    draw, count = np.random.default_rng(1), 3000
    user, item = draw.integers(0, USERS, count), draw.integers(0, ITEMS, count)
    label = ((item < LIKED) == good).astype(int)
    pq.write_table(
        pa.table({"user": user, "item": item, "hour": np.full(count, 12.0), "label": label}), folder / f"{name}.parquet"
    )
    data = Interactions(
        source=f"{folder}/{name}.parquet", schema=SCHEMA, split=Random(valid=0.1, test=0.1), leakage="allow"
    )
    run = Run(
        name=name, model=kind(dim=8, bottom=(8,), top=(16,)), data=data, optim=AdamW(lr=5e-2), global_batch=128,
        duration=Duration(epochs=4), storage=f"{folder}/runs",
    )  # fmt: skip
    train(run)
    return run.folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("together")
    found = {name: finder(folder, name, seed) for name, seed in (("finds", 0), ("other", 1))}
    return found | {name: orderer(folder, name, good=name == "good") for name in ("good", "bad")}


def judged(candidate: str, champion: str | None, stages: TwoStages) -> Judged:
    return Judged(Finished.read(candidate), Finished.read(champion) if champion else None, stages)


def test_who_orders_badly_is_refused(shop: dict[str, str]) -> None:
    stages = TwoStages(retriever=f"{shop['finds']}/export", candidates=ITEMS)
    first = Together().decide(judged(shop["good"], None, stages))
    assert first.passed and first.numbers["asked"] > 50 and first.numbers["empty"] == 0, first
    assert first.numbers["hit_rate"] > 0.6 and "against" not in first.said, first
    worse = Together().decide(judged(shop["bad"], shop["good"], stages))
    assert not worse.passed and worse.numbers["high"] < -0.4, worse
    assert worse.numbers["champion"] == first.numbers["hit_rate"]
    better = Together(latency_ms=1e-6).decide(judged(shop["good"], shop["bad"], stages))
    assert better.numbers["low"] > 0.4 and not better.passed, "better, but too slow"
    assert Together().decide(judged(shop["good"], shop["bad"], stages)).passed


def test_a_model_of_ones_own_is_asked_with_the_other(shop: dict[str, str], tmp_path: Path) -> None:
    stages = TwoStages(retriever=f"{shop['finds']}/export", candidates=ITEMS)
    own = orderer(tmp_path, "own", good=True, kind=Own)
    found = Together().decide(judged(own, None, stages))
    assert found.passed and found.numbers["hit_rate"] > 0.6, found


@pytest.mark.slow
def test_who_finds_is_compared_on_the_same_users(shop: dict[str, str]) -> None:
    stages = TwoStages(ranker=f"{shop['good']}/export", candidates=ITEMS)
    same = Together().decide(judged(shop["finds"], shop["finds"], stages))
    assert same.passed and same.numbers["low"] == same.numbers["high"] == 0, same
    other = Together().decide(judged(shop["other"], shop["finds"], stages))
    alone = Together().decide(judged(shop["other"], None, stages))
    assert other.numbers["hit_rate"] == alone.numbers["hit_rate"], "the champion is asked what the candidate is"
    apart = other.numbers["hit_rate"] - other.numbers["champion"]
    assert other.numbers["low"] <= apart <= other.numbers["high"]


@pytest.mark.slow
def test_what_cannot_be_shown(shop: dict[str, str]) -> None:
    stages = TwoStages(retriever=f"{shop['finds']}/export", candidates=ITEMS)
    hidden = replace(stages, filters=(Nothing(),))
    for of, said in (
        (replace(stages, item="itm"), "the ranking model has no 'itm'"),
        (replace(stages, retriever=f"{shop['finds']}/nowhere"), "there is no finished run"),
    ):
        decision = Together().decide(judged(shop["good"], None, of))
        assert not decision.passed and said in decision.said, decision
    empty = Together().decide(judged(shop["good"], None, hidden))
    assert not empty.passed and "offered nothing" in empty.said, empty


@pytest.mark.slow
def test_a_record_of_other_stages_is_none(
    shop: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was refused, or passed, beside another model or with other features is judged anew."""
    options = argparse.Namespace(
        target=shop["good"], model="home", registry=f"sqlite:///{tmp_path}/registry.db", audit=f"{tmp_path}/audit",
        json=False,
    )  # fmt: skip
    stages = TwoStages(retriever=shop["finds"], candidates=ITEMS)
    hidden = replace(stages, filters=(Nothing(),))
    for of, asked in ((hidden, True), (hidden, False), (stages, True), (stages, False), (None, True)):
        passed, said = _judged(options, of), capsys.readouterr()
        assert ("release: Servable" in said.err) is asked, said.err
        assert passed or ("judges it anew" in said.out) is not asked, said.out
        verdict = verdict_of(Finished.read(shop["good"]))
        assert verdict and len((verdict.stages or {}).get("filters", ())) == (len(of.filters) if of else 0)
    Gate(checks=(Refuses(),)).judge(shop["good"], shop["finds"])
    _judged(options, None)
    assert "release: Servable" in capsys.readouterr().err, "it was refused beside one that is no champion"


class Refuses:
    """Whatever it is."""

    def decide(self, of: Judged) -> Decision:
        return Decision("refuses", False, "", {})


def test_the_command_line_judges_both(
    shop: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Together().decide(Judged(Finished.read(shop["good"]), None)).said == "it answers alone"
    assert PASSES.judge(shop["good"]).stages is None
    stages = TwoStages(retriever=shop["finds"], candidates=ITEMS)
    verdict = Gate(checks=PASSES.checks).judge(shop["good"], stages=stages)
    good = Finished.read(shop["good"])
    assert verdict.stages == pair_of(good, stages) and verdict.passed and verdict_of(good) == verdict
    said = list[str]()
    with pytest.raises(ConfigError, match="the ranking model has no 'itm'"):
        Gate().judge(shop["good"], stages=replace(stages, item="itm"), say=said.append)
    assert not said and verdict_of(good) == verdict, "before anything is asked"
    words = ["gate", shop["bad"], "--champion", shop["good"], "--retriever", shop["finds"], "--candidates", str(ITEMS)]
    for more, code, where, said in (
        ([], 1, "out", "hit rate of 10"),
        (["--ranker", shop["good"]], 2, "err", "each the stage that RUN is not"),
    ):
        monkeypatch.setattr("sys.argv", ["rtrain", *words, *more])
        with pytest.raises(SystemExit) as ended:
            console()
        assert ended.value.code == code and said in getattr(capsys.readouterr(), where)

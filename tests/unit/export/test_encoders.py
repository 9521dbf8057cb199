"""An exported retrieval model finds what the trainer found: the metrics of the test split are made again of its lists.

The catalogue is ranked here by plain loops over what the encoders give, so that neither `recommend` nor the trainer's
own ranking is trusted.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain import BPR, InBatchSoftmax, SampledSoftmax
from rtrain.data.holdout import TEST, TRAIN, LeaveOneOut, RandomPerUser
from rtrain.data.negatives import Negatives
from rtrain.data.protocol import Data
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.side import SideFeatures
from rtrain.data.words import Words
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, ConfigError, DataError
from rtrain.export.artifact import Predictor
from rtrain.export.encoders import Asked, Encoders
from rtrain.metrics import NDCG, HitRate
from rtrain.models.hstu import HSTU
from rtrain.models.light_gcn import LightGCN
from rtrain.models.mf import MF
from rtrain.models.protocol import Model
from rtrain.models.sasrec import SASRec
from rtrain.models.text_tower import TextTower
from rtrain.models.two_tower import TwoTower
from rtrain.run import Evaluation, Run
from rtrain.schema import Id, IdList
from rtrain.text import Text, TokenizerFile
from tests.unit.data.test_texts import trained
from tests.unit.training.jobs import train

USERS, ITEMS, K = 30, 41, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("encoders"))


def write_interactions(path: Path) -> Path:
    """Interactions by number and by word, and what is known of users and items."""
    draw = np.random.default_rng(0)
    rows = [(u, int(i)) for u in range(USERS) for i in draw.choice(ITEMS, size=draw.integers(6, 14), replace=False)]
    user, item = (np.array(x) for x in zip(*rows, strict=True))
    moments = 1_700_000_000 + draw.integers(0, 10**6, len(rows))
    numbers = {"user_id": user, "item_id": item, "timestamp": moments}
    pq.write_table(pa.table(numbers), path / "numbers.parquet")
    words = {"user_id": [f"u{u}" for u in user], "item_id": [f"item {i}" for i in item], "timestamp": moments}
    pq.write_table(pa.table(words), path / "words.parquet")
    sort = draw.integers(0, 3, USERS)
    bio = [f"likes the {('cat', 'mat', 'sat')[n]}" if n else None for n in sort]
    users = {"user_id": np.arange(USERS), "sort": sort, "bio": bio}
    pq.write_table(pa.table(users), path / "users.parquet")
    kinds = [list(map(int, draw.integers(0, 5, draw.integers(0, 4)))) for _ in range(ITEMS)]
    titles = [" ".join(draw.choice(["red", "green", "old", "new", "cat"], draw.integers(1, 5))) for _ in range(ITEMS)]
    items = {"item_id": np.arange(ITEMS), "kinds": kinds, "title": titles}
    pq.write_table(pa.table(items), path / "items.parquet")
    trained(path)
    return path


def run_of(folder: Path, name: str) -> Run:
    several = {"users": USERS, "items": ITEMS, "split": RandomPerUser(valid=0.1, test=0.2)}
    known: dict[str, Any] = {
        "source": f"{folder}/numbers.parquet",
        "user_features": SideFeatures(
            source=f"{folder}/users.parquet", key="user_id", features=(Id(name="sort", rows=3),)
        ),
        "item_features": SideFeatures(
            source=f"{folder}/items.parquet", key="item_id",
            features=(IdList(name="kinds", rows=5), Words(name="title", rows=64)),
        ),
    }  # fmt: skip
    tokens = {
        "user_features": replace(known["user_features"], features=(Text(name="bio", rows=32),)),
        "item_features": replace(
            known["item_features"],
            features=(Text(name="title", tokenizer=TokenizerFile(file=f"{folder}/300.json"), max_length=9),),
        ),
    }
    none, history = Negatives(count=0), {"users": USERS, "items": ITEMS, "length": 6, "split": LeaveOneOut()}
    cosine = InBatchSoftmax(cosine=True, temperature=0.2)
    made: dict[str, tuple[Model, Data]] = {
        "words": (MF(dim=8), Pairs(source=f"{folder}/words.parquet", raw_ids=True, **several)),  # type: ignore[arg-type]
        "features": (TwoTower(dim=8, objective=cosine, scale=0.3), Pairs(negatives=none, **known, **several)),
        "text": (TextTower(dim=8, objective=cosine, scale=0.3), Pairs(negatives=none, **known, **several)),
        "tokens": (TextTower(dim=8, objective=cosine, scale=0.3), Pairs(negatives=none, **known | tokens, **several)),
        "graph": (
            LightGCN(dim=8, objective=BPR()),
            Graph(source=f"{folder}/numbers.parquet", **several),  # type: ignore[arg-type]
        ),
        "sasrec": (
            SASRec(dim=8, objective=SampledSoftmax(), scale=0.3),
            Histories(source=f"{folder}/words.parquet", raw_ids=True, **history),  # type: ignore[arg-type]
        ),
        "hstu": (
            HSTU(dim=8, buckets=8, scale=0.3),
            Histories(source=f"{folder}/numbers.parquet", **history),  # type: ignore[arg-type]
        ),
    }
    model, data = made[name]
    return Run(
        name=name, model=model, data=data, global_batch=64, duration=Duration(epochs=3), storage=f"{folder}/runs",
        evaluation=Evaluation(monitor=f"ndcg@{K}", batch=16), metrics=(NDCG(k=K), HitRate(k=K)),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["words", "features", "text", "tokens", "graph", "sasrec", "hstu"])
def test_what_the_export_finds_is_what_the_trainer_found(folder: Path, name: str) -> None:
    run = run_of(folder, name)
    done = train(run)
    encoders, dataset = Encoders(str(done["export"])), run.data.open()
    of = dataset.feedback
    user, item = (np.asarray(of.names[x]) if of.names else np.arange(n) for x, n in (("user", USERS), ("item", ITEMS)))
    before, wanted = dataset.codes < TEST, dataset.codes == TEST
    asked = [u for u in range(USERS) if wanted[of.user == u].any() and before[of.user == u].any()]
    histories = [item[of.item[(of.user == u) & before]].tolist() for u in asked]
    whom = histories if name in ("sasrec", "hstu") else user[asked].tolist()
    times = [of.time[(of.user == u) & before].tolist() for u in asked] if name == "hstu" else None
    queries, offered = encoders.user(whom, times), encoders.item(encoders.items.to_pylist())
    assert np.abs(offered - encoders.vectors.numpy()).max() < 1e-6
    assert set(encoders.items.to_pylist()) == set(item[of.item].tolist())
    hits, gains, lists = [], [], []
    for u, query, history in zip(asked, queries, histories, strict=True):
        scores = {i: float(query @ vector) for i, vector in zip(encoders.items.to_pylist(), offered, strict=True)}
        ranked = sorted((i for i in scores if i not in history), key=lambda i: -scores[i])[:K]
        right = set(item[of.item[(of.user == u) & wanted]].tolist())
        ideal = sum(1 / log2(2 + place) for place in range(min(K, len(right))))
        gains.append(sum(1 / log2(2 + place) for place, i in enumerate(ranked) if i in right) / ideal)
        hits.append(any(i in right for i in ranked))
        lists.append(ranked)
    assert np.mean(gains) == pytest.approx(done["test"][f"ndcg@{K}"], abs=1e-6)
    assert np.mean(hits) == pytest.approx(done["test"][f"hit_rate@{K}"], abs=1e-6)
    found = encoders.recommend(whom, K, times=times, seen=histories)
    assert [[i for i, _ in those] for those in found] == lists


def test_an_export_of_tokens_needs_no_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What items' texts said is in the export: a file that is not there any more is not missed."""
    export = str(train(run_of(folder, "tokens"), fresh=True)["export"])
    whole = Encoders(export).recommend([1, 2])
    monkeypatch.setattr("rtrain.text._HELD", {})
    file = folder / "300.json"
    hidden = file.rename(folder / "hidden.json")
    try:
        assert Encoders(export).recommend([1, 2]) == whole
    finally:
        hidden.rename(file)


def test_a_script_that_asks_prints_what_it_prints_alone(folder: Path) -> None:
    """Torch has something to say of a sparse matrix and of its tracer."""
    export = train(replace(run_of(folder, "graph"), name="quiet"))["export"]
    script = f"import rtrain\nfound = rtrain.Encoders({str(export)!r})\nprint(len(found.recommend([1, 2], k=3)))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert (ended.stdout, ended.stderr) == ("2\n", "")


def test_who_asks_wrongly_is_told(folder: Path) -> None:
    words = Encoders(str(train(run_of(folder, "words"), fresh=True)["export"]))
    with pytest.raises(DataError, match=r"whom: there is no user 'nobody' in the data that it was trained on; .* 30 "):
        words.user(["u1", "nobody"])
    with pytest.raises(DataError, match=r"whom: the data call each user by strings, got 7"):
        words.user([7])
    with pytest.raises(DataError, match="reads users' ids, which have none"):
        words.user(["u1"], times=[[1]])
    with pytest.raises(DataError, match="seen: 1 lists for 2 who ask"):
        words.recommend(["u1", "u2"], seen=[["item 1"]])
    assert words.user([]).shape == (0, 8) and words.recommend([]) == []
    assert len(words.recommend(["u1"], 1000)[0]) == len(words.items)
    hstu = Encoders(str(train(run_of(folder, "hstu"), fresh=True)["export"]))
    for whom, times, told in (
        ([[1, 2]], None, "reads when each item was had"),
        ([[1, 2]], [[5]], r"times\[0\]: 1 times for 2 items"),
        ([[1, 2]], [[5, 4]], r"times\[0\]: they fall from 5 to 4"),
        ([[1, 2]], [[5, 5.5]], r"times\[0\]: times are whole seconds"),
        ([[1, ITEMS]], [[5, 6]], rf"histories\[0\]: there is no item {ITEMS} .* valid are 0..{ITEMS - 1}"),
        ([[1, -1]], [[5, 6]], r"there is no item -1"),
        ([[1, None]], [[5, 6]], r"there is no item None"),
        ([[]], [[]], r"histories\[0\]: it must be a list of items"),
        ([3], [[5]], r"histories\[0\]: it must be a list of items"),
        ([[1, 2.5]], [[5, 6]], r"histories\[0\]: the data call each item by whole numbers, got 2.5"),
        ([[None, "x"]], [[5, 6]], r"histories\[0\]: the data call each item by whole numbers, got 'x'"),
        ([[True]], [[5]], r"histories\[0\]: the data call each item by whole numbers, got True"),
        (
            [[1, 2**70]],
            [[5, 6]],
            r"histories\[0\]: the data call each item by whole numbers, got 1180591620717411303424",
        ),
    ):
        with pytest.raises(DataError, match=told):
            hstu.user(whom, times)  # type: ignore[arg-type]
    newest = hstu.user([[9, 8, 1, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 6, 7, 8]])
    assert np.array_equal(newest, hstu.user([[1, 2, 3, 4, 5, 6]], [[3, 4, 5, 6, 7, 8]]))


def names(found: list[tuple[Any, float]]) -> list[Any]:
    """Batches of another size round scores otherwise, by float32's last bits."""
    return [item for item, _ in found]


def popular(encoders: Encoders, run: Run) -> list[tuple[Any, float]]:
    """All items with the share that training had of each, counted anew; of equals the first."""
    dataset = run.data.open()
    of, train_rows = dataset.feedback, dataset.codes == TRAIN
    item = np.asarray(of.names["item"]) if of.names else np.arange(ITEMS)
    had = item[of.item[train_rows]].tolist()
    return sorted(((i, had.count(i) / len(had)) for i in encoders.items.to_pylist()), key=lambda pair: -pair[1])


def test_who_is_not_known_is_offered_what_is_popular(folder: Path, tmp_path: Path) -> None:
    words = Encoders(str(train(run_of(folder, "words"), fresh=True)["export"]))
    first = popular(words, run_of(folder, "words"))
    asked = words.ask(["u1", "nobody", "u2"], seen=[[], [first[0][0], first[2][0], "gone"], []], unknown="popular")
    assert asked.strangers.tolist() == [False, True, False]
    one, stranger, two = words.find(Asked.joined([asked, words.ask(["u3"])]), 4)[:3]
    assert stranger == [first[1], *first[3:6]]
    assert [names(one), names(two)] == [names(words.recommend([u], 4)[0]) for u in ("u1", "u2")]
    with pytest.raises(DataError, match=r"whom: the data call each user by strings"):
        words.recommend([7], unknown="popular")
    hstu = Encoders(str(train(run_of(folder, "hstu"), fresh=True)["export"]))
    known = names(hstu.recommend([[1, 2]], 5, times=[[5, 7]])[0])
    found = hstu.recommend([[1, ITEMS, 2], [], [ITEMS]], 5, times=[[5, 6, 7], [], [3]], unknown="popular")
    assert names(found[0]) == known and found[1:] == [popular(hstu, run_of(folder, "hstu"))[:5]] * 2
    with pytest.raises(DataError, match=r"times\[0\]: 1 times for 2 items"):
        hstu.recommend([[ITEMS, 1]], times=[[5]], unknown="popular")


def test_an_export_of_before_does_not_say_what_is_popular(folder: Path) -> None:
    export = Path(str(train(run_of(folder, "words"), fresh=True)["export"]))
    items = pq.read_table(export / "items.parquet").drop_columns(["often"])
    pq.write_table(items, export / "items.parquet")
    head = json.loads((export / "export.json").read_text())
    head["files"]["items.parquet"] = hashlib.sha256((export / "items.parquet").read_bytes()).hexdigest()
    (export / "export.json").write_text(json.dumps(head))
    assert len(Encoders(str(export)).recommend(["u1"], 3)[0]) == 3
    with pytest.raises(DataError, match="unknown: this export does not say which items are popular"):
        Encoders(str(export)).recommend(["u1"], unknown="popular")


def test_files_that_were_altered_and_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    run = replace(run_of(folder, "features"), storage=str(tmp_path))
    place = Path(str(train(run)["export"]))
    with pytest.raises(CheckpointError, match=r"TwoTower is a model of another kind. Read it with rtrain.Encoders"):
        Predictor(str(place))
    with pytest.raises(CheckpointError, match=r"there is no export.json"):
        Encoders(str(tmp_path))
    head = json.loads((place / "export.json").read_text())
    head["files"]["../x.safetensors"] = "0"
    (place / "export.json").write_text(json.dumps(head))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Encoders(str(place))
    with (place / "known.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x09")
    with pytest.raises(CheckpointError, match=r"known.safetensors is missing or was altered"):
        Encoders(str(place))


def test_only_ranking_models_answers_are_compared_yet(folder: Path) -> None:
    run = run_of(folder, "sasrec")
    with pytest.raises(ConfigError, match="answers of SASRec are not compared yet"):
        replace(run, handoff=replace(run.handoff, serve_check=True))

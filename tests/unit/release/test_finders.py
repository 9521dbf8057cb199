"""The gate on models that find items: their lists are the trainer's, and a list that is not is seen."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.holdout import RandomPerUser
from rtrain.export.encoders import Encoders
from rtrain.metrics import NDCG
from rtrain.release.finished import Finished
from rtrain.release.judged import Judged
from rtrain.release.quality import NotWorse, SlicesNotWorse
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Run
from tests.unit.export.test_encoders import run_of, write_interactions
from tests.unit.training.jobs import train


@pytest.fixture(scope="module")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("finders"))


@pytest.fixture(scope="module")
def of_words(interactions: Path) -> Run:
    """Trained once for all."""
    run = run_of(interactions, "words")
    train(run)
    return run


def judged(run: Run) -> Judged:
    return Judged(Finished.read(run.folder), None)


SLOW = pytest.mark.slow


# One that knows users by their ids and one that knows them by what they had, always.
@pytest.mark.parametrize(
    "name", ["words", pytest.param("features", marks=SLOW), "sasrec", pytest.param("hstu", marks=SLOW)]
)
def test_its_lists_are_the_trainers(name: str, interactions: Path, of_words: Run) -> None:
    run = of_words if name == "words" else run_of(interactions, name)
    if run is not of_words:
        train(run)
    of = judged(run)
    rows, said = of.candidate.asked()
    assert len(rows) == len(said) == len(np.unique(of.candidate.rows[""].scored.groups)) > 20  # type: ignore[arg-type]
    assert all(len(found) == 5 and not set(found) & set(row["seen"]) for row, found in zip(rows, said, strict=True))
    decision = Faithful().decide(of)
    assert decision.passed and decision.numbers["difference"] <= 1e-5, decision
    assert decision.said.startswith(f"{len(rows)} lists of items have scores that differ from the trainer's by")
    assert Servable().decide(of).said.endswith(f"answered {len(rows)} of {len(rows)} with numbers")


def test_a_list_that_is_not_is_seen(of_words: Run, tmp_path: Path) -> None:
    run = replace(of_words, storage=str(tmp_path))
    shutil.copytree(of_words.folder, run.folder)
    path = Path(run.folder) / "test_rows.parquet"
    table = pq.read_table(path)
    output, row = (table[name].to_numpy().copy() for name in ("output", "row"))
    best, fifth = ((row == row[0]) & (output == place) for place in (0, -4))
    output[best], output[fifth] = -4, 0
    at = table.schema.get_field_index("output")
    pq.write_table(
        table.set_column(at, "output", pa.array(output)).replace_schema_metadata(table.schema.metadata), path
    )
    decision = Faithful().decide(judged(run))
    assert not decision.passed and decision.numbers["difference"] > 1e-4, decision


def test_drawn_candidates_tell_nothing(interactions: Path) -> None:
    run, metric = run_of(interactions, "words"), NDCG(k=5, sampled=10)
    run = replace(run, name="sampled", metrics=(metric,), evaluation=replace(run.evaluation, monitor=metric.name))
    train(run)
    decision = Faithful().decide(judged(run))
    assert decision.passed and "drawn items alone" in decision.said and not decision.numbers


@pytest.mark.parametrize("name", ["words", pytest.param("sasrec", marks=SLOW)])
def test_a_champion_of_another_split_finds_for_who_asks_now(
    name: str, interactions: Path, of_words: Run, tmp_path: Path
) -> None:
    champion = of_words if name == "words" else run_of(interactions, name)
    if champion is not of_words:
        train(champion)
    table = pq.read_table(interactions / "words.parquet")
    later = {"user_id": ["u1", "new one", "new one", "new one"], "item_id": ["item 1", "item 2", "item 3", "brand new"]}
    later |= {"timestamp": [2_000_000_000 + n for n in range(4)]}
    pq.write_table(pa.concat_tables([table, pa.table(later, schema=table.schema)]), tmp_path / "words.parquet")
    more = replace(champion.data, source=f"{tmp_path}/words.parquet", users=champion.data.users + 1,  # type: ignore[type-var]
                   items=champion.data.items + 1)  # type: ignore[attr-defined]  # fmt: skip
    candidate = replace(champion, data=more, storage=str(tmp_path))
    train(candidate)
    of = Judged(Finished.read(candidate.folder), Finished.read(champion.folder))
    rows, _ = of.candidate.asked()
    decision = NotWorse(metric="hit_rate@5", margin=1.0).decide(of)
    assert decision.passed and f"(of the candidate's first {len(rows)} who asked" in decision.said, decision
    for side, run in (("champion", champion), ("candidate", candidate)):
        encoders = Encoders(f"{run.folder}/export")
        found = encoders.recommend(
            [row["whom"] for row in rows], 5, seen=[row["seen"] for row in rows], unknown="popular",
        )  # fmt: skip
        hits = [bool({item for item, _ in mine} & set(row["wanted"])) for mine, row in zip(found, rows, strict=True)]
        assert decision.numbers[side] == pytest.approx(np.mean(hits)), side
    low, high = decision.numbers["low"], decision.numbers["high"]
    assert low <= decision.numbers["candidate"] - decision.numbers["champion"] <= high
    if any("new one" in (row["whom"], *row["seen"]) for row in rows):
        assert decision.said.endswith("; 1 it does not know)")


@pytest.mark.slow
def test_slices_of_who_asks_now(interactions: Path, tmp_path: Path) -> None:
    run = run_of(interactions, "features")
    run = replace(run, name="sliced", evaluation=replace(run.evaluation, slices=("sort",)))
    split = RandomPerUser(valid=0.1, test=0.3)
    later = replace(run, storage=str(tmp_path), data=replace(run.data, split=split))  # type: ignore[type-var]
    for one in (run, later):
        train(one)
    of = Judged(Finished.read(later.folder), Finished.read(run.folder))
    decision = SlicesNotWorse(metric="hit_rate@5", margin=1.0).decide(of)
    rows, _ = of.candidate.asked()
    sort = dict(zip(*(pq.read_table(interactions / "users.parquet")[of].to_pylist() for of in ("user_id", "sort")),
                    strict=True))  # fmt: skip
    rates = list[dict[int, float]]()
    for one in (later, run):
        asked = [row["whom"] for row in rows], 5
        found = Encoders(f"{one.folder}/export").recommend(*asked, seen=[row["seen"] for row in rows])
        hits = [bool({item for item, _ in mine} & set(row["wanted"])) for mine, row in zip(found, rows, strict=True)]
        kinds = np.array([sort[row["whom"]] for row in rows])
        rates.append({int(kind): float(np.mean(np.array(hits)[kinds == kind])) for kind in np.unique(kinds)})
    assert decision.passed and "whom the champion's export found anew" in decision.said, decision
    assert decision.numbers == {
        "slices": len(rates[0]), "gap": pytest.approx(min(rates[0][kind] - rates[1][kind] for kind in rates[0])),
    }  # fmt: skip

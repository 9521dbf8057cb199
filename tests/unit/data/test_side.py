"""What is known of ids beside them: read by id whatever the order of rows, and refused in one line where it is bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.columns import Lists
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval import Graph, Pairs
from rtrain.data.side import Bins, SideFeatures, looked_up
from rtrain.errors import ConfigError, DataError
from rtrain.managed import Managed
from rtrain.models.light_gcn import LightGCN
from rtrain.models.mf import MF
from rtrain.models.two_tower import TwoTower
from rtrain.schema import Id, IdList

NO_NEGATIVES = Negatives(count=0)
FEATURES = (
    Id(name="kind", vocabulary=("x", "y")),
    IdList(name="words", vocabulary=("a", "b")),
    Bins(name="age", edges=(18.0, 30.0)),
)
ROWS: tuple[dict[str, Any], ...] = (
    {"id": 3, "kind": "y", "words": ["b", "a", "?"], "age": 18.0},
    {"id": 0, "kind": None, "words": [], "age": 17.9},
    {"id": 1, "kind": "x", "words": None, "age": None},
)


def side(folder: Path, rows: Any = ROWS, features: Any = FEATURES) -> SideFeatures:
    path = folder / "side.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return SideFeatures(source=str(path), key="id", features=features)


def opened(of: SideFeatures, ids: Any = (0, 1, 3), rows: int = 5) -> dict[str, list[list[int]]]:
    found = of.open(np.array(ids), rows=rows, of="user")
    return {
        name: [x.values[x.offsets[i] : x.offsets[i + 1]].tolist() for i in range(rows)] for name, x in found.items()
    }


def test_features_are_read_by_id(tmp_path: Path) -> None:
    expected = {
        "kind": [[0], [1], [], [2], []],
        "words": [[], [], [], [2, 1, 0], []],
        "age": [[1], [0], [], [2], []],
    }
    assert opened(side(tmp_path)) == expected
    assert opened(side(tmp_path, ROWS + ROWS[::-1])) == expected  # as where there is a row an interaction


def test_a_bin_begins_at_its_edge(tmp_path: Path) -> None:
    ages = (-1, 17, 18, 29, 30, 99)
    rows = [{"id": number, "age": age} for number, age in enumerate(ages)]
    found = opened(side(tmp_path, rows, (Bins(name="age", edges=(18.0, 30.0)),)), ids=range(6), rows=6)
    assert found == {"age": [[1], [1], [2], [2], [3], [3]]}
    assert Bins(name="age", edges=(18.0, 30.0)).table_rows == 4


@pytest.mark.parametrize(
    ("message", "rows", "features"),
    [
        ("user 3 has interactions but no row with that id (1 are without one)", ROWS[1:], FEATURES),
        ("id 3 has another 'kind' at row 3 than at row 0", (*ROWS, ROWS[0] | {"kind": "x"}), FEATURES),
        ("id 3 has another 'words' at row 3 than at row 0", (*ROWS, ROWS[0] | {"words": ["a", "b", "?"]}), FEATURES),
        ("id 3 has another 'words' at row 3 than at row 0", (*ROWS, ROWS[0] | {"words": ["b"]}), FEATURES),
        ("feature 'id' has id 5 at row 3, but table 'id' has rows=5", (*ROWS, ROWS[0] | {"id": 5}), FEATURES),
        ("feature 'id' is null at row 3", (*ROWS, ROWS[0] | {"id": None}), FEATURES),
        ("column 'kinds' is missing; did you mean 'kind'?", ROWS, (Id(name="kinds", rows=3),)),
        ("column 'kind' is string, but the schema needs int64", ROWS, (Id(name="kind", rows=3),)),
        ("column 'kind' is string, but Bins need numbers", ROWS, (Bins(name="kind", edges=(1.0,)),)),
    ],
)
def test_bad_input_is_one_line(message: str, rows: Any, features: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        opened(side(tmp_path, rows, features))
    assert message in str(error.value) and "side.parquet" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("feature 'age': edges must rise", lambda: Bins(name="age", edges=(2.0, 2.0))),
        ("feature 'age': edges must rise", lambda: Bins(name="age", edges=())),
        ("data: the feature 'id' of x is there twice", lambda: with_features(Id(name="id", rows=3))),
        ("data: the feature 'k' of x is there twice", lambda: with_features(*[Bins(name="k", edges=(1.0,))] * 2)),
        ("data: x is given without a feature", lambda: with_features()),
        ("data: feature 'k' has a table of its own here", lambda: with_features(Id(name="k", rows=3, table="t"))),
        ("data.user_features: MF reads ids alone", lambda: MF().blueprint(pairs(Pairs).facts)),
        ("data.user_features: LightGCN reads ids alone", lambda: LightGCN().blueprint(pairs(Graph).facts)),
    ],
)
def test_a_config_that_cannot_be_is_one_line(message: str, make: Any) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def with_features(*features: Any) -> SideFeatures:
    return SideFeatures(source="x", key="id", features=features)


def pairs(kind: type[Pairs]) -> Pairs:
    return kind(source="log.txt", users=4, items=9, user_features=with_features(Id(name="kind", rows=3)))


def test_values_know_which_of_the_rows_items_they_belong_to() -> None:
    feature = Lists.of(np.array([7, 8, 9]), np.array([1, 0, 2]))  # of ids 0, 1 and 2
    asked = Lists.of(np.array([2, 1, 0, 2, 1]), np.array([3, 0, 1, 1]))
    found = looked_up(feature, asked)
    assert found.values.tolist() == [8, 9, 7, 8, 9]
    assert found.lengths.tolist() == [3, 0, 2, 0]
    assert found.place.tolist() == [[0, 0, 2], [-1, -1, -1], [0, 0, -1], [-1, -1, -1]]


def test_another_table_of_features_is_other_data(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("0 1 2 3 4 5\n1 0 2 4 6 8\n3 1 3 5 7\n")

    def fingerprint(given: SideFeatures | None) -> str:
        return Pairs(source=str(log), users=4, items=9, time="", user_features=given).open().fingerprint

    three = [fingerprint(side(tmp_path)), fingerprint(side(tmp_path, (ROWS[0] | {"age": 40.0}, *ROWS[1:])))]
    assert len({fingerprint(None), *three}) == 3


def test_a_tower_has_a_table_and_a_vector_for_each_feature() -> None:
    blueprint = TwoTower(dim=8).blueprint(
        Pairs(
            source="x", users=4, items=9, user_features=with_features(Id(name="kind", rows=3)),
            item_features=with_features(IdList(name="words", vocabulary=("a", "b"))), negatives=NO_NEGATIVES,
        ).facts
    )  # fmt: skip
    rows = {table.name: (table.rows, table.sequences) for table in blueprint.tables}
    assert rows == {"user": (4, ()), "item": (9, ("item",)), "user_kind": (3, ()), "item_words": (3, ("item_words",))}
    tower = blueprint.pieces[0].build()
    assert tower.user[0].in_features == tower.item[0].in_features == 16


def test_a_managed_feature_is_refused() -> None:
    feature = Id(name="x", rows=5, hashed="numbers", managed=Managed())
    with pytest.raises(ConfigError, match="feature 'x' is managed, which no retrieval model's tables are"):
        SideFeatures(source="x.parquet", key="id", features=(feature,))

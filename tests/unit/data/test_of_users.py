"""What users are told apart by: the columns of their table and how many interactions of theirs train."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from recipes.two_tower_features_movielens import debug
from rtrain.data.holdout import TRAIN, RandomPerUser
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.side import SideFeatures
from rtrain.errors import ConfigError
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.schema import Id
from rtrain.training.agreement import open_data

USERS, ITEMS = 60, 30
SEXES = ("F", "M", None)


def age_of(user: int) -> float | None:
    return None if user % 7 == 0 else 20.0 + user


@pytest.fixture
def log(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), draw.integers(4, 30, USERS))
    item = np.concatenate([draw.permutation(ITEMS)[:n] for n in np.bincount(user)])
    table = {"user_id": user, "item_id": item, "timestamp": draw.permutation(len(user))}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    return str(tmp_path / "log.parquet")


def table(folder: Path, **more: Any) -> SideFeatures:
    """A row of each user and of one more, unsorted, some twice."""
    users = np.random.default_rng(1).permutation(np.append(np.arange(USERS + 1), [3, 4, 5]))
    columns: dict[str, Any] = {
        "id": users,
        "sex": [SEXES[user % 3] for user in users],
        "age": [age_of(user) for user in users],
        "zip": users * 100,
        "tags": [["a"]] * len(users),
        "noise": np.arange(len(users)),
    }
    pq.write_table(pa.table(columns | more), folder / "users.parquet")
    features = (Id(name="sex", vocabulary=("F", "M")), Id(name="zip", rows=USERS * 100 + 1))
    return SideFeatures(source=str(folder / "users.parquet"), key="id", features=features)


def opened(kind: Any, log: str, **more: Any) -> Any:
    split = RandomPerUser(valid=0.2, test=0.2)
    return kind(source=log, users=USERS + 1, items=ITEMS, split=split, negatives=Negatives(count=0), **more).open()


def users_of(data: Any) -> list[int]:
    """Of each row of the test split, its user."""
    return [int(data.users[place]) for place in data._of[slice(*data.ranges["test"])]]


@pytest.mark.parametrize("kind", [Pairs, Graph])
def test_columns_are_of_the_user_that_a_row_asks_for(log: str, tmp_path: Path, kind: Any) -> None:
    data = opened(kind, log, user_features=table(tmp_path))
    data.refuse_columns(("sex", "age", "zip", "id", "history"), "evaluation.slices")
    users = users_of(data)
    assert len(set(users)) == len(users) > 50
    for name, of in (("sex", lambda user: SEXES[user % 3]), ("age", age_of), ("zip", lambda user: user * 100)):
        coded = data.coded("test", (name,))
        assert [coded.values[code].as_py() for code in coded.codes] == list(map(of, users))
    columns = Columns(data, "test")
    names = [one.name for one in slices_of(("sex", "age"), columns)]
    assert set(names[:3]) == {"[sex=F]", "[sex=M]", "[sex=(null)]"} and names[-1] == "[age=(null)]" and len(names) == 9
    assert len(slices_of(("zip",), columns)) == len(slices_of(("id",), columns)) == 21, "ids, the 20 most frequent"


@pytest.mark.parametrize("kind", [Pairs, Histories])
def test_history_is_how_many_interactions_of_a_user_train(log: str, kind: Any) -> None:
    data = opened(kind, log)
    data.refuse_columns(("history",), "evaluation.slices")
    trained = Counter(data.feedback.user[data.codes == TRAIN].tolist())
    for split in ("valid", "test"):
        users = [int(data.users[place]) for place in data._of[slice(*data.ranges[split])]]
        coded = data.coded(split, ("history",))
        assert [coded.values[code].as_py() for code in coded.codes] == [trained[user] for user in users]
    assert coded.counted and len(set(trained.values())) > 5


def refused(data: Any, name: str) -> str:
    with pytest.raises(ConfigError) as error:
        data.refuse_columns((name,), "evaluation.slices")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_of_users_is_one_line(log: str, tmp_path: Path) -> None:
    data = opened(Pairs, log, user_features=table(tmp_path))
    assert refused(data, "sexx").endswith("is called 'sexx'; did you mean 'sex'?")
    assert refused(data, "country").endswith("Those are history, id, sex, age, zip, noise")
    assert "column 'tags' has lists, not one value a user" in refused(data, "tags")
    assert "'noise' is not of users: id " in refused(data, "noise")
    assert refused(opened(Histories, log), "sex").endswith("Those are history")
    both = opened(Pairs, log, user_features=table(tmp_path, history=np.zeros(USERS + 4)))
    assert "'history' is the number of a user's interactions, and a column of" in refused(both, "history")
    opened(Pairs, log, user_features=table(tmp_path, history=[[1]] * (USERS + 4))).refuse_columns(("history",), "x")


def test_a_run_is_refused_before_it_trains_and_with_the_known_names() -> None:
    open_data(rtrain.override(debug(), {"evaluation.slices": ("gender", "age", "history")}))
    with pytest.raises(ConfigError, match=r"evaluation.slices: nothing that is known of users is called 'gendr'; did"):
        open_data(rtrain.override(debug(), {"evaluation.slices": ("gendr",)}))
    with pytest.raises(ConfigError, match=r"evaluation.slices: 'label' is not of users: user_id \d+ of "):
        open_data(rtrain.override(debug(), {"evaluation.slices": ("label",)}))

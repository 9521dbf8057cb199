from typing import Any

import pytest
from pydantic import ValidationError

from recipes.dlrm_movielens import SCHEMA
from rtrain.export.request import json_schema, row_model

ROW: dict[str, Any] = {
    "user_id": 1, "item_id": 2, "gender": "M", "occupation": "writer", "genres": ["Comedy"], "hour": 3,
    "history": [5, 6], "age": None, "release_year": 1990, "user_liked": 0.5, "user_seen": 1.0, "item_liked": 0.5,
    "item_seen": 1.0,
}  # fmt: skip


def test_a_row_that_fits() -> None:
    row = row_model(SCHEMA)(**ROW).model_dump()
    assert row == ROW
    assert row_model(SCHEMA)(**{k: v for k, v in ROW.items() if k != "gender"}).model_dump()["gender"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user_id": 944}, "user_id.*less than 944"),
        ({"user_id": -1}, "user_id.*greater than or equal to 0"),
        ({"user_id": None}, "user_id"),
        ({"user_id": "x"}, "user_id.*valid integer"),
        ({"history": [1683]}, r"history\.0.*less than 1683"),
        ({"hour": 1.5}, "hour"),
        ({"user_seen": float("nan")}, "user_seen.*finite"),
        ({"user_seen": None}, "user_seen"),
        ({"label": 1}, "label.*not permitted"),
    ],
)
def test_a_row_that_does_not_fit(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        row_model(SCHEMA)(**(ROW | change))
    import re

    assert re.search(said, str(raised.value), re.DOTALL)


def test_the_schema_that_clients_see() -> None:
    shown = json_schema(SCHEMA)
    assert set(shown["properties"]) == {f.name for f in SCHEMA.features}
    assert shown["additionalProperties"] is False
    assert shown["properties"]["user_id"]["exclusiveMaximum"] == 944

"""What the served endpoint accepts as a row: made from the schema, nothing else."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from recipes.dlrm_movielens import SCHEMA
from rtrain.data.movielens_features import RESIDUALS
from rtrain.export.request import json_schema, row_model
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema

Row: Any = row_model(
    Schema(
        features=(
            Id(name="user", entity="user", rows=5),
            Id(name="colour", entity="item", vocabulary=("red", "blue")),
            IdList(name="tags", rows=4, max_length=2),
            IdSequence(name="history", rows=4, max_length=2),
            IdList(name="words", vocabulary=("a", "b")),
            Dense(name="price"),
            Dense(name="age", missing=33.0),
        )
    )
)
LEAST = {"user": 0, "price": 1.0}


def refused(**row: Any) -> tuple[tuple[Any, ...], str, str]:
    """Where, what kind and what message: of the one error that the row has."""
    with pytest.raises(ValidationError) as caught:
        Row(**row)
    (error,) = caught.value.errors()
    return error["loc"], error["type"], error["msg"]


def test_a_row_with_only_what_is_needed_gets_the_rest_as_missing() -> None:
    assert Row(**LEAST).model_dump() == {
        "user": 0,
        "colour": None,
        "tags": [],
        "history": [],
        "words": [],
        "price": 1.0,
        "age": None,
    }


def test_two_rows_do_not_share_a_default_list() -> None:
    one, other = Row(**LEAST), Row(**LEAST)
    one.tags.append(1)
    assert other.tags == []


def test_an_unknown_key_is_refused_by_name() -> None:
    assert refused(**LEAST, colr="red") == (("colr",), "extra_forbidden", "Extra inputs are not permitted")


def test_the_label_is_no_part_of_a_request() -> None:
    assert refused(**LEAST, label=1)[:2] == (("label",), "extra_forbidden")


@pytest.mark.parametrize("missing", ["user", "price"])
def test_what_has_no_row_for_missing_is_required(missing: str) -> None:
    given = {k: v for k, v in LEAST.items() if k != missing}
    assert refused(**given) == ((missing,), "missing", "Field required")
    assert refused(**given, **{missing: None})[0] == (missing,)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"user": 5}, ("user",), "Input should be less than 5"),
        ({"user": -1}, ("user",), "Input should be greater than or equal to 0"),
        ({"user": 2**70}, ("user",), "Input should be less than 5"),
        ({"user": 1.5}, ("user",), "Input should be a valid integer, got a number with a fractional part"),
        ({"tags": [3, 4]}, ("tags", 1), "Input should be less than 4"),
        ({"history": [-1, 0]}, ("history", 0), "Input should be greater than or equal to 0"),
        ({"user": True}, ("user",), "Value error, it must be a whole number, not true or false"),
        ({"user": "3"}, ("user",), "Value error, it must be a whole number, not a word"),
        ({"tags": [1, "2"]}, ("tags",), "Value error, at 1: it must be a whole number, not a word"),
        ({"history": [False]}, ("history",), "Value error, at 0: it must be a whole number, not true or false"),
        ({"colour": "\ud800"}, ("colour",), "Value error, it has half of a surrogate pair, which is no character"),
        (
            {"words": ["a", "\udc00"]},
            ("words", 1),
            "Value error, it has half of a surrogate pair, which is no character",
        ),
        ({"price": True}, ("price",), "Input should be a valid number"),
        ({"tags": 3}, ("tags",), "Input should be a valid list"),
        ({"tags": [0, None]}, ("tags", 1), "Input should be a valid integer"),
        ({"colour": 3}, ("colour",), "Input should be a valid string"),
        ({"words": ["a", 1]}, ("words", 1), "Input should be a valid string"),
        ({"price": "much"}, ("price",), "Input should be a valid number"),
        ({"price": math.nan}, ("price",), "Input should be a finite number"),
        ({"age": math.inf}, ("age",), "Input should be a finite number"),
    ],
)
def test_a_value_out_of_its_range_is_refused_at_its_place(change: Any, where: Any, message: str) -> None:
    assert refused(**{**LEAST, **change})[::2] == (where, message)


@pytest.mark.parametrize("user", [0, 4])
def test_ids_reach_from_zero_to_the_last_row(user: int) -> None:
    assert Row(user=user, price=1, tags=[0, 3]).user == user


def test_a_whole_number_may_have_a_point_as_in_json() -> None:
    assert Row(user=3.0, price=1, tags=[2.0]).model_dump().items() >= {"user": 3, "tags": [2]}.items()


def test_no_list_is_an_empty_one_as_in_data() -> None:
    row = Row(**LEAST, tags=None, history=None, words=None)
    assert (row.tags, row.history, row.words) == ([], [], [])


def test_a_list_is_limited_but_a_sequence_keeps_its_newest_later() -> None:
    where, kind, _ = refused(**LEAST, tags=[1, 2, 3])
    assert (where, kind) == (("tags",), "too_long")
    assert Row(**LEAST, history=[1, 2, 3]).history == [1, 2, 3]


def test_a_word_outside_the_vocabulary_passes_as_the_unknown_one() -> None:
    row = Row(**LEAST, colour="green", words=["a", "zzz"])
    assert (row.colour, row.words) == ("green", ["a", "zzz"])


def test_the_json_schema_tells_a_caller_the_limits() -> None:
    told = json_schema(SCHEMA)
    assert told["additionalProperties"] is False
    assert list(told["properties"]) == [f.name for f in SCHEMA.features]
    assert told["required"] == [
        "user_id", "item_id", "hour", "user_seen", "item_seen", *(f.name for f in RESIDUALS),
    ]  # fmt: skip
    user = told["properties"]["user_id"]
    assert (user["minimum"], user["exclusiveMaximum"]) == (0, 944)
    assert user["description"] == "id feature of the user"
    assert told["properties"]["gender"]["description"] == "id feature of the user; known: F, M"
    array, nested, none = told["properties"]["history"]["anyOf"]
    assert array["items"]["exclusiveMaximum"] == 1683 and none == {"type": "null"}
    assert nested == {"type": "array", "items": {"type": "array", "items": array["items"]}}, "a mixture is refused"
    assert "maxItems" not in array
    assert told["properties"]["age"]["default"] is None

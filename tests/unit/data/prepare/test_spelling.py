"""Aggregates and lengths of time as people spell them, and what is refused."""

import pytest

from rtrain.data.prepare import Count, Mean, Prepare, Recency, Session, Trend, parse
from rtrain.data.prepare.windows import seconds
from rtrain.errors import ConfigError


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("count(user_id)", Count(by="user_id")),
        ("count(user_id, 7d)", Count(by="user_id", within="7d")),
        ("mean(item, label, prior=0.5, prior_rows=20)", Mean(by="item", of="label", prior=0.5, prior_rows=20.0)),
        ("mean(by=item, of=label, within=2w)", Mean(by="item", of="label", within="2w")),
        ("trend(item, 1d, 7d)", Trend(by="item", within="1d", over="7d")),
        ("recency(user)", Recency(by="user")),
        ("session(user, 10m)", Session(by="user", gap="10m")),
    ],
)
def test_spelled_as_meant(spelled: str, meant: object) -> None:
    assert parse(spelled) == meant


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("cuont(user)", "did you mean 'count'?"),
        ("count user", "count user"),
        ("count()", "by is missing. It takes count(by, [within])"),
        ("count(user, 7 days)", "'7 days' is no length of time"),
        ("count(user, 7d, 8d)", "count(by, [within])"),
        ("count(user, by=item)", "by is given twice"),
        ("mean(user, label, prior=x)", "prior must be a number, got 'x'"),
        ("mean(user, label, prior_rows=3)", "Give prior too"),
        ("trend(user, 7d, 1d)", "within must be shorter than over"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(spelled: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spelled)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_lengths_of_time() -> None:
    assert [seconds(x, "") for x in ("5s", "30m", "12h", "7d", "2w")] == [5, 1800, 43_200, 604_800, 1_209_600]
    for wrong in ("0d", "-1d", "7", "d", "1.5h", ""):
        with pytest.raises(ConfigError, match="no length of time"):
            seconds(wrong, "count")


def test_two_aggregates_of_one_column_are_refused() -> None:
    with pytest.raises(ConfigError, match="two aggregates make a column 'user_count'"):
        Prepare(source="in", out="out", time="at", aggregates=(Count(by="user"), Count(by="user")))

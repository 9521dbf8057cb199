"""Online metrics of an event log: beside plain Python, over formats and storages."""

import csv
import gzip
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.errors import DataError
from rtrain.evaluation.online import Columns, Events, measure_online
from rtrain.evaluation.online.intervals import Moments, delta, wilson

Row = dict[str, Any]
SHOWN = ("impression", "view", "search")
NAMES = ("impression", "view", "view", "search", "click", "click", "add_to_cart", "purchase", "scroll")
COLUMNS = ("session_id", "event", "timestamp", "query_id", "item_id", "results", "variant", "country", "user_id")


def drawn(seed: int, rows: int = 600, sessions: int = 60) -> list[Row]:
    """Sessions of one variant each, ties in time, and whatever may be absent absent at times."""
    rng = random.Random(seed)

    def maybe(value: object, share: float = 0.7) -> object:
        return value if rng.random() < share else None

    def row() -> Row:
        session, event = rng.randrange(sessions), rng.choice(NAMES)
        return {
            "session_id": f"s{session}",
            "event": event,
            "timestamp": rng.randrange(20),
            "query_id": maybe(f"q{rng.randrange(4)}"),
            "item_id": maybe(rng.randrange(6)),
            "results": maybe(rng.choice((0, 0, 3, 20))) if event == "search" else maybe(0, 0.1),
            "variant": "ab"[session % 2],
            "country": (None, "de", "fr")[session % 3],
            "user_id": f"u{session // 4}",
        }

    return [row() for _ in range(rows)]


def session_by_hand(rows: list[Row]) -> dict[str, int]:
    names = [row["event"] for row in rows]
    end = max(row["timestamp"] for row in rows)
    searches = [row for row in rows if row["event"] == "search" and row["results"] is not None]
    queries = {row["query_id"] for row in rows if row["event"] == "search"} - {None}
    clicks = [row for row in rows if row["event"] == "click"]
    return {
        "one": 1,
        "events": len(rows),
        "impressions": names.count("impression") + names.count("view"),
        "clicks": len(clicks),
        "added": int("add_to_cart" in names),
        "bought": int("purchase" in names),
        "exit": int(all(row["event"] in SHOWN for row in rows if row["timestamp"] == end)),
        "queries": len(queries),
        "clicked": len(queries & {row["query_id"] for row in clicks}),
        "searches": len(searches),
        "empty": sum(row["results"] == 0 for row in searches),
        "items": len({row["item_id"] for row in clicks} - {None}),
    }


BY_HAND = {
    "ctr": ("clicks", "impressions"),
    "query_ctr": ("clicked", "queries"),
    "add_to_cart_rate": ("added", "one"),
    "conversion_rate": ("bought", "one"),
    "exit_rate": ("exit", "one"),
    "zero_result_rate": ("empty", "searches"),
    "events_per_session": ("events", "one"),
    "clicked_items_per_session": ("items", "one"),
}
OF_SESSIONS = ("add_to_cart_rate", "conversion_rate", "exit_rate")
SHARES = (*OF_SESSIONS, "query_ctr", "zero_result_rate")


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    """The shares from which k of n are 1.96 standard errors away: roots of (k/n - p)^2 = z^2 p (1 - p) / n."""
    z2 = 1.959963984540054**2
    low, high = sorted(float(r) for r in np.roots([1 + z2 / n, -(2 * k / n + z2 / n), (k / n) ** 2]).real)
    return low, high


def delta_by_hand(y: list[int], x: list[int], share: bool) -> tuple[float | None, float | None]:
    """From the sample's variances and covariance; none where they are 0."""
    cov = np.cov(y, x, ddof=1)
    ratio = float(sum(y) / sum(x))
    variance = (cov[0, 0] - 2 * ratio * cov[0, 1] + ratio**2 * cov[1, 1]) / (len(y) * np.mean(x) ** 2)
    if variance < 1e-15:
        return None, None
    half = 1.959963984540054 * math.sqrt(variance)
    return max(ratio - half, 0), min(ratio + half, 1) if share else ratio + half


def group_by_hand(rows: list[Row], unit: str = "session_id") -> Row:
    by_session = defaultdict(list)
    for row in rows:
        by_session[row[unit], row["session_id"]].append(row)
    units: dict[str, list[dict[str, int]]] = defaultdict(list)
    for (key, _), of_session in by_session.items():
        units[key].append(session_by_hand(of_session))
    found: Row = {"sessions": len(by_session), "events": len(rows)}
    for name, (numerator, denominator) in BY_HAND.items():
        y, x = ([sum(s[of] for s in sessions) for sessions in units.values()] for of in (numerator, denominator))
        independent = name in OF_SESSIONS and unit == "session_id"
        low, high = wilson_by_hand(sum(y), sum(x)) if independent else delta_by_hand(y, x, share=name in SHARES)
        found[name] = {
            "value": sum(y) / sum(x), "low": low, "high": high, "numerator": sum(y), "denominator": sum(x),
        }  # fmt: skip
    return found


def same(told: Row, by_hand: Row) -> None:
    assert told.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert name in BY_HAND or told[name] == value, name
    for name in BY_HAND:
        for of, value in by_hand[name].items():
            expected = None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            assert told[name][of] == expected, (name, of)


def text_of(rows: list[Row], suffix: str) -> str:
    if suffix not in (".csv", ".tsv"):
        # A key is absent where there is no value.
        return "".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows)
    lines: list[str] = []
    writer = csv.DictWriter(
        type("", (), {"write": lines.append})(), list(rows[0]), delimiter="," if suffix == ".csv" else "\t"
    )
    writer.writeheader()
    writer.writerows(rows)
    return "".join(lines)


def write(rows: list[Row], path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text_of(rows, Path(path.stem).suffix).encode()))
    else:
        path.write_text(text_of(rows, path.suffix))
    return str(path)


OTHER = Events(other=("scroll",))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_rate_of_every_group_is_what_plain_python_counts(tmp_path: Path, suffix: str, seed: int) -> None:
    rows = drawn(seed)
    log = write(rows, tmp_path / f"log{suffix}")
    whole = measure_online(log, events=OTHER)
    assert (whole["events"], whole["sessions"]) == (600, len({row["session_id"] for row in rows}))
    assert (whole["left_out"], whole["log"]) == ({}, log)
    same(whole["groups"][0], {"by": {}, **group_by_hand(rows)})
    by = ("variant", "country")
    told = measure_online(log, Columns(by=by), OTHER)["groups"]
    assert [tuple(group["by"].values()) for group in told] == [(v, c) for v in "ab" for c in ("de", "fr", None)]
    for group in told:
        mine = [row for row in rows if all(row[name] == group["by"][name] for name in by)]
        same(group, {"by": group["by"], **group_by_hand(mine)})


@pytest.mark.parametrize("suffix", [".parquet", ".tsv", ".csv.gz", ".jsonl.gz", ".ndjson", ".json"])
def test_each_format_and_a_folder_of_them_say_the_same(tmp_path: Path, suffix: str) -> None:
    rows = drawn(11)
    one = measure_online(write(rows, tmp_path / "one.csv"), events=OTHER)
    for index in range(3):
        write(rows[index::3], tmp_path / "logs" / f"day[{index}]*{suffix}")
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    (tmp_path / "logs" / "README.md").write_text("")
    write(rows, tmp_path / "logs" / "_old" / f"old{suffix}")
    assert measure_online(str(tmp_path / "logs"), events=OTHER) == one | {"log": str(tmp_path / "logs")}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_log_on_another_storage_and_in_partitions(tmp_path: Path, suffix: str) -> None:
    rows = drawn(12)
    fs = fsspec.filesystem("memory")
    for variant in "ab":
        mine = [{k: v for k, v in row.items() if k != "variant"} for row in rows if row["variant"] == variant]
        fs.put(write(mine, tmp_path / f"x{suffix}"), f"/online{suffix}/variant={variant}/day[1]{suffix}")
    by = Columns(by=("variant",))
    there = measure_online(f"memory://online{suffix}", by, OTHER)
    assert there["groups"] == measure_online(write(rows, tmp_path / "all.parquet"), by, OTHER)["groups"]


def test_neither_the_order_of_rows_nor_ties_in_time_matter(tmp_path: Path) -> None:
    rows = [row | {"timestamp": row["timestamp"] // 10} for row in drawn(13)]
    told = measure_online(write(rows, tmp_path / "a.parquet"), events=OTHER)
    same(told["groups"][0], {"by": {}, **group_by_hand(rows)})
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        assert measure_online(write(rows, tmp_path / "a.parquet"), events=OTHER) == told


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    "times",
    [
        lambda t: f"2026-01-01T00:00:{t:02}Z",
        lambda t: f"2026-01-01T0{t % 5}:00:{t:02}+0{t % 5}:00",
        lambda t: str(9 + t),  # as text 10 comes before 9
        lambda t: t / 8,
        lambda t: 10**18 + t,  # nanoseconds, which a float does not tell apart
    ],
)
def test_times_in_each_form(tmp_path: Path, suffix: str, times: Callable[[int], object]) -> None:
    rows = drawn(14)
    told = measure_online(write(rows, tmp_path / "a.parquet"), events=OTHER)["groups"]
    written = write([row | {"timestamp": times(row["timestamp"])} for row in rows], tmp_path / f"b{suffix}")
    assert measure_online(written, events=OTHER)["groups"] == told


def views(*sessions: object) -> list[Row]:
    """A view each, of sessions of these ids."""
    return [{"session_id": session, "event": "view", "timestamp": 1} for session in sessions]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_text_is_taken_as_it_stands(tmp_path: Path, suffix: str) -> None:
    ids = ["7", "07", "7.0", "#7", "null", "true", "2026-01-01", "a,b", 'a"b', "a b ", "Ä"]
    for some in (ids, ["1e1", "10"], ["#7", "8"]):
        assert measure_online(write(views(*some, *some), tmp_path / f"log{suffix}"))["sessions"] == len(some)
    for day in ("10", "9"):
        write(views(1, 2), tmp_path / "days" / f"day={day}" / f"log{suffix}")
    told = measure_online(str(tmp_path / "days"), Columns(by=("day",)))["groups"]
    assert [group["by"]["day"] for group in told] == ["10", "9"]  # in the order of text


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_files_of_a_folder_may_have_other_columns_in_another_order(tmp_path: Path, suffix: str) -> None:
    write(views(1, 2), tmp_path / f"a{suffix}")
    later = [dict(reversed((row | {"event": "search", "results": 0}).items())) for row in views(2, 3)]
    write(later, tmp_path / f"b{suffix}")
    told = measure_online(str(tmp_path))
    assert (told["sessions"], told["groups"][0]["zero_result_rate"]["numerator"]) == (3, 2)


def test_text_in_parquet_may_be_bytes(tmp_path: Path) -> None:
    rows = [row | {"event": b"view", "variant": "ä".encode()} for row in views(b"1", b"2", b"1")]
    told = measure_online(write(rows, tmp_path / "log.parquet"), Columns(by=("variant",)))
    assert (told["sessions"], told["groups"][0]["by"]) == (2, {"variant": "ä"})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_time_without_an_offset_is_utc(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    local, click = "2026-01-01T10:00:00", {"event": "click", "timestamp": "2026-01-01T11:00:00+01:00"}
    shown = [row | {"timestamp": f"{local}{point}"} for row, point in zip(views(1, 2), ("", ".5"), strict=True)]
    told = measure_online(write([*shown, *(row | click for row in views(1, 2))], tmp_path / f"log{suffix}"))
    assert told["groups"][0]["exit_rate"]["value"] == 0.5  # the click is at 10:00: of one time, and before 10:00:00.5


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("column", "role"), [("session_id", "session"), ("event", "event"), ("timestamp", "time")])
def test_text_of_no_letters_is_a_missing_value(tmp_path: Path, suffix: str, column: str, role: str) -> None:
    rows = [row | {"timestamp": "2026-01-01"} for row in views("1", "2", "3")]
    rows[1][column] = ""
    with pytest.raises(DataError, match=f"1 of 3 events have no {role}"):
        measure_online(write(rows, tmp_path / f"log{suffix}"))


def test_units_make_the_intervals(tmp_path: Path) -> None:
    rows = drawn(15)
    told = measure_online(write(rows, tmp_path / "log.csv"), Columns(unit="user_id"), OTHER)["groups"][0]
    users = len({row["user_id"] for row in rows})
    same(told, {"by": {}, "units": users, **group_by_hand(rows, unit="user_id")})


def test_names_that_need_quoting(tmp_path: Path) -> None:
    rows = drawn(16)
    told = measure_online(write(rows, tmp_path / "log.csv"), Columns(by=("variant",)), OTHER)["groups"]
    renamed = {name: f"{name}\"; DROP TABLE tally; --'" for name in COLUMNS}
    events = {name: f"it's {name}\"'; DROP TABLE tally; --" for name in NAMES}
    hard = [{renamed[k]: events[v] if k == "event" else v for k, v in row.items()} for row in rows]
    columns = Columns(
        session=renamed["session_id"],
        event=renamed["event"],
        time=renamed["timestamp"],
        query=renamed["query_id"],
        item=renamed["item_id"],
        results=renamed["results"],
        by=(renamed["variant"],),
    )
    given = Events(
        impression=(events["impression"], events["view"]),
        click=(events["click"],),
        add_to_cart=(events["add_to_cart"],),
        purchase=(events["purchase"],),
        search=(events["search"],),
        other=(events["scroll"],),
    )
    for suffix in (".parquet", ".csv", ".jsonl"):
        found = measure_online(write(hard, tmp_path / f"it's; hard{suffix}"), columns, given)["groups"]
        assert [group | {"by": {"variant": group["by"][renamed["variant"]]}} for group in found] == told


def test_what_the_log_does_not_say_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [row for row in drawn(17) if row["event"] in ("impression", "view", "search")]
    bare = [{k: row[k] for k in ("session_id", "event", "timestamp")} for row in rows]
    for suffix in (".parquet", ".csv", ".jsonl"):
        told = measure_online(write(bare, tmp_path / f"log{suffix}"))
        assert told["groups"][0].keys() == {"by", "sessions", "events", "exit_rate", "events_per_session"}
        assert told["left_out"] == {
            "ctr": "there is no event click (--click)",
            "query_ctr": "there is no event click (--click)",
            "add_to_cart_rate": "there is no event add_to_cart (--add-to-cart)",
            "conversion_rate": "there is no event purchase (--purchase)",
            "zero_result_rate": "no such event has a value in a column 'results' (--results)",
            "clicked_items_per_session": "there is no event click (--click)",
        }
    clicks = [{k: row[k] for k in ("session_id", "event", "timestamp")} for row in drawn(17) if row["event"] == "click"]
    told = measure_online(write(clicks, tmp_path / "clicks.csv"))["left_out"]
    assert told["ctr"] == "there is no event impression or view (--impression)"
    assert told["exit_rate"] == "there is no event impression or view or search (--impression, --search)"
    assert told["clicked_items_per_session"] == "no such event has a value in a column 'item_id' (--item)"


def test_a_group_without_a_denominator_has_no_value(tmp_path: Path) -> None:
    rows = [row for row in drawn(18) if row["variant"] == "a" or row["event"] in ("click", "purchase")]
    a, b = measure_online(write(rows, tmp_path / "log.csv"), Columns(by=("variant",)), OTHER)["groups"]
    assert a["ctr"]["value"] == pytest.approx(a["ctr"]["numerator"] / a["ctr"]["denominator"])
    assert b["ctr"] | {"numerator": 0} == {"value": None, "low": None, "high": None, "numerator": 0, "denominator": 0}
    assert b["exit_rate"]["value"] == 0.0


def test_sessions_in_several_groups_and_searches_without_results_are_said(tmp_path: Path) -> None:
    rows = [row | {"variant": "ab"[index % 2]} for index, row in enumerate(drawn(19))]
    told = measure_online(write(rows, tmp_path / "log.csv"), Columns(by=("variant",)), OTHER)
    seen = defaultdict(set)
    for row in rows:
        seen[row["session_id"]].add(row["variant"])
    both = sum(len(variants) == 2 for variants in seen.values())
    searches = [row for row in rows if row["event"] == "search"]
    without = sum(row["results"] is None for row in searches)
    assert told["sessions"] == len(seen)
    assert told["notes"] == [
        f"{both} of {len(seen)} sessions have events in several groups, and count in each by those",
        f"{without} of {len(searches)} searches do not say how many results, and do not count",
    ]


def test_a_rare_key_of_json_lines_is_found(tmp_path: Path) -> None:
    line = '{"session_id": 1, "event": "view", "timestamp": 1}\n'
    rare = '{"session_id": "x", "event": "search", "timestamp": "2", "hits": 0, "results": 3}\n'
    (tmp_path / "log.jsonl").write_text(line * 30000 + rare)
    told = measure_online(str(tmp_path / "log.jsonl"))["groups"][0]["zero_result_rate"]
    assert (told["numerator"], told["denominator"]) == (0, 1)
    told = measure_online(str(tmp_path / "log.jsonl"), Columns(results="hits"))["groups"][0]["zero_result_rate"]
    assert (told["numerator"], told["denominator"]) == (1, 1)


def test_wilson_by_hand() -> None:
    low, high = wilson(Moments(units=10, y=8, x=10, yy=8, xy=8, xx=10)) or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Newcombe's tables
    for k, n in ((0, 5), (5, 5), (1, 1000)):
        assert wilson(Moments(n, k, n, k, k, n)) == pytest.approx(wilson_by_hand(k, n), abs=1e-12)
    assert wilson(Moments(0, 0, 0, 0, 0, 0)) is None


def test_delta_by_hand() -> None:
    # Sessions of (clicks, impressions) (1, 2), (0, 2), (2, 4): r = 3/8, residuals 1/4, -3/4, 1/2, squares 7/8,
    # so that the variance is 3/2 * 7/8 / 64.
    half = 1.959963984540054 * math.sqrt(1.5 * 0.875 / 64)
    assert delta(Moments(units=3, y=3, x=8, yy=5, xy=10, xx=24)) == pytest.approx(
        (3 / 8 - half if half < 3 / 8 else 0, 3 / 8 + half)
    )
    for nothing in (
        Moments(1, 1, 2, 1, 2, 4),
        Moments(2, 2, 4, 2, 4, 8),
        Moments(2, 0, 4, 0, 0, 8),
        Moments(2, 2, 0, 2, 0, 0),
    ):
        assert delta(nothing) is None  # one unit; alike; no click; nothing to divide by


def test_delta_holds_the_truth_as_often_as_it_says_where_events_cling_to_sessions() -> None:
    rng, held, held_by_events = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        x = rng.integers(1, 30, 400)
        y = rng.binomial(x, rng.beta(1, 9, 400))
        of = Moments(400, *(int(v) for v in (y.sum(), x.sum(), (y * y).sum(), (x * y).sum(), (x * x).sum())))
        low, high = delta(of) or (1, 0)
        held += low <= 0.1 <= high
        low, high = wilson(of) or (1, 0)
        held_by_events += low <= 0.1 <= high
    assert 930 <= held <= 970  # 950 expected, of a binomial's standard deviation 7
    assert held_by_events < 800  # why events are not taken as independent

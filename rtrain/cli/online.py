"""`rtrain metrics online`: its options as names, and its answer as a table."""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rtrain.errors import ConfigError
from rtrain.evaluation.online import Assigned, Columns, Events, measure_online
from rtrain.evaluation.online.log import option
from rtrain.evaluation.online.rates import RATES


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What `measure_online` finds by the options that were given."""
    columns = {f.name: value for f in fields(Columns) if (value := getattr(options, f.name)) is not None}
    if "by" in columns:
        columns["by"] = _names("by", columns["by"])
    events = {f.name: _names(f.name, value) for f in fields(Events) if (value := getattr(options, f.name)) is not None}
    return measure_online(
        options.log, Columns(**columns), Events(**events), memory_gb=options.memory_gb, against=options.against,
        assigned=_assigned(options),
    )  # fmt: skip


def _assigned(options: argparse.Namespace) -> Assigned | None:
    if not options.assigned:
        return None
    from rtrain.endpoint.assigned import assigned_of
    from rtrain.release.audit import AuditLog

    model, _, version = options.assigned.rpartition(":")
    if not model or not version.isdecimal():
        raise ConfigError(f"--assigned: {options.assigned!r} is no MODEL:VERSION, as demo:2")
    return assigned_of(AuditLog(options.audit), model, int(version))


def spell(found: dict[str, Any]) -> str:
    """A line for each rate of each group, groups beneath one another; then what is left out, and notes."""
    by = list(found["groups"][0]["by"])
    header = ["rate", *by, "value", "95 % interval", "of", "which is"]
    rows = [header, *_rates(found["groups"]), *_sizes(found["groups"]), *_differences(found["groups"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"left out: {name}: {why}" for name, why in found["left_out"].items()]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join([f"{found['log']}: {found['events']} events, {found['sessions']} sessions", "", *lines])


def _rates(groups: list[dict[str, Any]]) -> Iterator[list[str]]:
    for rate in RATES:
        for index, group in enumerate(groups):
            if rate.name in group:
                told = group[rate.name]
                interval = "-" if told["low"] is None else f"{told['low']:.4g} to {told['high']:.4g}"
                value = "-" if told["value"] is None else f"{told['value']:.4g}"
                of = f"{told['numerator']} / {told['denominator']}"
                yield [rate.name, *_values(group), value, interval, of, "" if index else rate.means]


def _differences(groups: list[dict[str, Any]]) -> Iterator[list[str]]:
    for rate in RATES:
        for group in groups:
            if told := group.get("differences", {}).get(rate.name):
                share = "" if told["share"] is None else f"{told['share']:+.1%}"
                sure = "told apart" if told["excludes_0"] else "not told apart"
                interval = f"{told['low']:+.4g} to {told['high']:+.4g}"
                yield [f"{rate.name}, difference", *_values(group), f"{told['value']:+.4g}", interval, share, sure]


def _sizes(groups: list[dict[str, Any]]) -> Iterator[list[str]]:
    for name in ("sessions", "units"):
        yield from ([name, *_values(group), str(group[name]), "", "", ""] for group in groups if name in group)


def _values(group: dict[str, Any]) -> list[str]:
    return ["(none)" if value is None else value for value in group["by"].values()]


def _names(kind: str, text: str) -> tuple[str, ...]:
    """Names between commas; as in CSV, one with a comma stands in double quotes."""
    try:
        return tuple(next(csv.reader([text], skipinitialspace=True, strict=True), []))
    except csv.Error as error:
        raise ConfigError(f"{option(kind)}: {text!r} is no list of names between commas ({error})") from None

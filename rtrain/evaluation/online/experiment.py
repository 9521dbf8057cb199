"""An experiment's groups held against the one that everybody had before."""

from typing import Any

from rtrain.errors import DataError, did_you_mean
from rtrain.evaluation.online.intervals import difference
from rtrain.evaluation.online.rates import RATES


def hold(groups: list[dict[str, Any]], column: str, against: str, where: str) -> None:
    """Give each other group its `differences`; see `measure_online`.

    Raises:
        DataError: there is no such group.
    """
    names = [str(group["by"][column]) for group in groups]
    if against not in names:
        near = did_you_mean(against, names) or f". Its values are {', '.join(names)}"
        raise DataError(f"{where}: no event has {column} = {against!r} (--against){near}")
    control = groups[names.index(against)]
    for group in groups:
        if group is not control:
            found = {rate.name: _difference(group.get(rate.name), control.get(rate.name)) for rate in RATES}
            group["differences"] = {name: told for name, told in found.items() if told}


def _difference(mine: dict[str, Any] | None, theirs: dict[str, Any] | None) -> dict[str, Any] | None:
    """None where one of the two has no interval."""
    if not mine or not theirs or mine["low"] is None or theirs["low"] is None:
        return None
    pair = [(rate["value"], (rate["low"], rate["high"])) for rate in (mine, theirs)]
    low, high = difference(*pair)
    value = mine["value"] - theirs["value"]
    share = value / theirs["value"] if theirs["value"] else None
    return {"value": value, "low": low, "high": high, "share": share, "excludes_0": not low <= 0 <= high}

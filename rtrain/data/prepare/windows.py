"""Lengths of time as people write them: 30m, 7d."""

import re

from rtrain.errors import ConfigError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SECOND = 1_000_000
"""Moments are counted in microseconds."""


def seconds(length: str, where: str) -> int:
    """Of `30m` 1800; the units are s, m, h, d and w.

    Raises:
        ConfigError: it is no such length, or not above 0.
    """
    found = re.fullmatch(r"(\d{1,9})([smhdw])", length.strip())
    if not found or not int(found[1]):
        raise ConfigError(f"{where}: {length!r} is no length of time. Give a number and s, m, h, d or w, such as 7d")
    return int(found[1]) * UNITS[found[2]]

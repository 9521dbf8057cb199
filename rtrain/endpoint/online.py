"""A new version held by what people do: a rate of the event log, told apart by the version that each event names."""

from dataclasses import dataclass
from typing import Any

from rtrain.endpoint.tally import Z
from rtrain.errors import ConfigError, did_you_mean
from rtrain.evaluation.online import Columns, measure_online
from rtrain.evaluation.online.rates import RATES
from rtrain.storage.paths import located

NORMAL = 1.96
"""Standard deviations of the intervals that `measure_online` gives."""
LOWER_IS_BETTER = ("exit_rate", "zero_result_rate")


@dataclass(frozen=True, kw_only=True)
class Online:
    """The rate may not be worse than the champion's by more than chance explains.

    The log has the version of each event, which answers name in `x-rtrain-version`; it is read anew each time.
    """

    log: str
    """File or folder, as for `rtrain metrics online`, which the conductor's node must reach."""
    rate: str = "ctr"
    """One of those that `rtrain metrics online` measures."""
    worse: float = 0.0
    """Share of the champion's rate by which it may be worse."""
    by: str = "version"
    """Column of the version."""
    every_s: float = 60.0
    """Seconds between two readings of the log."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", located(self.log))
        names = [rate.name for rate in RATES]
        if self.rate not in names:
            near = did_you_mean(self.rate, names) or f". They are {', '.join(names)}"
            raise ConfigError(f"Online.rate: there is no {self.rate!r}{near}")
        if not self.worse >= 0:
            raise ConfigError(f"Online.worse: must be at least 0, got {self.worse}")
        if not self.every_s > 0:
            raise ConfigError(f"Online.every_s: must be above 0, got {self.every_s}")

    def exceeded(self, new: int, champion: int) -> str:
        """Why version `new` is to be taken back; empty: nothing is seen against it, or too little at all.

        Raises:
            DataError: as `measure_online`.
        """
        found = measure_online(self.log, Columns(by=(self.by,)))
        groups = {str(group["by"][self.by]): group.get(self.rate) for group in found["groups"]}
        mine, theirs = groups.get(str(new)), groups.get(str(champion))
        if not (mine and theirs) or None in (mine["low"], theirs["low"]):
            return ""
        if self.rate in LOWER_IS_BETTER:
            worse = _wide(mine)[0] > _wide(theirs)[1] * (1 + self.worse)
        else:
            worse = _wide(mine)[1] < _wide(theirs)[0] * (1 - self.worse)
        if not worse:
            return ""
        return f"its {self.rate} is {_spelled(mine)}, the champion's {_spelled(theirs)}, in {self.log}"


def _wide(rate: dict[str, Any]) -> tuple[float, float]:
    """An interval as wide as those of the other limits, for it too is looked at again and again."""
    value, wider = rate["value"], Z / NORMAL
    return value - wider * (value - rate["low"]), value + wider * (rate["high"] - value)


def _spelled(rate: dict[str, Any]) -> str:
    return f"{rate['value']:.4g} ({rate['numerator']} / {rate['denominator']})"

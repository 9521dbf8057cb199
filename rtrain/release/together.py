"""A check of both stages: what a candidate finds or orders together with the other one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError, RtrainError, one_line
from rtrain.metrics.paired import mean_interval
from rtrain.release.finished import Finished
from rtrain.release.judged import Decision, Judged
from rtrain.release.pair import TIMED, Paired, ask_both

CHECK = "both stages"
LATE = 0.05
"""Share of the questions timed that may have had no features in time, of a busy moment: defaults answered them."""


@dataclass(frozen=True, kw_only=True)
class Together:
    """A process of its own loads both stages and recommends to users of the retrieval model's test split; of these no
    fewer are offered what they had then than by the champion's pair.

    A test of non-inferiority of the hit rate of the first `k`, as `NotWorse`: a paired bootstrap of the users.
    """

    k: int = 10
    margin: float = 0.02
    """How much worse the hit rate may be; the interval of a thousand users is about that wide."""
    latency_ms: float | None = None
    """99th percentile of a request of one, without the network; none: no bound."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"Together.k: must be at least 1, got {self.k}")
        if not self.margin >= 0:
            raise ConfigError(f"Together.margin: must be at least 0, got {self.margin}")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ConfigError(f"Together.latency_ms: must be above 0, got {self.latency_ms}")

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        if of.stages is None:
            return Decision(CHECK, True, "it answers alone", {})
        pair = of.stages.having(of.candidate.export.uri)
        try:
            rows = Finished.read(pair.retriever).asked()[0]
        except RtrainError as error:
            return Decision(CHECK, False, one_line(error), {})
        theirs = of.stages.having(of.champion.export.uri) if of.champion else None
        k = min(self.k, pair.candidates)
        mine = ask_both(pair, rows, k)
        if mine.error:
            return Decision(CHECK, False, mine.error, {})
        return self._compared(mine, ask_both(theirs, rows, k) if theirs else None, rows, k)

    def _compared(self, mine: Paired, theirs: Paired | None, rows: Sequence[Any], k: int) -> Decision:
        empty = sum(not of for of in mine.lists)
        median, p99 = mine.latency_ms
        numbers = {"asked": float(len(mine.lists)), "empty": float(empty), "p99_ms": p99}
        said = f"{len(mine.lists)} asked, {median:.3g} ms each (p99 {p99:.3g})"
        said += f", {empty} offered nothing" if empty else ""
        said += f", {mine.without} of those timed without features in time" if mine.without else ""
        late = mine.without > LATE * min(TIMED, len(mine.lists))
        passed = not (empty or late or (self.latency_ms and p99 > self.latency_ms))
        if not rows:
            return Decision(
                CHECK, passed, f"{said}; the retrieval model's run does not say what they had then", numbers
            )
        hits = _hits(mine, rows)
        numbers["hit_rate"] = float(hits.mean())
        said += f"; hit rate of {k}: {hits.mean():.4f}"
        if theirs is None:
            return Decision(CHECK, passed, said, numbers)
        if theirs.error:
            return Decision(CHECK, passed, f"{said}; the champion's pair does not answer ({theirs.error})", numbers)
        between = mean_interval(_hits(theirs, rows), hits)
        numbers |= {"champion": float(_hits(theirs, rows).mean()), "low": between.low, "high": between.high}
        said += f" against {numbers['champion']:.4f}: difference 95 % [{between.low:+.4f}, {between.high:+.4f}]"
        said += f", margin {self.margin:g}"
        return Decision(CHECK, passed and between.low >= -self.margin, said, numbers)


def _hits(of: Paired, rows: Sequence[Any]) -> NDArray[np.float64]:
    """float64 [users]: whether a list has something that its user had then."""
    return np.array([float(bool(set(row["wanted"]) & set(its))) for row, its in zip(rows, of.lists, strict=True)])

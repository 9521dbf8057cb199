"""What a gate judges: a finished run with its export, what a process of its own saw of it, and who answers now."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from rtrain.release.both import Both
from rtrain.release.finished import Finished
from rtrain.release.probe import Probed, probe
from rtrain.stages.config import TwoStages


@dataclass(frozen=True)
class Judged:
    """A candidate, and what it would take the place of."""

    candidate: Finished
    champion: Finished | None
    stages: TwoStages | None = None
    """That both are to be one of, which has the other one; none: they answer alone."""

    @cached_property
    def both(self) -> Both:
        """What it and the champion said of the same test rows."""
        assert self.champion is not None
        return Both(self.champion, self.candidate)

    @cached_property
    def probed(self) -> Probed:
        """What a process of its own saw of the candidate's export."""
        rows, said = self.candidate.asked()
        return probe(self.candidate.export.uri, rows, said, modules=self.candidate.own_modules)


@dataclass(frozen=True)
class Decision:
    """What a check says."""

    check: str
    passed: bool
    said: str
    """Why, in one line."""
    numbers: Mapping[str, float]
    """What it was decided by."""


class Check(Protocol):
    """A question that a candidate has to stand; a frozen dataclass, whose fields are its bounds."""

    def decide(self, of: Judged) -> Decision:
        """The answer; it raises nothing that is the candidate's fault."""

"""What a champion and a candidate said of the same test rows, also where their runs were tested by others.

Of a champion that was tested by other rows, as yesterday's, its export is asked for the candidate's. Shape legend: n
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import DataError
from rtrain.evaluation.rows import TestRows
from rtrain.export.request import rows_of
from rtrain.metrics.state import Retrieved
from rtrain.release.anew import AT_ONCE, Said, found_of, said_of
from rtrain.release.finished import Finished, who_asked
from rtrain.schema import Schema

ROWS, WHOM = 65_536, 10_000
"""Test rows of a candidate that such a champion is asked for, as many as fewer bits are measured by; and who asks."""


@dataclass(frozen=True)
class Both:
    """A champion and a candidate."""

    champion: Finished
    candidate: Finished

    def tested_alike(self, prefix: str) -> bool:
        """Whether their runs were tested by the same rows of a label, by the prefix of its metrics."""
        before, after = (one.rows.get(prefix) for one in (self.champion, self.candidate))
        return before is not None and after is not None and before.same_rows(after)

    def sides(self, prefix: str) -> tuple[TestRows, TestRows, str]:
        """The champion's and the candidate's of the same rows of a label; and of which, where not of all.

        Raises:
            RtrainError: there are none: of a model that writes text, or the champion does not take the candidate's.
        """
        if self.tested_alike(prefix):
            return self.champion.rows[prefix], self.candidate.rows[prefix], ""
        kinds = {one.kind for one in (self.champion, self.candidate)}
        if kinds == {"ranks rows"}:
            return self._ranked(prefix)
        if kinds == {"finds items"}:
            return self._found
        raise DataError("the two were not scored on the same test rows. Train both on the same data and split")

    def _ranked(self, prefix: str) -> tuple[TestRows, TestRows, str]:
        before, after = self.champion.schema, self.candidate.schema
        names = [label.name for label in before.labels]
        label = dict(zip(after.metric_prefixes, after.labels, strict=True))[prefix]
        if label.name not in names or label.kind != before.label.kind:
            raise DataError(f"the champion does not tell {label.name!r}, but {', '.join(names)}")
        numbers, said = self._said
        taken = np.array([of is not None for of in said.outputs], bool)
        if not taken.any():
            raise DataError(f"the champion takes none of the candidate's test rows ({said.refused})")
        outputs = np.array([of[names.index(label.name)] for of in said.outputs if of is not None])
        rows = self.candidate.rows[prefix]
        known = np.isin(np.asarray(rows.scored.rows), numbers[taken])
        mine = rows.where(known)
        theirs = rows.where(known, outputs[np.searchsorted(numbers[taken], np.asarray(mine.scored.rows))])
        told = f"of the candidate's first {len(numbers)} test rows, which the champion's export scored anew"
        refused = int((~taken).sum())
        return theirs, mine, told + (f" but for {refused} that it refuses ({said.refused})" if refused else "")

    @cached_property
    def _said(self) -> tuple[NDArray[np.int64], Said]:
        rows = [np.asarray(of.scored.rows) for of in self.candidate.rows.values()]
        numbers = np.unique(np.concatenate(rows))[:ROWS]
        asked = _requests(self.candidate.dataset, numbers, self.champion.schema)
        said = said_of(self.champion.export.uri, asked, modules=self.champion.own_modules)
        _check(said.error)
        return numbers, said

    @cached_property
    def _found(self) -> tuple[TestRows, TestRows, str]:
        rows, metrics = self.candidate.rows[""], self.candidate.run.metrics
        if any(getattr(metric, "sampled", 0) for metric in metrics):
            raise DataError("the two were not scored on the same drawn items. Train both on the same data and split")
        depth = max((getattr(metric, "k", 0) for metric in metrics), default=0)
        whom, _ = who_asked(self.candidate.dataset, rows.scored, depth, WHOM)
        if not whom:
            raise DataError("its test split asks for nobody")
        numbers = np.unique(np.asarray(rows.scored.groups))[: len(whom)]
        found = found_of(self.champion.export.uri, whom, depth, modules=self.champion.own_modules)
        _check(found.error)
        mine = rows.where(np.isin(np.asarray(rows.scored.groups), numbers))
        wanted = [of["wanted"] for of in whom]
        scored = _retrieved(numbers, found.lists, wanted, depth)
        known, first = np.unique(np.asarray(mine.scored.groups), return_index=True)
        units = mine.units[first[np.searchsorted(known, scored.groups)]]  # they count within the split
        theirs = TestRows(replace(scored, rows=units), units, rows.grouped, rows.share)
        told = f"of the candidate's first {len(whom)} who asked, for whom the champion's export found anew"
        return theirs, mine, told + (f"; {found.unknown} it does not know" if found.unknown else "")


def _check(problem: str) -> None:
    if problem:
        raise DataError(f"the champion could not be asked for the candidate's test rows: {problem}")


def _requests(dataset: Any, numbers: Any, asked_by: Schema) -> list[dict[str, Any]]:
    """Rows of the test split by their numbers, in order, as a model of this schema is asked with them.

    Of a sample no more than a part of the split is in memory.
    """
    found = list[dict[str, Any]]()
    for start in range(0, len(numbers), AT_ONCE):
        some = numbers[start : start + AT_ONCE]
        first = int(some[0])
        table = dataset.raw("test", first, int(some[-1]) + 1)
        found += rows_of(table.take(some - first), dataset.schema, asked_by)
    return found


def _retrieved(
    numbers: NDArray[np.int64], lists: Sequence[Sequence[Any]], wanted: Sequence[Sequence[Any]], depth: int
) -> Retrieved:
    """As an evaluation keeps them: places that were found, and then what was missed."""
    groups, logits, labels = list[int](), list[float](), list[float]()
    for number, found, these in zip(numbers.tolist(), lists, map(set, wanted), strict=True):
        missed = len(these.difference(found))
        groups += [number] * (len(found) + missed)
        logits += [*(-float(place) for place in range(len(found))), *([-float(depth)] * missed)]
        labels += [*(float(item in these) for item in found), *([1.0] * missed)]
    return Retrieved(logits=np.array(logits), labels=np.array(labels), groups=np.array(groups, np.int64))

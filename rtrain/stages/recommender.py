"""Both stages in one process: who asks, found candidates, their features, their order, what may be shown."""

import asyncio
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from rtrain.errors import ConfigError, DataError, RtrainWarning, did_you_mean
from rtrain.export.artifact import Predictor
from rtrain.export.encoders import Asked, Encoders
from rtrain.export.popular import Unknown
from rtrain.schema import Id
from rtrain.stages.config import TwoStages
from rtrain.stages.features import Known, Name, Of
from rtrain.stages.filters import Ranked
from rtrain.stages.fit import Columns, exports_of, refuse_misfit
from rtrain.stages.known import Knowledge

Found = Sequence[tuple[Any, float]]
"""Items, and what the retrieval model says of each."""
TRIED = 8
"""Items, and users, whose features are looked at when a process starts: the first ones may be no one's."""
SPREAD = 64 << 20
"""Bytes that the rows of all candidates may have of one request."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One request: several who ask."""

    asked: Asked
    whom: Sequence[Any]
    """As `Encoders.recommend`."""
    k: int
    users: Sequence[Name] | None = None
    """Whose histories they are; none: of a model of histories nobody's, else `whom`."""
    times: Sequence[Sequence[int]] | None = None
    context: Sequence[Known] | None = None
    """Of each who asks, columns that go before all that is known."""


@dataclass
class Answer:
    """To one request."""

    lists: list[list[tuple[Any, float]]] = field(default_factory=list)
    """Of each who asks, items with scores, best first."""
    without: list[Of] = field(default_factory=list)
    """Of whom nothing was known in time."""
    unknown: list[int] = field(default_factory=list)
    """Who the retrieval model does not know, by number: their items are the most popular ones, in that order."""
    problem: str = ""
    """Why there are none; with `without`, that these features did not come, and nobody's fault who asks."""


class Recommender:
    """The two exports, loaded on one process, and the store of features."""

    def __init__(self, stages: TwoStages):
        """Load and check both.

        Raises:
            UserError: there is no export.
            CheckpointError: as `Encoders` and `Predictor`.
            ConfigError: as `exports_of` and `refuse_misfit`, or the two call users or items otherwise.
        """
        self.stages = stages
        finds, ranks = exports_of(stages)
        self.encoders, self.ranker = Encoders(finds), Predictor(ranks)
        schema = self.ranker.asked
        self._columns = schema.arrow(label=False).names
        self._fits = Columns(self.ranker.rows.model_fields)
        refuse_misfit(stages, schema, self._fits, self.encoders.of_histories)
        self._label = [label.name for label in schema.labels].index(stages.label) if stages.label else 0
        self._refuse_other_names("item")
        if not self.encoders.of_histories:
            self._refuse_other_names("user")
        self._times = next((f.times for f in schema.timed if f.name == stages.history), "") if stages.history else ""
        self._clock = schema.time if schema.time in self._columns else ""
        """Filled with now, where the request does not say when it is."""
        self.known = Knowledge(stages, self.ranker, self._fits)

    def _refuse_other_names(self, of: Of) -> None:
        """Both models have to call users and items alike, and the second to know what the first one finds."""
        named = getattr(self.stages, of)
        feature = next(f for f in self.ranker.asked.ids if f.name == named and isinstance(f, Id))
        if feature.of_words != self.encoders.of_words:
            kinds = ("whole numbers", "strings")
            raise ConfigError(
                f"TwoStages.{of}: the retrieval model calls each {of} by {kinds[self.encoders.of_words]}, {named!r} of "
                f"the ranking model by {kinds[feature.of_words]}. Train both on the same names"
            )
        bounded = not (feature.of_words or feature.hashed or feature.vocabulary_file)
        if of == "item" and bounded and (largest := pc.max(self.encoders.items).as_py()) >= feature.table_rows:
            raise ConfigError(
                f"TwoStages.item: the retrieval model finds item {largest}, the ranking model knows "
                f"{feature.table_rows} (rows of {named!r}). Train it on the same catalogue"
            )

    async def start(self) -> None:
        """Ask the store of some items and users; a feature of a filter that no item has is warned of.

        Raises:
            ConfigError: as `Knowledge.start`.
        """
        users = [] if self.encoders.of_histories else self.encoders.some(TRIED)[0]
        there = await self.known.start({"item": self.encoders.items[:TRIED].to_pylist(), "user": users})
        items = there.get("item", [])
        names = sorted({name for known in items if isinstance(known, Mapping) for name in known})
        for rule in self.stages.filters if items else ():
            wanted = getattr(rule, "feature", None)
            if isinstance(wanted, str) and wanted not in names:
                near = did_you_mean(wanted, names) or f". They have {', '.join(names) or 'none'}"
                text = f"TwoStages.filters: {type(rule).__name__} asks for {wanted!r}, which the store knows of none of"
                warnings.warn(f"{text} the first {len(items)} items{near}", RtrainWarning, stacklevel=2)

    def want(
        self,
        whom: Sequence[Any],
        k: int,
        *,
        users: Sequence[Name] | None = None,
        times: Sequence[Sequence[int]] | None = None,
        seen: Sequence[Sequence[Any]] | None = None,
        context: Sequence[Known] | None = None,
        unknown: Unknown = "refuse",
    ) -> Wanted:
        """A request, checked.

        Raises:
            DataError: as `Encoders.recommend`; more items than there are candidates; a column that is not the model's.
        """
        if not 1 <= k <= self.stages.candidates:
            raise DataError(f"k: {self.stages.candidates} candidates are ranked, got {k}")
        for name, given in (("users", users), ("context", context)):
            if given is not None and len(given) != len(whom):
                raise DataError(f"{name}: {len(given)} for {len(whom)} who ask. Give one for each")
        if users is not None and not self.encoders.of_histories:
            raise DataError("users: this model knows who asks by name. Leave them out")
        for number, columns in enumerate(context or ()):
            for name in columns:
                if name in (self.stages.user, self.stages.item):
                    raise DataError(f"context[{number}].{name}: who asks and what is offered are not said by it")
                if name not in self._columns:
                    near = did_you_mean(name, self._columns) or f". Those are {', '.join(self._columns)}"
                    raise DataError(f"context[{number}]: the ranking model has no column {name!r} to be said{near}")
                if why := self._fits.wrong(name, columns[name]):
                    raise DataError(f"context[{number}].{name}: {why}")
        self._refuse_much(whom, context)
        asked = self.encoders.ask(whom, times, seen, unknown)
        return Wanted(asked=asked, whom=whom, k=k, users=users, times=times, context=context)

    def _refuse_much(self, whom: Sequence[Any], context: Sequence[Known] | None) -> None:
        """What stands in the row of each candidate is bounded as a body is, whose rows are all there.

        Raises:
            DataError: it is more.
        """
        of_each = {"context": context or ()} | ({"whom": whom} if self.stages.history else {})
        for name, given in of_each.items():
            if (size := _size(given)) > (most := SPREAD // self.stages.candidates):
                raise DataError(
                    f"{name}: {size} bytes for each of {self.stages.candidates} candidates; at most {most}. Send less"
                )

    async def answer(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Several requests at once; one that cannot be ranked does not take the others along."""
        found = iter(self.encoders.find(Asked.joined([one.asked for one in wanted]), self.stages.candidates))
        lists: list[list[Found]] = [[next(found) for _ in one.whom] for one in wanted]
        users = [name for one in wanted for name in self._users(one)]
        items = [item for those in lists for of in those for item, _ in of]
        (of_users, no_users), (of_items, no_items) = await asyncio.gather(
            self.known.of("user", list(dict.fromkeys(users))), self.known.of("item", list(dict.fromkeys(items)))
        )
        without: list[Of] = [*(["user"] if no_users else []), *(["item"] if no_items else [])]  # type: ignore[list-item]
        with suppress(DataError):
            return self._ordered(wanted, lists, without, of_users, of_items)
        # What the store knows and a column cannot hold is as if it were not known.
        of_users, of_items = self.known.fitting("user", of_users), self.known.fitting("item", of_items)
        if len(wanted) > 1:
            with suppress(DataError):
                return self._ordered(wanted, lists, without, of_users, of_items)
        # Whose fault it is, is found by each alone.
        return [self._alone(one, those, without, of_users, of_items) for one, those in zip(wanted, lists, strict=True)]

    def _ordered(
        self,
        wanted: Sequence[Wanted],
        lists: Sequence[Sequence[Found]],
        without: list[Of],
        of_users: Mapping[Name, Known],
        of_items: Mapping[Name, Known],
    ) -> list[Answer]:
        """What was found in the ranking model's order, all in one pass.

        Raises:
            DataError: a row of it cannot be ranked.
        """
        ranked = [self._ranked(one, those, of_users, of_items) for one, those in zip(wanted, lists, strict=True)]
        scored = iter(self._scores([row for _, rows in ranked for row in rows]))
        return [
            Answer(
                self._shown(one, kept, [next(scored) for _ in rows], of_items),
                without,
                np.flatnonzero(one.asked.strangers).tolist(),
            )
            for one, (kept, rows) in zip(wanted, ranked, strict=True)
        ]

    def _alone(
        self,
        one: Wanted,
        found: Sequence[Found],
        without: list[Of],
        of_users: Mapping[Name, Known],
        of_items: Mapping[Name, Known],
    ) -> Answer:
        """Of one request, or why there is none."""
        try:
            return self._ordered([one], [found], without, of_users, of_items)[0]
        except DataError as error:
            if lacking := [name for of in without for name in self.known.needed[of]]:
                return Answer(without=without, problem=self._late(without, lacking))
            kept, _ = self._ranked(one, found, of_users, of_items)
            return Answer(problem=self._unknown(one, kept, of_users, of_items) or str(error))

    def _late(self, without: Sequence[Of], lacking: Sequence[str]) -> str:
        """Why nobody can be answered without what did not come."""
        whose, columns = " and ".join(without), ", ".join(map(repr, lacking))
        return (
            f"features of each {whose} did not come in {self.stages.timeout_ms:g} ms, or their store failed, and "
            f"TwoStages.defaults has no value of {columns}. Ask again; the log of the replicas says why"
        )

    def _unknown(
        self,
        one: Wanted,
        lists: Sequence[Found],
        of_users: Mapping[Name, Known],
        of_items: Mapping[Name, Known],
    ) -> str:
        """Whose features lack what the ranking model needs; empty: nobody's."""
        said = {column for columns in one.context or () for column in columns}
        ranked = [number for number in range(len(lists)) if not one.asked.strangers[number]]
        users, items = self._users(one), [item for number in ranked for item, _ in lists[number]]
        whose: tuple[tuple[Of, Sequence[Name], Mapping[Name, Known]], ...] = (
            ("user", [users[number] for number in ranked] if users else [], of_users),
            ("item", items, of_items),
        )
        for of, names, known in whose:
            needed = [name for name in self.known.needed[of] if name not in said]
            for name in names:
                if lacking := [column for column in needed if column not in known.get(name, {})]:
                    return (
                        f"{'whom' if of == 'user' else 'features'}: those of {of} {name!r} lack "
                        f"{', '.join(map(repr, lacking))}, which the ranking model needs and TwoStages.defaults does "
                        "not have"
                    )
        for number in ranked:
            there = {self._clock, self._times}.union(
                one.context[number] if one.context else (),
                of_users.get(users[number], ()) if users else (),
                *(of_items.get(item, ()) for item, _ in lists[number]),
            )
            if lacking := [repr(name) for name in self.known.asked if name not in there]:
                return (
                    f"context[{number}]: the ranking model needs {', '.join(lacking)}, which neither the request nor "
                    "TwoStages.defaults say"
                )
        return ""

    def _users(self, one: Wanted) -> Sequence[Name]:
        """Names of those who ask, as far as they are said."""
        return (one.users or ()) if self.encoders.of_histories else one.whom

    def _ranked(
        self,
        one: Wanted,
        lists: Sequence[Found],
        of_users: Mapping[Name, Known],
        of_items: Mapping[Name, Known],
    ) -> tuple[list[Found], list[dict[str, Any]]]:
        """Candidates that can be ranked, and what the ranking model is asked: of who is known a row for each of them.

        An item whose features lack what is needed is left out where others have it: one new in the catalogue would
        else cost all that it is found for their answers.
        """
        stages, users = self.stages, self._users(one)
        kept, rows = list[Found](), list[dict[str, Any]]()
        for number, found in enumerate(lists):
            if one.asked.strangers[number]:
                kept.append(found)
                continue
            base = dict(stages.defaults) | ({self._clock: int(time.time())} if self._clock else {})
            if users:
                base |= {**of_users.get(users[number], {}), stages.user: users[number]}
            if stages.history:
                base[stages.history] = one.whom[number]
                if self._times and one.times:
                    base[self._times] = one.times[number]
            context = one.context[number] if one.context else {}
            needed = [name for name in self.known.needed["item"] if name not in base and name not in context]
            whole = [pair for pair in found if all(name in of_items.get(pair[0], {}) for name in needed)]
            if 0 < len(whole) < len(found):
                out = next(item for item, _ in found if any(name not in of_items.get(item, {}) for name in needed))
                lacks = ", ".join(name for name in needed if name not in of_items.get(out, {}))
                self.known.say("item %r is no candidate: its features lack what is needed: %s", out, lacks)
            kept.append(whole or found)
            rows += [{**base, **of_items.get(item, {}), **context, stages.item: item} for item, _ in kept[-1]]
        return kept, rows

    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        if not rows:
            return []
        scores = np.array(self.ranker.predict(rows), np.float64).reshape(len(rows), -1)[:, self._label]
        if not np.isfinite(scores).all():
            row = rows[int(np.argmin(np.isfinite(scores)))]
            raise DataError(f"the ranking model gives no number for item {row[self.stages.item]!r} and such values")
        found: list[float] = scores.tolist()
        return found

    def _shown(
        self,
        one: Wanted,
        lists: Sequence[Found],
        scores: Sequence[float],
        of_items: Mapping[Name, Known],
    ) -> list[list[tuple[Any, float]]]:
        """The items of each who asks, in their order, as far as the filters let them through."""
        given, answer = iter(scores), []
        for number, found in enumerate(lists):
            known = not one.asked.strangers[number]
            ranked: Sequence[Ranked] = [
                Ranked(item, next(given) if known else share, of_items.get(item, {})) for item, share in found
            ]
            ranked = sorted(ranked, key=lambda of: -of.score)
            for rule in self.stages.filters:
                ranked = rule.keep(ranked, one.context[number] if one.context else {})
            answer.append([(of.item, of.score) for of in ranked[: one.k]])
        return answer


def _size(value: Any) -> int:
    """Bytes, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8

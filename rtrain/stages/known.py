"""What the ranking model can be told of users and items: what a store knows in time, as far as it fits its columns."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rtrain.errors import ConfigError, one_line
from rtrain.export.artifact import Predictor
from rtrain.stages.config import TwoStages
from rtrain.stages.features import Known, Name, Of, StoreError
from rtrain.stages.fit import Columns

LOG = logging.getLogger("rtrain.stages")
QUIET_S = 60.0
"""Seconds between two lines of the log that say the same of others."""
START_S = 10.0
"""Seconds that the store has when a process starts."""


class Knowledge:
    """The store, asked for one ranking model."""

    def __init__(self, stages: TwoStages, ranker: Predictor, fits: Columns):
        """Open the store of `stages`; `fits`: what the columns of `ranker` can hold."""
        self.store = stages.features.open()
        self._timeout_ms = stages.timeout_ms
        fields = ranker.rows.model_fields
        given = {stages.user, stages.item, stages.history, *stages.defaults}
        self.needed: dict[Of, list[str]] = {
            of: [
                f.name
                for f in ranker.asked.features
                if f.entity == of and f.name in fields and fields[f.name].is_required() and f.name not in given
            ]
            for of in get_args(Of)
        }
        """Columns that the ranking model needs of each, and no default stands for."""
        self.asked = [
            f.name
            for f in ranker.asked.features
            if f.entity not in self.needed and f.name in fields and fields[f.name].is_required() and f.name not in given
        ]
        """The same of neither: what a request says."""
        self._fits = fits
        self._quiet_until: dict[str, float] = {}

    async def start(self, some: Mapping[Of, Sequence[Name]]) -> dict[Of, Sequence[Known]]:
        """Ask the store of some items and users, as a request would; what it knows of each, where it is there.

        Raises:
            ConfigError: what the ranking model needs of them is neither known nor has a default, or the store refuses.
        """
        asked = (asyncio.wait_for(self.store.get(of, names), START_S) for of, names in some.items())
        there: dict[Of, Sequence[Known]] = {}
        for of, found in zip(some, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(found, StoreError):
                raise found
            if isinstance(found, Exception):  # it may be back when somebody asks
                continue
            if isinstance(found, BaseException):
                raise found
            there[of], names = found, some[of]
            needed = [name for name in self.needed[of] if not any(name in known for known in found)]
            if names and needed:
                raise ConfigError(
                    f"TwoStages.features: the ranking model needs {', '.join(map(repr, needed))} of each {of}, which "
                    f"features of none of {len(names)} have ({', '.join(map(repr, names[:3]))}, ...). Fill them in, "
                    "or give TwoStages.defaults"
                )
        return there

    async def of(self, of: Of, names: Sequence[Name]) -> tuple[dict[Name, Known], bool]:
        """What the store knows of each, and whether it said nothing in time."""
        try:
            found: Sequence[object] = []  # a store of somebody's own may say anything
            if names:
                found = await asyncio.wait_for(self.store.get(of, names), self._timeout_ms / 1e3)
        except Exception as error:  # away, or too slow: an answer with defaults is better than none
            self.say("features of each %s did not come, and are left out: %s", of, one_line(error))
            return {}, True
        there: dict[Name, Known] = {}
        for name, known in zip(names, found, strict=True):
            if isinstance(known, Mapping):
                there[name] = {column: value for column, value in known.items() if value is not None}
            else:
                self.say("features of %s %r are left out: they are no mapping of columns but %.80r", of, name, known)
                there[name] = {}
        return there, False

    def fitting(self, of: Of, known: Mapping[Name, Known]) -> dict[Name, Known]:
        """Of what the store knows all that the ranking model can be given; the log says of the rest."""
        fits: dict[Name, Known] = {}
        for name, values in known.items():
            wrong = {column: why for column, value in values.items() if (why := self._fits.wrong(column, value))}
            fits[name] = {column: value for column, value in values.items() if column not in wrong}
            if wrong:
                why = "; ".join(f"{column}: {said}" for column, said in wrong.items())
                self.say("features of %s %r are left out: %.300s", of, name, why)
        return fits

    def say(self, text: str, *of: Any) -> None:
        """A line of the log, if it did not say the same of others a moment ago."""
        if time.monotonic() > self._quiet_until.get(text, 0.0):
            self._quiet_until[text] = time.monotonic() + QUIET_S
            LOG.warning(text, *of)

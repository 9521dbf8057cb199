"""What encodes users and items of an exported retrieval model: the two towers, or a history's end and its items.

Shape legend: B users, I items of the catalogue, E dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from rtrain import config, notices
from rtrain.data.columns import Lists
from rtrain.data.retrieval_batch import Ids
from rtrain.errors import CheckpointError, DataError
from rtrain.export.artifact import read_head
from rtrain.export.head import HEAD
from rtrain.export.index import INDEX, Index, Stated, Vectors, find, seen_of
from rtrain.export.popular import Popular, Unknown
from rtrain.export.retrieval import (
    ITEMS,
    KNOWN,
    USERS,
    assembly_of,
    joined,
    places_of,
    queries_of,
    vectors_in,
    vectors_of,
)
from rtrain.export.weights import fetched, load, loading
from rtrain.metrics.catalogue import NO_ITEM, rank_catalogue
from rtrain.models.unsharded import Unsharded


@dataclass(frozen=True)
class Asked:
    """Who asks for items."""

    context: Lists
    """Of each the user's row, or the rows of the items that were had."""
    when: Lists | None
    """Of histories, when."""
    hidden: Lists
    """Places in the catalogue that are not offered."""
    strangers: NDArray[np.bool_]
    """Of whom nothing is known, and whose context tells nothing: they are offered what is popular."""

    @classmethod
    def joined(cls, several: "Sequence[Asked]") -> "Asked":
        """Of several, of one export, one behind the other."""
        whens = [one.when for one in several if one.when is not None]
        return cls(
            _end_to_end([one.context for one in several]),
            _end_to_end(whens) if whens else None,
            _end_to_end([one.hidden for one in several]),
            np.concatenate([one.strangers for one in several]),
        )


def _end_to_end(several: Sequence[Lists]) -> Lists:
    return Lists.of(np.concatenate([x.values for x in several]), np.concatenate([x.lengths for x in several]))


class Encoders:
    """An export of a retrieval model on one process: users and items to vectors whose product is the score.

    Vectors are as the objective compares them (of length 1 under `cosine`), and equal the trainer's to 1e-5.
    """

    @notices.aside()
    @loading
    def __init__(self, uri: str):
        """Load and check an export.

        Raises:
            CheckpointError: no export of a retrieval model there, a newer format, or files that were altered.
        """
        self.head = read_head(uri, "data", "predict_column, or rtrain serve")
        self._data = config.from_dict(self.head["data"])
        model = config.from_dict(self.head["model"])
        self._model = Unsharded(model.blueprint(self._data.facts), seed=0, table_device="meta")
        tables, known = dict[str, pa.Table](), dict[str, Tensor]()

        stated = Stated.from_json(self.head["index"]) if "index" in self.head else None
        if (stated is None) != (INDEX not in self.head["files"]):
            raise CheckpointError(f"export {uri!r}: {HEAD} does not say of {INDEX} what it is. Export the run again")
        index = list[Index]()

        def other(name: str, local: Path) -> None:
            if name == KNOWN:
                known.update(load_file(local))
            elif stated and name == INDEX:
                index.append(Index(local, stated.length))
            else:
                tables[name] = pq.read_table(local)

        load(self._model, fetched(uri, self.head["files"]), other)
        self._users = tables[USERS]["user"].combine_chunks() if USERS in tables else None
        self._timed = "times" in {name for takes in self._model._takes for name in takes} and self.head["timed"]
        self._assembly, items = assembly_of(known, self._data), tables[ITEMS]
        self.items: pa.Array = items["item"].combine_chunks()
        """Items of the catalogue, as the data call them, [I]."""
        self._rows = items["row"].to_numpy()
        self._raw = self._users is not None
        self.vectors: Tensor = torch.from_numpy(vectors_in(items).copy())
        """Of each of them, float32 [I, E]."""
        self._popular = Popular(items["often"].to_numpy()) if "often" in items.column_names else None
        self.index = stated
        """What the export says of its index; none: it has none, and all items are compared."""
        self._index = index[0] if index else None
        if self._index and self.index:
            self._index.refuse_other(tuple(self.vectors.shape), self.index.cells)

    @property
    def of_histories(self) -> bool:
        """Whether who asks is known by the items that they had; else by the user's name."""
        return self._data.longest is not None

    @property
    def of_words(self) -> bool:
        """Whether the data call users and items by strings; else by whole numbers."""
        return not pa.types.is_integer(self.items.type)

    @property
    def timed(self) -> bool:
        """Whether the model reads when each item of a history was had."""
        return self._timed

    def user(self, whom: Sequence[Any], times: Sequence[Sequence[int]] | None = None) -> Vectors:
        """Vectors of those who ask, float32 [B, E].

        Args:
            whom: users, as the data call them; of a model of histories each one's items instead, oldest first.
            times: of histories, when each item was had, seconds since 1970 as in the data: a model that reads them
                (HSTU) wants them.

        Raises:
            DataError: somebody or something that is not in the data, an empty history, or times that do not fit it.
        """
        return self._vectors(*self._asked(whom, times, "refuse")[:2])

    @notices.aside()
    def _vectors(self, context: Lists, when: Lists | None) -> Vectors:
        if not len(context.lengths):
            return np.empty((0, self.vectors.shape[1]), np.float32)
        vectors: Vectors = queries_of(self._model, self._assembly, context, when).numpy()
        return vectors

    @notices.aside()
    def item(self, items: Sequence[Any]) -> Vectors:
        """Vectors of items, as the data call them, float32 [len(items), E].

        Raises:
            DataError: an item that is not in the data.
        """
        rows = self._item_rows(items, "items")
        found = [vectors.numpy() for _, vectors in vectors_of(self._model, self._assembly, rows)]
        return np.concatenate(found) if found else np.empty((0, self.vectors.shape[1]), np.float32)

    def recommend(
        self,
        whom: Sequence[Any],
        k: int = 10,
        *,
        times: Sequence[Sequence[int]] | None = None,
        seen: Sequence[Sequence[Any]] | None = None,
        exact: bool = False,
        unknown: Unknown = "refuse",
    ) -> list[list[tuple[Any, float]]]:
        """The best k items of the catalogue for each of those who ask, with their scores, best first.

        Args:
            whom: as `user`; so is `times`.
            k: how many; fewer come back where the catalogue has no more.
            seen: items that each one is not to be offered, as the data call them; none: all are candidates, but that of
                a model of histories those of the history are left out where the data say `hide_seen`.
            exact: compare all items also where the export has an index, which misses some: `index` says how many.
            unknown: of users, and items of a history, that are not in the data. `popular`: such items are left out, and
                such users, and whose history is empty then, are offered the items that training had most often, each
                with the share that it was of all, as its score.

        Raises:
            DataError: as `user`, or another number of `seen` lists.
        """
        return self.find(self.ask(whom, times, seen, unknown), k, exact=exact)

    def some(self, count: int) -> tuple[list[Any], list[list[int]] | None]:
        """Up to so many who may ask, and the times of their histories where those are wanted: to try the model with."""
        if self.of_histories:
            several = [self.items[at : at + 3].to_pylist() for at in range(min(count, len(self.items)))]
            return several, [list(range(len(history))) for history in several] if self._timed else None
        users = self._users if self._users is not None else pa.array(range(self._data.users))
        return users[:count].to_pylist(), None

    def ask(
        self,
        whom: Sequence[Any],
        times: Sequence[Sequence[int]] | None = None,
        seen: Sequence[Sequence[Any]] | None = None,
        unknown: Unknown = "refuse",
    ) -> "Asked":
        """Who asks, checked, as `recommend` takes it: several can be joined, and found for at once.

        Raises:
            DataError: as `recommend`.
        """
        if seen is not None and len(seen) != len(whom):
            raise DataError(f"seen: {len(seen)} lists for {len(whom)} who ask. Give one for each")
        if unknown == "popular" and not self._popular:
            raise DataError("unknown: this export does not say which items are popular. Export the run again")
        context, when, strangers = self._asked(whom, times, unknown)
        if seen is None and self._data.longest is not None and self._data.hide_seen:
            seen = whom
        lists = [
            places_of(self._item_rows(those, f"seen[{n}]", unknown), self._rows)
            for n, those in enumerate(seen or [[]] * len(whom))
        ]
        return Asked(context, when, joined(lists), strangers)

    def find(self, asked: "Asked", k: int, *, exact: bool = False) -> list[list[tuple[Any, float]]]:
        """As `recommend`, for who was asked for by `ask`."""
        queries = torch.from_numpy(self._vectors(asked.context, asked.when))
        if self._index and self.index and not exact:
            found = find(self._index, self.index.depths, queries, self.vectors, asked.hidden, k)
        else:
            found = rank_catalogue(queries, self.vectors, k=k, seen=seen_of(asked.hidden))
        lists = [
            [(at, score) for at, score in zip(*both, strict=True) if at != NO_ITEM]
            for both in zip(found.items_UK.tolist(), found.scores_UK.tolist(), strict=True)
        ]
        for number in np.flatnonzero(asked.strangers):
            assert self._popular, "else nobody is asked for who is not known"
            first, stop = asked.hidden.offsets[number : number + 2]
            lists[number] = self._popular.best(k, asked.hidden.values[first:stop])
        return [[(self.items[at].as_py(), score) for at, score in of] for of in lists]

    def _asked(
        self, whom: Sequence[Any], times: Sequence[Sequence[int]] | None, unknown: Unknown
    ) -> tuple[Lists, Lists | None, NDArray[np.bool_]]:
        longest = self._data.longest
        if longest is None:
            if times is not None:
                raise DataError("times: this model reads users' ids, which have none. Leave them out")
            rows = self._found(whom, self._users, self._data.users, "user", "whom", unknown)
            return Lists.of(np.maximum(rows, 0), np.ones(len(rows), np.int64)), None, rows < 0
        if self._timed and times is None:
            raise DataError("times: this model reads when each item was had, seconds since 1970. Give a list a history")
        if times is not None and len(times) != len(whom):
            raise DataError(f"times: {len(times)} lists for {len(whom)} histories. Give one for each")
        histories, moments, strangers = list[Ids](), list[Ids](), list[bool]()
        for number, history in enumerate(whom):
            where = f"histories[{number}]"
            least = 1 if unknown == "refuse" else 0
            if (
                isinstance(history, str | bytes)
                or not isinstance(history, Sequence | np.ndarray)
                or len(history) < least
            ):
                of = ", of one at least" if least else ""
                raise DataError(f"{where}: it must be a list of items, oldest first{of}, got {history!r}")
            rows = self._item_rows(history, where, unknown)
            when = np.arange(len(rows)) if times is None else _moments(times[number], len(rows), f"times[{number}]")
            rows, when = rows[rows >= 0], when[rows >= 0]
            strangers.append(not len(rows))
            if strangers[-1]:
                rows, when = self._rows[:1], np.zeros(1, np.int64)
            histories.append(rows[-longest:])
            moments.append(when[-longest:])
        lengths = np.array([len(rows) for rows in histories], np.int64)
        had, at = (Lists.of(np.concatenate([self._rows[:0], *x]), lengths) for x in (histories, moments))
        return had, at, np.array(strangers, bool)

    def _item_rows(self, items: Sequence[Any] | NDArray[Any], where: str, unknown: Unknown = "refuse") -> Ids:
        return self._found(items, self.items if self._raw else None, self._data.items, "item", where, unknown)

    def _found(
        self,
        values: Sequence[Any] | NDArray[Any],
        names: pa.Array | None,
        rows: int,
        what: str,
        where: str,
        unknown: Unknown,
    ) -> Ids:
        """The row of each in its table; -1 of an unknown one that is not refused."""
        kind = pa.int64() if names is None else names.type
        try:
            given = pa.array(values)
            # Arrow itself would take 2.5 for 2.
            if not (pa.types.is_null(given.type) or pa.types.is_integer(given.type) == pa.types.is_integer(kind)):
                raise pa.ArrowTypeError
            given = given.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            wanted, fits = ("whole numbers", _is_whole) if pa.types.is_integer(kind) else (f"{kind}s", _is_word)
            others = [value for value in values if value is not None and not fits(value)]
            first = others[0] if others else max((value for value in values if value is not None), key=abs)
            raise DataError(f"{where}: the data call each {what} by {wanted}, got {first!r:.60}") from None
        found = given if names is None else pc.index_in(given, value_set=names)
        known = f"valid are 0..{rows - 1}" if names is None else f"the data have {len(names)} others"
        wrong = pc.fill_null(pc.or_(pc.less(found, 0), pc.greater_equal(found, rows)), True)
        if unknown == "refuse" and pc.any(wrong).as_py():
            first = given[pc.index(wrong, True).as_py()].as_py()
            raise DataError(f"{where}: there is no {what} {first!r} in the data that it was trained on; {known}")
        places: Ids = pc.if_else(wrong, -1, found.cast(pa.int64())).to_numpy()
        return places


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _moments(times: Sequence[int], count: int, where: str) -> Ids:
    if len(times) != count:
        raise DataError(f"{where}: {len(times)} times for {count} items. Give one for each")
    if any(isinstance(t, bool) or not isinstance(t, int | np.integer) for t in times):
        raise DataError(f"{where}: times are whole seconds since 1970, got {times!r:.80}")
    if wrong := next(((a, b) for a, b in pairwise(times) if b < a), None):
        raise DataError(f"{where}: they fall from {wrong[0]} to {wrong[1]}; they must rise, oldest first")
    return np.asarray(times, np.int64)

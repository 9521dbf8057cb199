"""Positive interactions that are open for reading: batches of training, and every item and user of an evaluation.

Shape legend: N interactions, U users, B rows, T positions of the longest row (1 for pairs).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtrain.data.alike import HadTogether
from rtrain.data.assembly import Assembly
from rtrain.data.baseline import Baseline
from rtrain.data.coded import Coded
from rtrain.data.columns import Lists
from rtrain.data.feedback import Feedback
from rtrain.data.graph import Graph
from rtrain.data.holdout import TEST, TRAIN, VALID, Codes
from rtrain.data.leakage import NAMES, Leakage, refuse_later, refuse_repeats
from rtrain.data.negatives import Negatives, Sampler
from rtrain.data.of_users import OfUsers
from rtrain.data.order import Order, Window
from rtrain.data.popular import of_popular, refuse_sampled
from rtrain.data.reader import Ready, Whole, as_it_is
from rtrain.data.retrieval_batch import Ids, RetrievalBatch
from rtrain.data.samples import Samples
from rtrain.data.side import SideFeatures
from rtrain.data.split import Ranges, Split, nobody, trained_on
from rtrain.data.targets import laid_out, spread, starts_of
from rtrain.errors import ConfigError, DataError
from rtrain.metrics.state import Retrieved


@dataclass(frozen=True)
class Rows:
    """Some of a data set's samples of one kind, by number."""

    data: "RetrievalDataset"
    numbers: Ids

    def select(self, indices: NDArray[np.integer]) -> "Rows":
        """The samples at the given places."""
        return Rows(self.data, self.numbers.take(indices))

    def batch_of(self, parts: Sequence["Rows"], whole: Whole) -> RetrievalBatch:
        """The samples of all parts."""
        numbers = np.concatenate([part.numbers for part in parts])
        start, stop = self.data.ranges["train"]
        if numbers[0] < start or numbers[0] >= stop:
            return self.data.asked(numbers, whole.rows)
        seed, epoch = whole.key
        if seed is None:
            raise ConfigError("the training split of positive interactions is read in a seed's order alone")
        return self.data.trained(numbers, start + whole.places, (seed, epoch))


class RetrievalDataset(Samples[RetrievalBatch]):
    """Positive interactions, split, with their negatives."""

    split_field = "data.split"

    def __init__(
        self,
        feedback: Feedback,
        codes: Codes,
        *,
        negatives: Negatives,
        longest: int | None,
        train_rows: int | None,
        prefetch: int,
        source: str,
        leakage: Leakage,
        in_time: bool,
        hide_seen: bool = True,
        tables: tuple[int, int] | None = None,
        side: Mapping[str, Mapping[str, Lists]] | None = None,
        users_table: SideFeatures | None = None,
    ):
        """`codes`: the split of each interaction, [N]; `longest`: positions of a history, none for pairs.

        `tables`: rows of the users' and of the items' table, where batches are to carry the graph of training. `side`:
        of "user" and "item", feature -> what it says of each id. `in_time`: whether all that trains is older than all
        that validates, and that than all that tests. `users_table`: whose columns slices may name.
        """
        self.feedback, self.codes, self.longest, self.side = feedback, codes, longest, side or {}
        self.negatives = negatives
        self._source, self._leakage, self._in_time, self._hide_seen = source, leakage, in_time, hide_seen
        self.users, self.starts = feedback.starts()
        self.catalogue = np.unique(feedback.item)
        """Every item that occurs, rising."""
        train = codes == TRAIN
        if not train.any():
            raise DataError("data.split: it leaves nothing to train on. Bring more data, or change data.split")
        self._kept: dict[tuple[int, bool], tuple[Lists, Lists]] = {}
        self._to_find: dict[int, Lists] = {}
        self._not_shown: dict[int, Ids] = {}
        self._trained = self._lists(TRAIN, alone=True)[0].lengths
        self._of_users = OfUsers(users_table, self.users, self._trained)
        if negatives.count >= len(self.catalogue):
            raise DataError(
                f"data.negatives.count: {negatives.count} negatives, but {source} has {len(self.catalogue)} different "
                "items. Lower it"
            )
        if negatives.count and negatives.by != "all":
            self._refuse_who_had_all()
        self.sampler = Sampler(negatives, self.catalogue, feedback.user[train], feedback.item[train])
        self.graph: Graph | None = None
        if tables is not None:
            self.graph = Graph(feedback.user[train], feedback.item[train], users=tables[0], items=tables[1])
        had = np.searchsorted(self.catalogue, feedback.item[train])
        self.often = np.bincount(had, minlength=len(self.catalogue))
        """Of each item of the catalogue, how often it was had in training."""
        samples = self._samples()
        ranges: Ranges = {}
        at = 0
        for split, of in samples.items():
            if not len(of):
                code = VALID if split == "valid" else TEST
                there, later = self._lists(code, alone=True)[0].lengths > 0, split != "train"
                known = self._trained > 0
                hidden, strangers = later and bool((there & known).any()), later and bool((there & ~known).any())
                raise nobody(split, hidden=hidden, strangers=strangers)
            ranges[split] = (at, at + len(of))
            at += len(of)
        ranges["train"] = trained_on(ranges["train"], train_rows)
        self._of = np.concatenate(list(samples.values()))
        counted: list[Any] = [feedback.fingerprint, hashlib.sha256(codes.tobytes()).hexdigest(), longest, ranges]
        for feature, lists in (pair for of in self.side.values() for pair in of.items()):
            counted.append([feature, *(hashlib.sha256(x.tobytes()).hexdigest() for x in (lists.values, lists.offsets))])
        super().__init__(ranges, hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:16], prefetch)
        self.assembly = Assembly(longest, self.side, self.graph)
        self.inputs = self.assembly.inputs

    def refuse_rows(self) -> None:
        """As `Samples`."""
        if self._leakage == "allow":
            return
        refuse_repeats(self.feedback, self.codes, source=self._source, pairs=self.longest is None)
        if self._in_time:
            times = [self.feedback.time[self.codes == code] for code in (TRAIN, VALID, TEST)]
            ends = [(name, of.min(), of.max()) for name, of in zip(NAMES, times, strict=True)]
            refuse_later(ends, source=self._source)

    def refuse_columns(self, names: Sequence[str], asker: str) -> None:
        """As `Samples`: what is known of users."""
        self._of_users.refuse(names, asker)

    def coded(self, split: Split, names: tuple[str, ...]) -> Coded:
        """As `Samples`, of the users that a split asks for, in one column: retrieval groups by none."""
        (name,) = names
        return self._of_users.coded(split, name, self._of[slice(*self._range(split))])

    def refuse_metrics(self, metrics: Sequence[Any]) -> None:
        """As `Samples`."""
        refuse_sampled(metrics, len(self.catalogue))

    def remarks(self, boosting_rows: int, ranks: int = 1) -> tuple[str, ...]:
        """As `Samples`: users without a positive, without enough to learn from, and those that are not tested."""
        known, learned = self._trained > 0, self._trained >= (1 if self.longest is None else 2)
        tested, asked = (lists.lengths > 0 for lists in (self._lists(TEST, alone=True)[0], self._wanted(TEST)))
        every = len(self.users) + self.feedback.without
        counts = {
            "have no positive (data.at_least), so they are in no split": self.feedback.without,
            "have nothing that trains, so nothing is asked of them": int((~known).sum()),
            "have one item that trains and no next one, so they train nothing": int((known & ~learned).sum()),
            "have nothing that tests, so they only train": int((known & ~tested).sum()),
            "are tested by what they had before alone, which is hidden (data.hide_seen), so they only train": int(
                (known & tested & ~asked).sum()
            ),
        }
        return tuple(f"{count:,} of {every:,} users {what}" for what, count in counts.items() if count)

    def _refuse_who_had_all(self) -> None:
        lists = self._lists(TRAIN, alone=True)[0]
        for at in np.flatnonzero(self._trained >= len(self.catalogue)):
            if len(np.unique(lists.values[lists.offsets[at] : lists.offsets[at + 1]])) == len(self.catalogue):
                raise DataError(
                    f"data.source: user {self.users[at]} had all {len(self.catalogue)} items, so there is no negative "
                    "to draw. Drop that user, or set data.negatives.count to 0"
                )

    def _samples(self) -> dict[Split, Ids]:
        """What each sample stands for: an interaction (training on pairs), else a user's place."""
        valid, test = (self._wanted(code).lengths > 0 for code in (VALID, TEST))
        known = self._trained > 0  # nobody can be asked of whom nothing was learned
        train = np.flatnonzero(self.codes == TRAIN) if self.longest is None else np.flatnonzero(self._trained >= 2)
        return {"train": train, "valid": np.flatnonzero(known & valid), "test": np.flatnonzero(known & test)}

    def _lists(self, code: int, *, alone: bool) -> tuple[Lists, Lists]:
        """Each user's items and times of one split, or of it and those before it; kept, for every batch asks."""
        if (code, alone) not in self._kept:
            mask = self.codes == code if alone else self.codes <= code
            offsets = np.concatenate([[0], np.cumsum(mask)])[self.starts]
            items, times = (Lists(values[mask], offsets) for values in (self.feedback.item, self.feedback.time))
            self._kept[code, alone] = (items, times)
        return self._kept[code, alone]

    def _wanted(self, code: int) -> Lists:
        """Each user's items of a split that are to be found: where seen ones are hidden, those that are new; kept."""
        if code not in self._to_find:
            mask = self.codes == code
            if self._hide_seen:
                pairs = np.searchsorted(self.users, self.feedback.user) * len(self.catalogue)
                pairs += np.searchsorted(self.catalogue, self.feedback.item)
                mask &= ~np.isin(pairs, pairs[self.codes < code])
            offsets = np.concatenate([[0], np.cumsum(mask)])[self.starts]
            self._to_find[code] = Lists(self.feedback.item[mask], offsets)
        return self._to_find[code]

    def _hidden(self, code: int) -> Lists:
        """Each user's items that are no candidates in a split, as often as they were had."""
        if self._hide_seen:
            return self._lists(code - 1, alone=False)[0]
        return Lists(self.feedback.item[:0], np.zeros(len(self.starts), np.int64))

    def _order(self, split: Split, seed: int | None) -> Order:
        return Order((self._range(split),), seed=seed, window_rows=self.rows(split))

    def _load(self, window: Window) -> Rows:
        return Rows(self, np.concatenate([np.arange(*block) for block in window.blocks]))

    def scan(
        self, split: Split, *, global_batch: int, rank: int, world_size: int, ready: Ready = as_it_is
    ) -> Iterator[RetrievalBatch]:
        """Of validation and test: every item of the catalogue, then every user, each once."""
        asked = super().scan(split, global_batch=global_batch, rank=rank, world_size=world_size, ready=ready)
        yield from map(ready, self._catalogue(global_batch, rank, world_size))
        yield from asked

    def _catalogue(self, global_batch: int, rank: int, world_size: int) -> Iterator[RetrievalBatch]:
        for start in range(0, len(self.catalogue), global_batch):
            whole = self.catalogue[start : start + global_batch]
            local = whole[rank * len(whole) // world_size : (rank + 1) * len(whole) // world_size]
            yield replace(self.assembly.of_items(local), global_rows=len(whole), items=local)

    def baselines(self, metrics: Sequence[Any], boosting_rows: int) -> tuple[Baseline, ...]:
        """As `Samples`: the most popular items."""
        return (Baseline("the most popular items", partial(of_popular, data=self, often=self.often, metrics=metrics)),)

    def told(self, scored: Retrieved) -> Retrieved:
        """As `Samples`: how often items were had in training, by everybody and by the rows' users; and with which."""
        assert scored.items is not None
        trained = self._lists(TRAIN, alone=True)[0]
        logs = np.log1p(self.often[np.searchsorted(self.catalogue, trained.values)])
        summed = np.diff(np.concatenate([[0.0], np.cumsum(logs)])[trained.offsets])
        often = self.often[np.searchsorted(self.catalogue, scored.items)].astype(np.float64)
        users = self._of[scored.groups]
        return replace(
            scored,
            often=often,
            popularity=(often + 1) / (self.often.sum() + len(self.catalogue)),
            had=summed[users] / self._trained[users],
            expected=self._expected,
            alike=self._alike,
            catalogue=len(self.catalogue),
        )

    def _alike(self, left: Ids, right: Ids) -> NDArray[np.float64]:
        return self._had_together(left, right)

    @cached_property
    def _had_together(self) -> HadTogether:
        train = self.codes == TRAIN
        return HadTogether(self.feedback.user[train], self.feedback.item[train])

    def _expected(self, groups: Ids, items: Ids) -> Ids:
        """[n]: each item's place among what its user may be shown, the most popular first, of equals the lower item."""
        if not len(groups):
            return np.empty(0, np.int64)
        passed = self._passed(self._code(int(groups[0])))
        users, place = self._of[groups], self._place[np.searchsorted(self.catalogue, items)]
        first = users * len(self.catalogue)
        expected: Ids = place - (np.searchsorted(passed, first + place) - np.searchsorted(passed, first))
        return expected

    @cached_property
    def _place(self) -> Ids:
        """Of each item of the catalogue its place by popularity."""
        return np.argsort(np.lexsort((self.catalogue, -self.often)))

    def _passed(self, code: int) -> Ids:
        """user * items + place by popularity of what each user is not shown in a split, rising; kept."""
        if code in self._not_shown:
            return self._not_shown[code]
        hidden = self._hidden(code)
        self._not_shown[code] = np.unique(
            np.repeat(np.arange(len(hidden.lengths)), hidden.lengths) * len(self.catalogue)
            + self._place[np.searchsorted(self.catalogue, hidden.values)]
        )
        return self._not_shown[code]

    def _code(self, number: int) -> int:
        start, stop = self.ranges["test"]
        return TEST if start <= number < stop else VALID

    def trained(self, numbers: Ids, whole: Ids, key: tuple[int, int]) -> RetrievalBatch:
        """Samples of training with their negatives; `whole`: the numbers of the global batch's."""
        of = self._of[numbers]
        times = None
        if self.longest is None:
            lengths = np.ones(len(of), np.int64)
            user, positives, every = self.feedback.user[of], self.feedback.item[of], np.ones(len(whole), np.int64)
            context, places = Lists.of(user, lengths), np.searchsorted(self.users, user)
        else:
            both, when = (_newest(lists, of, self.longest + 1) for lists in self._lists(TRAIN, alone=True))
            lengths = both.lengths - 1
            context, times = (lists.cut(lists.offsets[:-1], lengths) for lists in (both, when))
            positives = both.cut(both.offsets[:-1] + 1, lengths).values
            user, places = np.repeat(self.users[of], lengths), of
            every = np.minimum(self._trained[self._of[whole]] - 1, self.longest)
        sample = np.repeat(numbers, lengths)
        position = np.arange(len(sample)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        told = [self._often(positives)[:, None]]
        if self.negatives.by == "all":
            first = starts_of(whole, every, numbers)
            negatives, there = self.sampler.everything(np.repeat(first, lengths) + position, int(every.sum()))
            told.append(np.where(there, self._often(negatives), -1))
        else:
            negatives = self.sampler.draw(key, sample, position, user)
            if self.negatives.by == "popularity" or self.negatives.known:
                told.append(self._often(negatives))
        offered = np.concatenate([positives[:, None], negatives], axis=1)
        candidates = Lists.of(offered.ravel(), lengths * offered.shape[1])
        batch = self.assembly.batch(context, candidates, numbers, times)
        target = laid_out(np.concatenate([positives[:, None], *told], axis=1), lengths)
        if self.negatives.tells_known:
            known = spread(self._had.select(places), self._positives(whole), target.shape[1])
            target = np.concatenate([target, known], axis=2)
        return replace(batch, target=torch.from_numpy(target), global_rows=len(whole), units=int(every.sum()))

    @cached_property
    def _had(self) -> Lists:
        """Each user's items of training, in their order, once each: so a batch tells no more than it has items."""
        lists = self._lists(TRAIN, alone=True)[0]
        pairs = np.repeat(np.arange(len(lists.lengths)), lists.lengths) * (int(self.catalogue[-1]) + 1) + lists.values
        first = np.sort(np.unique(pairs, return_index=True)[1])
        return Lists(lists.values[first], np.searchsorted(first, lists.offsets))

    def _positives(self, numbers: Ids) -> Ids:
        """Of samples of training, all positions' positives."""
        of = self._of[numbers]
        if self.longest is None:
            return np.asarray(self.feedback.item[of])
        both = _newest(self._lists(TRAIN, alone=True)[0], of, self.longest + 1)
        found: Ids = both.cut(both.offsets[:-1] + 1, both.lengths - 1).values.astype(np.int64)
        return found

    def _often(self, items: Ids) -> Ids:
        """How often each was had in training."""
        return self.often.take(np.searchsorted(self.catalogue, items))

    def asked(self, numbers: Ids, global_rows: int) -> RetrievalBatch:
        """Users of validation or test: what was known of them, and what is to be found."""
        context, times, seen = self.whom(numbers)
        wanted = self._wanted(self._code(int(numbers[0]))).select(self._of[numbers])
        batch = self.assembly.of_whom(context, numbers, times)
        return replace(batch, global_rows=global_rows, seen=seen, positives=wanted)

    def whom(self, numbers: Ids) -> tuple[Lists, Lists | None, Lists]:
        """Of users of validation or test the row, or the history's items and times; and what they are not shown."""
        places, code = self._of[numbers], self._code(int(numbers[0]))
        seen = self._hidden(code).select(places)
        if self.longest is None:
            return Lists.of(self.users[places], np.ones(len(places), np.int64)), None, seen
        known, when = (_newest(lists, places, self.longest) for lists in self._lists(code - 1, alone=False))
        return known, when, seen


def _newest(lists: Lists, places: Ids, longest: int) -> Lists:
    """Of the users at `places`, at most so many, the last."""
    stop = lists.offsets[places + 1]
    first = np.maximum(lists.offsets[places], stop - longest)
    return lists.cut(first, stop - first)

"""An index of a catalogue: the best items by inner product among those of the nearest cells, not among all.

    items.faiss     IVF-Flat by faiss: cells around means of the items' vectors, and in each the vectors of its items

An item's place in the catalogue is its number in the index. Each vector has one number more, which makes all of them as
long as the longest, and who asks a 0 there: products stay as they are, and the nearest is the one with the largest.
The same vectors give the same file: seeded, one thread.
How many cells a search looks into is measured when the index is made, by those who ask, and stated with what it finds.
Jegou et al., "Product quantization for nearest neighbor search", TPAMI 2011 (inverted lists); Douze et al., "The Faiss
library", 2024; Bachrach et al., "Speeding up the Xbox recommender system using a Euclidean transformation for
inner-product spaces", RecSys 2014 (the number more).

Shape legend: U users, I items, E dim, K places.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtrain.data.columns import Lists
from rtrain.errors import CheckpointError, ConfigError, DataError, briefly
from rtrain.metrics.catalogue import NO_ITEM, Ranked, Seen, rank_catalogue

INDEX = "items.faiss"
DEPTHS = (10, 30, 100, 300, 1000)
"""Lengths of lists, each with cells of its own; longer ones are searched for among all items."""
LEAST = 0.99
"""Share of the best items that lists of 10 have at least, of users that the cells were not chosen by."""
WANTED = 0.995
"""The same of those that they were chosen by: the margin."""
ASKED = 512
"""Users of each of the two."""
SHARE = 4
"""Of the cells at most one in so many is looked into: with more, all items compared in one product are as fast."""
BLOCK = 65_536
"""Items that are added at once."""
FINE = 4
"""Cells of a catalogue, by the root of its items: with as many again a search looks into fewer items for the same
recall, and making the index takes four times as long."""
POINTS_PER_CELL, ROUNDS = 40, 10
"""Items that the means are taken of, drawn, where there are more, and how often; with three times as many of each the
recall of a million trained items was the same."""
SHORTEST = 1e-20
"""A vector of nothing asks too, and all its scores are 0."""
SEED = 20_26

Vectors = NDArray[np.float32]


def library() -> Any:
    """The package `faiss`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "handoff.index_from: an index of so many items needs faiss: pip install 'rtrain[index]'. Or set it to "
            "none, which compares all items"
        ) from None
    return faiss


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How lists of a length are searched for."""

    k: int
    """Items of a list, those that are not offered counted."""
    probes: int
    """Cells that are looked into."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What an export's head says of its index."""

    cells: int
    length: float
    """Of every vector in it."""
    depths: tuple[Depth, ...]
    """By rising `k`."""
    recall: float
    """Share of the 10 best items that are found, nothing hidden, of those who asked to have it measured."""
    error: float
    """Its standard error."""
    users: int
    """Who asked."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self) | {"depths": [asdict(depth) for depth in self.depths]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Stated":
        """What `to_json` gave."""
        return cls(**{**stored, "depths": tuple(Depth(**one) for one in stored["depths"])})


def write_index(vectors_IE: Vectors, path: Path) -> float:
    """Write the index of a catalogue's vectors; returns the length that it gives each of them.

    Raises:
        ConfigError: faiss is not installed.
        DataError: vectors that are not numbers.
    """
    faiss = library()
    if not np.isfinite(vectors_IE).all():
        raise DataError("index: items have vectors that are not numbers. Look why the run diverged")
    items, dim = vectors_IE.shape
    length = float(np.linalg.norm(vectors_IE, axis=1).max())
    cells = 1 << min(int(log2(items)), round(log2(FINE * items**0.5)))
    drawn = np.sort(np.random.default_rng(SEED).permutation(items)[: cells * POINTS_PER_CELL])
    with _threads(1):
        near = faiss.IndexFlatL2(dim + 1)
        index = faiss.IndexIVFFlat(near, dim + 1, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid, index.cp.spherical = SEED, 1, False
        index.cp.niter = ROUNDS
        index.train(_lengthened(vectors_IE[drawn], length))
        for start in range(0, items, BLOCK):
            index.add(_lengthened(vectors_IE[start : start + BLOCK], length))
        faiss.write_index(index, str(path))
    return length


def _lengthened(vectors: Vectors, length: float) -> Vectors:
    """With one number more, which makes each so long: [n, E + 1]."""
    more = np.sqrt(np.maximum(0.0, length**2 - np.square(vectors, dtype=np.float64).sum(1)))
    return np.hstack([vectors, more[:, None].astype(np.float32)])


class Index:
    """The index of an export, mapped: of the file the cells that are looked into come into memory, and go."""

    def __init__(self, path: Path, length: float):
        """Open a file whose sha256 was compared: faiss reads what is altered without a check of its own.

        `length`: of every vector in it.

        Raises:
            ConfigError: faiss is not installed.
            CheckpointError: it is no such index.
        """
        faiss = library()
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise CheckpointError(f"{INDEX}: faiss cannot read it ({briefly(error)})") from None
        found, metric = type(self._index).__name__, self._index.metric_type
        if found != "IndexIVFFlat" or metric != faiss.METRIC_INNER_PRODUCT:
            raise CheckpointError(f"{INDEX}: it is {found} of metric {metric}, not IndexIVFFlat of inner products")
        # By default a search starts 32 threads that read ahead.
        faiss.downcast_InvertedLists(self._index.invlists).prefetch_nthread = 0
        self.cells: int = self._index.nlist
        self.length = length

    def refuse_other(self, shape: tuple[int, ...], cells: int) -> None:
        """Refuse an index of another catalogue than the export's vectors, of this shape.

        Raises:
            CheckpointError: other counts of items, dimensions or cells.
        """
        got, wanted = (self._index.ntotal, self._index.d - 1, self.cells), (*shape, cells)
        if got != wanted:
            raise CheckpointError(
                f"{INDEX}: it has {got[0]} items of {got[1]} dimensions in {got[2]} cells, and the export {wanted[0]} "
                f"of {wanted[1]} in {wanted[2]}. Export the run again"
            )

    def search(self, queries_UE: Vectors, k: int, probes: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and places of the best k of so many cells, best first; -1 where these have no more, [U, K]."""
        faiss = library()
        longer = self.length / np.maximum(np.linalg.norm(queries_UE, axis=1, keepdims=True), SHORTEST)
        asked = np.pad(queries_UE * longer, ((0, 0), (0, 1))).astype(np.float32)
        with _threads(torch.get_num_threads()):
            scores, places = self._index.search(asked, k, params=faiss.SearchParametersIVF(nprobe=probes))
        return (scores / longer).astype(np.float32), places


def find(
    index: Index, depths: Sequence[Depth], queries_UE: Tensor, vectors_IE: Tensor, hidden: Lists, k: int
) -> Ranked:
    """As `rank_catalogue`, by an index: more is asked for where items are hidden.

    All items are compared for those whose lists are longer than any depth, or who have less than k left.

    Args:
        index: of `vectors_IE`.
        depths: how its lists are searched for.
        queries_UE: float32, who asks.
        vectors_IE: float32, of all items.
        hidden: places that each is not offered, each once.
        k: how many.

    Raises:
        ConfigError: k is below 1; a score that is not a number.
    """
    if k < 1:
        raise ConfigError(f"index: k must be at least 1, got {k}")
    users, items = len(queries_UE), len(vectors_IE)
    found = Ranked(torch.full((users, min(k, items)), NO_ITEM), torch.full((users, min(k, items)), -torch.inf))
    need = np.minimum(k + hidden.lengths, items)
    wanted = np.minimum(k, items - hidden.lengths)
    todo = np.ones(users, bool)
    for depth in depths:
        some = np.flatnonzero(todo & (need <= depth.k))
        if not len(some):
            continue
        scores, places = index.search(queries_UE[some].numpy(), int(need[some].max()), depth.probes)
        scores, places = _offered(scores, places, hidden.select(some), items)
        enough = (places >= 0).sum(1) >= wanted[some]
        done, width = some[enough], min(found.items_UK.shape[1], places.shape[1])
        found.items_UK[done, :width] = torch.from_numpy(places[enough, :width])
        found.scores_UK[done, :width] = torch.from_numpy(scores[enough, :width])
        todo[done] = False
    rest = np.flatnonzero(todo)
    if len(rest):
        whole = rank_catalogue(queries_UE[rest], vectors_IE, k=k, seen=seen_of(hidden.select(rest)))
        found.items_UK[rest], found.scores_UK[rest] = whole.items_UK, whole.scores_UK
    return found


def seen_of(hidden: Lists) -> Seen:
    """The same places, as `rank_catalogue` takes them."""
    return Seen(items=torch.from_numpy(hidden.values), offsets=torch.from_numpy(hidden.offsets))


def _offered(
    scores_UK: Vectors, places_UK: NDArray[np.int64], hidden: Lists, items: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """What is hidden goes to the end, as no item; of equal scores the earlier item is first, as `rank_catalogue`'s."""
    users = np.arange(len(places_UK))
    out = np.isin(places_UK + users[:, None] * items, hidden.values + np.repeat(users, hidden.lengths) * items)
    out |= places_UK < 0
    scores_UK, places_UK = np.where(out, -np.inf, scores_UK), np.where(out, NO_ITEM, places_UK)
    order = np.lexsort((places_UK, -scores_UK), axis=1)
    return np.take_along_axis(scores_UK, order, 1), np.take_along_axis(places_UK, order, 1)


def recalls(found: Ranked, best: Ranked) -> NDArray[np.float64]:
    """Of each user the share of the best items that were found, [U]; one whose score is the last's counts as it."""
    last = best.scores_UK.where(best.items_UK != NO_ITEM, torch.inf).amin(1, keepdim=True)
    right = (found.scores_UK >= last - 1e-6 * last.abs().clamp(min=1)).sum(1)
    count = (best.items_UK != NO_ITEM).sum(1)
    shares: NDArray[np.float64] = (right.clamp(max=count) / count.clamp(min=1)).where(count > 0, 1.0).double().numpy()
    return shares


def measured(index: Index, queries_UE: Tensor, vectors_IE: Tensor, hidden: Lists) -> Stated | None:
    """How many cells have to be looked into, and what is found then; none: so many that the index does not pay.

    Each depth's cells double until they hold `WANTED` of the best of the first half of those who ask. Then the others
    ask for 10, with nothing and with what is hidden from them, and all cells double until they find `LEAST`. Longer
    lists than those of the last depth that it pays for are found among all items.
    """
    users = np.arange(len(queries_UE))
    chosen, rest = users[: (len(users) + 1) // 2], users[len(users) // 2 :]
    depths, whole = list[Depth](), rank_catalogue(queries_UE[chosen], vectors_IE, k=DEPTHS[-1])
    for k in (k for k in DEPTHS if k < len(vectors_IE) or k == DEPTHS[0]):
        best, probes = Ranked(whole.items_UK[:, :k], whole.scores_UK[:, :k]), depths[-1].probes if depths else 1
        while probes * SHARE <= index.cells:
            scores, places = index.search(queries_UE[chosen].numpy(), best.items_UK.shape[1], probes)
            if recalls(Ranked(torch.from_numpy(places), torch.from_numpy(scores)), best).mean() >= WANTED:
                depths.append(Depth(k=k, probes=probes))
                break
            probes *= 2
    none = Lists.of(np.zeros(0, np.int64), np.zeros(len(rest), np.int64))
    offers = [
        (hides, rank_catalogue(queries_UE[rest], vectors_IE, k=DEPTHS[0], seen=seen_of(hides)))
        for hides in (none, hidden.select(rest))
    ]
    while depths and depths[-1].probes * SHARE <= index.cells:
        shares, asked = (
            recalls(find(index, depths, queries_UE[rest], vectors_IE, hides, DEPTHS[0]), best) for hides, best in offers
        )
        if min(shares.mean(), asked.mean()) >= LEAST:
            return Stated(
                cells=index.cells, length=index.length, depths=tuple(depths), recall=float(shares.mean()),
                error=float(shares.std() / len(shares) ** 0.5), users=len(shares),
            )  # fmt: skip
        depths = [Depth(k=depth.k, probes=depth.probes * 2) for depth in depths]
    return None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """faiss has so many within; its own number is the process's."""
    faiss = library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)

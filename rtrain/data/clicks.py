"""MovieLens-100K for two tasks: which film a user rates (click), and whether he likes it (like).

The data has no impressions, so they are made: beside each rating stands one film, drawn uniformly from those
that the user never rated, at the same second. `click` is 1 for the rating and 0 for the drawn film; `like` is
1 for a rating of at least 4, 0 for a lower one, and null for a drawn film: nobody knows whether it would be liked.
So click measures rated against random films, in which an item's popularity tells most.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rtrain.data.cached import write
from rtrain.data.movielens import PRIOR_ROWS, RESIDUAL_COLUMNS

NAME = "ml-100k-clicks"
VERSION = 1
"""Raised whenever `sample` writes something else."""
SEED = 100
OF_ITEM = ("item_id", "genres", "release_year", "item_liked", "item_seen")
"""The columns that a drawn film brings itself; the others are the user's and the moment's."""


def sample(ratings: Path, out_parquet: Path) -> None:
    """Write two rows for each row of the converted MovieLens-100K, sorted by (timestamp, user_id, item_id).

    The columns are its own less `rating`, `label` and `RESIDUAL_COLUMNS`, which would be the rated film's; then click
    and like (double, 0 or 1; like may be null).
    What a drawn film brings is what was known before that second, as for a rated one.
    """
    rated = pq.read_table(ratings)
    user, item, time, label = (rated.column(c).to_numpy() for c in ("user_id", "item_id", "timestamp", "label"))
    drawn = _never_rated(user, item, np.random.default_rng(SEED))
    first_row = np.unique(item, return_index=True)[1]  # item ids are 1..n, each of them rated by somebody
    liked, seen = _known_before(item, label, time, drawn)
    of_drawn = {
        "item_id": pa.array(drawn),
        "genres": rated.column("genres").take(first_row[drawn - 1]),
        "release_year": rated.column("release_year").take(first_row[drawn - 1]),
        "item_liked": pa.array(liked),
        "item_seen": pa.array(seen),
    }
    kept = [name for name in rated.column_names if name not in ("rating", "label", *RESIDUAL_COLUMNS)]
    ones, nulls = np.ones(len(user)), pa.nulls(len(user), pa.float64())
    shown = rated.select(kept).append_column("click", pa.array(ones)).append_column("like", rated.column("label"))
    columns = {name: of_drawn.get(name, rated.column(name)) for name in kept}
    unseen = pa.table(columns | {"click": pa.array(1 - ones), "like": nulls})
    both = pa.concat_tables([t.replace_schema_metadata() for t in (shown, unseen.cast(shown.schema))])
    order = pc.sort_indices(both, [(key, "ascending") for key in ("timestamp", "user_id", "item_id")])
    write(both.take(order), out_parquet, VERSION)


def _never_rated(
    user: NDArray[np.integer], item: NDArray[np.integer], random: np.random.Generator
) -> NDArray[np.integer]:
    """For each row an item, uniform over those that its user rated at no time; drawn again until it is one."""
    span = int(item.max()) + 1
    rated = np.unique(user * span + item)
    drawn = random.integers(1, span, len(user))
    while (again := np.isin(user * span + drawn, rated)).any():
        drawn[again] = random.integers(1, span, int(again.sum()))
    return drawn


def _known_before(
    item: NDArray[np.integer], label: NDArray[np.float64], time: NDArray[np.integer], asked: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`movielens.liked_before` of the asked items at each row's time, over the rated rows."""
    start = int(time.min())
    span = int(time.max()) - start + 1
    moments = item * span + (time - start)
    order = np.argsort(moments, kind="stable")
    first = np.searchsorted(moments[order], asked * span)
    stop = np.searchsorted(moments[order], asked * span + (time - start))
    sums = np.concatenate([[0.0], np.cumsum(label[order])])
    seen = (stop - first).astype(np.float64)
    return (sums[stop] - sums[first] + PRIOR_ROWS / 2) / (seen + PRIOR_ROWS), np.log1p(seen)

"""MovieLens-100K as rows that a ranking model can read (Harper and Konstan, doi.org/10.1145/2827872).

The raw files are RecBole's "atomic" ones: tab separated, the first line names and types the columns.
Everything that a row says was known at its moment: the history holds only what is strictly older.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from rtrain.data import cached
from rtrain.data.columns import Lists
from rtrain.data.point_in_time import Past, list_means, near_means, residual_means
from rtrain.errors import DataError

NAME = "ml-100k"
VERSION = 4
"""Raised whenever `convert` writes something else, so that old caches are made anew."""
HISTORY = 20
"""Most items in a history."""
PRIOR_ROWS = 5.0
"""Rows of one half that damp `liked_before`."""
PRIOR_LABEL, PRIOR_RATING = 0.55, 3.53
"""What a label and a rating are taken for before the first row."""
RESIDUAL_COLUMNS = (
    *("user_dev", "item_dev", "genre_dev", "near_dev", "near_seen"),
    *("user_rdev", "item_rdev", "genre_rdev", "near_rdev"),
)
"""The columns that `rtrain.data.point_in_time` makes of the label and, those with an r, of the rating."""

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""All genres, in MovieLens' own order; 'unknown' is the data's own word."""
GENDERS = ("F", "M")
OCCUPATIONS = (
    "administrator",
    "artist",
    "doctor",
    "educator",
    "engineer",
    "entertainment",
    "executive",
    "healthcare",
    "homemaker",
    "lawyer",
    "librarian",
    "marketing",
    "none",
    "other",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "student",
    "technician",
    "writer",
)
"""All occupations; 'none' is the data's own word."""

FILES = tuple(f"{NAME}.{kind}" for kind in ("inter", "user", "item"))
"""The raw files that `convert` reads."""


def convert(folder_of_raw: Path, out_parquet: Path) -> None:
    """Write the Parquet file of one row per rating, sorted by (timestamp, user_id, item_id).

    Columns: user_id, item_id int64; rating, age double (null: unknown); gender, occupation string;
    genres list<string>; title string; release_year double (null: unknown); hour int64 (0..23, UTC); history
    list<int64> (the user's last 20 items before this second, oldest first); user_liked, user_seen,
    item_liked, item_seen double (see `liked_before`, of the user's and of the item's rows before this
    second); timestamp int64 (seconds since 1970); label double (1 for a rating of at least 4); and the
    doubles named in `RESIDUAL_COLUMNS` (see `residual_columns`).

    Raises:
        DataError: a raw file that is missing or is not what its name says, with the line.
    """
    inter = _read(folder_of_raw / FILES[0], ("user_id", "item_id", "rating", "timestamp"))
    user = _read(folder_of_raw / FILES[1], ("user_id", "age", "gender", "occupation"))
    item = _read(folder_of_raw / FILES[2], ("item_id", "movie_title", "release_year", "class"))

    order = np.lexsort([inter.column(c).to_numpy() for c in ("item_id", "user_id", "timestamp")])
    inter = inter.take(pa.array(order))
    user_id, item_id, time = (inter.column(c).to_numpy() for c in ("user_id", "item_id", "timestamp"))
    history = histories(user_id, item_id, time, HISTORY)
    label = (inter.column("rating").to_numpy() >= 4).astype(np.float64)
    user_liked, user_seen = liked_before(user_id, label, time)
    item_liked, item_seen = liked_before(item_id, label, time)
    of_user = pc.index_in(inter.column("user_id"), value_set=user.column("user_id").combine_chunks())
    of_item = pc.index_in(inter.column("item_id"), value_set=item.column("item_id").combine_chunks())
    genres = _genres(item, folder_of_raw / FILES[2]).take(of_item)
    table = pa.table(
        {
            "user_id": pa.array(user_id, pa.int64()),
            "item_id": pa.array(item_id, pa.int64()),
            "rating": inter.column("rating"),
            "age": user.column("age").take(of_user),
            "gender": user.column("gender").take(of_user),
            "occupation": user.column("occupation").take(of_user),
            "genres": genres,
            "title": item.column("movie_title").take(of_item),
            "release_year": _years(item).take(of_item),
            "hour": pa.array(time // 3600 % 24, pa.int64()),
            "history": pa.ListArray.from_arrays(
                pa.array(history.offsets.astype(np.int32)), pa.array(history.values.astype(np.int64, copy=False))
            ),
            "user_liked": pa.array(user_liked),
            "user_seen": pa.array(user_seen),
            "item_liked": pa.array(item_liked),
            "item_seen": pa.array(item_seen),
            "timestamp": pa.array(time, pa.int64()),
            "label": pa.array(label),
        }
        | residual_columns(inter, label, genres)
    )
    cached.write(table, out_parquet, VERSION)


def is_current(parquet: Path) -> bool:
    """Whether the file is whole and what this version of `convert` writes."""
    return cached.is_current(parquet, VERSION)


def histories(user: NDArray[np.integer], item: NDArray[np.integer], time: NDArray[np.integer], longest: int) -> Lists:
    """For each row, its user's up to `longest` items of rows strictly older, oldest first.

    Rows must be sorted by time. Rows of the same second do not see each other: their order is not known.
    """
    past = Past.of(user, time)
    start = np.maximum(past.first, past.stop - longest)
    return Lists(item[past.by_key], np.zeros(1, np.int64)).cut(start, past.stop - start)


def liked_before(
    key: NDArray[np.integer], label: NDArray[np.float64], time: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each row, of the rows with its key that are strictly older: the share with label 1, and log(1 + number).

    The share is mixed with `PRIOR_ROWS` rows of one half, so that it is defined from the first row on
    and owes nothing to any later row. Rows must be sorted by time.
    """
    past = Past.of(key, time)
    seen = past.count.astype(np.float64)
    return (past.sums(label) + PRIOR_ROWS / 2) / (seen + PRIOR_ROWS), np.log1p(seen)


def residual_columns(inter: pa.Table, label: NDArray[np.float64], genres: pa.ChunkedArray) -> dict[str, pa.Array]:
    """The columns of `RESIDUAL_COLUMNS`, double [N]: what user, item, genres and neighbours said before this second.

    By `point_in_time`'s residual_means: user_dev, item_dev; list_means: genre_dev; near_means: near_dev, near_seen;
    of the label, and _rdev of the rating. `inter`: user_id, item_id, rating and timestamp, sorted by time; `label`:
    [N]; `genres`: list<string> [N], of the items.
    """
    user, item, time = (inter.column(c).to_numpy() for c in ("user_id", "item_id", "timestamp"))
    lengths = pc.list_value_length(genres).fill_null(0).to_numpy()
    lists = Lists.of(pc.index_in(pc.list_flatten(genres), value_set=pa.array(GENRES)).to_numpy(), lengths)
    found = {}
    for values, prior, suffix in ((label, PRIOR_LABEL, "dev"), (inter["rating"].to_numpy(), PRIOR_RATING, "rdev")):
        means = residual_means(user, item, values, time, prior_mean=prior)
        found[f"user_{suffix}"], found[f"item_{suffix}"] = means.user_dev, means.item_dev
        found[f"genre_{suffix}"] = list_means(user, lists, means.residual, time)
        found[f"near_{suffix}"], seen = near_means(user, item, means.residual, time)
        found.setdefault("near_seen", seen)
    return {name: pa.array(found[name]) for name in RESIDUAL_COLUMNS}


_TYPES = {
    "user_id": pa.int64(),
    "item_id": pa.int64(),
    "rating": pa.float64(),
    "timestamp": pa.int64(),
    "age": pa.float64(),
}


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """The named columns of an atomic file, without the types that its header adds (`user_id:token`)."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().rstrip("\r\n").split("\t")
        kinds = {name.partition(":")[0]: name for name in header}
        missing = [c for c in columns if c not in kinds]
        if missing:
            raise DataError(f"{path}: column {missing[0]!r} is missing from its first line. Get the file again")
        table = pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                include_columns=[kinds[c] for c in columns],
                column_types={kinds[c]: _TYPES.get(c, pa.string()) for c in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        ).rename_columns(list(columns))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. The raw files are {', '.join(FILES)}") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a whole RecBole file ({why}). Get the file again") from None
    if not table.num_rows:
        raise DataError(f"{path}: it has no rows. Get the file again")
    for name in columns:
        if name in ("user_id", "item_id", "rating", "timestamp") and table.column(name).null_count:
            line = 2 + pc.index(pc.is_null(table.column(name)), True).as_py()
            raise DataError(f"{path}: {name} is empty at line {line}. Get the file again")
    return table


def _genres(item: pa.Table, path: Path) -> pa.Array:
    """list<string> [items]; genres are parted by spaces, and none of them has one inside."""
    lists = pc.utf8_split_whitespace(item.column("class").fill_null("").combine_chunks())
    lists = [[genre for genre in genres if genre] for genres in lists.to_pylist()]
    for line, genres in enumerate(lists, start=2):
        for genre in genres:
            if genre not in GENRES:
                raise DataError(
                    f"{path}: line {line} has the genre {genre!r}, which is not one of MovieLens'. Get it again"
                )
    return pa.array(lists, pa.list_(pa.string()))


def _years(item: pa.Table) -> pa.Array:
    """double [items]; what is not a year ('V', 'unkonwn') is null."""
    text = item.column("release_year")
    is_year = pc.match_substring_regex(text, r"^[0-9]{4}$").fill_null(False)
    return pc.if_else(is_year, text, pa.scalar(None, pa.string())).cast(pa.float64())

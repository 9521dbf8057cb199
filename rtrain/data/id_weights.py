"""Weights of the ids of a list: a second list column beside it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.columns import Lists
from rtrain.data.nested import paired
from rtrain.data.place import Place, first, plain
from rtrain.encodings import LARGEST
from rtrain.schema import IdList


def weights_of(ids: pa.ChunkedArray, column: pa.ChunkedArray, feature: IdList, at: Place) -> Lists:
    """The weight of each id of a list, float32; of a list that is cut, of the newest `max_length`.

    Args:
        ids: the lists as they are stored.
        column: their weights, `feature.weights`.
        feature: which list.
        at: what messages call the rows.

    Raises:
        DataError: another number of weights than of ids, or in other inner lists, or one that is null or that float32
            cannot hold.
    """
    what = f"feature {feature.name!r}"
    column, lengths = paired(ids, column, what=what, name=feature.weights, of="weights", at=at)
    what += f": its weights {feature.weights!r}"
    rows = np.repeat(np.arange(len(lengths)), lengths)
    nothing = pa.types.is_null(column.type)
    flat = pa.chunked_array([], pa.float64()) if nothing else plain(pc.list_flatten(column), pa.float64())
    if flat.null_count:
        row = int(rows[first(pc.is_null(flat).to_numpy())])
        raise at.refuse(f"{what} have a null", row, ". Fill it, or drop the row")
    raw: NDArray[np.float64] = flat.cast(pa.float64()).to_numpy()
    fits = np.abs(raw) <= LARGEST
    if not fits.all():
        index = first(~fits)
        raise at.refuse(
            f"{what} hold {raw[index]}", int(rows[index]), "; they must be finite numbers that float32 can hold"
        )
    lists = Lists.of(raw.astype(np.float32), lengths)
    kept = np.minimum(lengths, feature.max_length)
    return lists.cut(lists.offsets[1:] - kept, kept)

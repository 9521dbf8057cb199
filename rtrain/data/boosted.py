"""Gradient-boosted trees on a schema's features: what a model without tables makes of the same columns.

scikit-learn's histogram trees with its defaults (after Ke et al., "LightGBM", NeurIPS 2017). Numbers are read as they
are stored, ids of few values as categories, other ids as numbers, lists by their length alone (weights of
their ids are left out), of vectors each number; hours, days and ages as a model has them.

Shape legend: N rows, F inputs: one a feature, of a vector as many as it has numbers.
"""

from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rtrain.data.baseline import Baseline
from rtrain.data.hashed import into_rows
from rtrain.data.made import ages, moment_ids
from rtrain.data.means import numbered
from rtrain.data.nested import one_list
from rtrain.data.place import Place, plain
from rtrain.data.split import Split
from rtrain.data.vocabularies import known_of
from rtrain.errors import DataError
from rtrain.metrics.state import Scored, Valued
from rtrain.moment import Age, Moment
from rtrain.schema import Feature, Id, IdList, Schema
from rtrain.text import Text
from rtrain.vector import Embedding

MOST_ROWS = 1_000_000
"""Rows of all splits beyond which it, which reads them whole, is left out."""
MOST_CATEGORIES = 255
"""That a histogram has bins for."""


def boosted_of(dataset: Any, rows: int) -> tuple[Baseline, ...]:
    """Trees of at most so many training rows, drawn by chance; 0, or a reason of `without_boosting`: none.

    `dataset`: a `rtrain.data.interactions.Dataset`.
    """
    if not rows or without_boosting(dataset, rows):
        return ()
    trees = _Boosted(dataset, rows)
    return (Baseline("gradient boosting on the same features", trees.says),)


def without_boosting(dataset: Any, rows: int) -> tuple[str, ...]:
    """Why the data are not boosted though `rows` are asked for, as a line; none where they are, or are not to be."""
    every = sum(dataset.rows(split) for split in ("train", "valid", "test"))
    if not rows:
        return ()
    if every > MOST_ROWS:
        why = f"the data have {every:,} rows, and it reads them whole: at most {MOST_ROWS:,}"
    elif dataset.schema.label.optional:
        why = f"rows may be without the label {dataset.schema.label.name!r}"
    elif find_spec("sklearn") is None:
        why = "scikit-learn is not installed (pip install scikit-learn)"
    else:
        return ()
    return (f"no gradient boosting among the baselines: {why}. Without this line: evaluation.boosting_rows 0",)


class _Boosted:
    def __init__(self, dataset: Any, rows: int):
        self.dataset, self.schema, self.rows = dataset, dataset.schema, rows

    def says(self, split: Split) -> Scored | Valued | None:
        """Of the split's rows; none where all labels of training are the same."""
        if self._fitted is None:
            return None
        table = self._table(split)
        labels = table[self.schema.label.name].cast(pa.float64()).to_numpy()
        group = self.schema.group
        users = numbered(table[group]) if group else np.zeros(len(labels), np.int64)
        rows = np.array(self.dataset.numbers(split), np.int64)
        inputs_NF = self._inputs(table)
        if self.schema.predicts_numbers:
            return Valued(self._fitted.predict(inputs_NF), labels, users, rows)
        scored = Scored.of_probabilities(self._fitted.predict_proba(inputs_NF)[:, 1], labels, users)
        return replace(scored, rows=rows)

    @cached_property
    def _fitted(self) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        table = self._table("train")
        if len(table) > self.rows:
            drawn = np.random.default_rng(0).choice(len(table), self.rows, replace=False)
            table = table.take(pa.array(np.sort(drawn)))
        labels = table[self.schema.label.name].cast(pa.float64()).to_numpy()
        if len(np.unique(labels)) < 2:
            return None
        kind = HistGradientBoostingRegressor if self.schema.predicts_numbers else HistGradientBoostingClassifier
        few = [_is_category(f) for f in self.schema.features for _ in range(_inputs_of(f))]
        try:
            return kind(categorical_features=few, random_state=0).fit(self._inputs(table), labels)
        except ValueError as error:  # of a row that no step has read yet: no footer told of it
            why = str(error).splitlines()[0]
            raise DataError(
                f"gradient boosting (a baseline) cannot read a row that trains ({why}). Mend or "
                "drop it, or give evaluation.boosting_rows 0"
            ) from None

    def _table(self, split: Split) -> pa.Table:
        read = [f.name for f in self.schema.features if not isinstance(f, Moment | Age)]
        names = [*read, *self.schema.stamps, self.schema.label.name]
        return self.dataset.raw(split, 0, self.dataset.rows(split), names)

    def _inputs(self, table: pa.Table) -> NDArray[np.float64]:
        """[N, F]; nan where there is nothing, or a word that is not known."""
        return np.column_stack([_column(feature, table, self.schema) for feature in self.schema.features])


def _is_category(feature: Feature) -> bool:
    if isinstance(feature, IdList) or not isinstance(feature, Id | Moment):
        return False
    return feature.table_rows <= MOST_CATEGORIES


def _inputs_of(feature: Feature) -> int:
    return feature.dim if isinstance(feature, Embedding) else 1


def _column(feature: Feature, table: pa.Table, schema: Schema) -> NDArray[np.float64]:
    """[N], or of a vector [N, dim]"""
    at = Place("boosting", np.arange(len(table)))
    if isinstance(feature, Moment):
        return moment_ids(table, feature, schema, at).astype(np.float64)
    if isinstance(feature, Age):
        return ages(table, feature, schema, at)[:, 0].astype(np.float64)
    column = table[feature.name]
    if isinstance(feature, Embedding):
        there = pc.is_valid(column).to_numpy()
        vectors = np.full((len(there), feature.dim), np.nan)
        vectors[there] = pc.list_flatten(column).cast(pa.float64()).to_numpy().reshape(-1, feature.dim)
        return vectors
    if isinstance(feature, Text):
        found = pc.utf8_length(plain(column, pa.string()))
    elif isinstance(feature, IdList):
        found = pc.list_value_length(one_list(column))
    elif isinstance(feature, Id) and feature.vocabulary:
        found = pc.index_in(column.cast(pa.string()), value_set=pa.array(feature.vocabulary))
    elif isinstance(feature, Id) and feature.vocabulary_file and not feature.numbered:
        return known_of(feature.vocabulary_file).ids(plain(column, feature.arrow_type())).astype(np.float64)
    elif isinstance(feature, Id) and feature.hashed:
        return into_rows(plain(column, feature.arrow_type()), feature.rows).astype(np.float64)
    else:
        found = column
    values: NDArray[np.float64] = found.cast(pa.float64()).to_numpy()
    return values

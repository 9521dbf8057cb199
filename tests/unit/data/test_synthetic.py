"""The planted rows: their shape, and that the planted probability is what the labels were drawn from."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rtrain.data import synthetic
from rtrain.data.cached import is_current

ROWS = 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted") / "rows.parquet"
    synthetic.plant(out, rows=ROWS)
    return out


def test_criteos_shape(made: Path) -> None:
    assert is_current(made, synthetic.VERSION)
    table = pq.read_table(made)
    assert table.column_names == [*synthetic.DENSE, *synthetic.IDS, "planted", "at", "label"]
    assert (len(synthetic.DENSE), len(synthetic.IDS)) == (13, 26)
    for name, rows in zip(synthetic.IDS, synthetic.TABLE_ROWS, strict=True):
        ids = table[name].to_numpy()
        assert ids.min() >= 0 and ids.max() < rows
        shares = np.arange(1, rows + 1) ** -synthetic.ZIPF
        # The commonest id's share: a binomial's four standard deviations.
        share = 1 / shares.sum()
        assert abs((ids == 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / ROWS), name


def test_labels_are_drawn_from_the_planted_probability(made: Path) -> None:
    table = pq.read_table(made)
    planted, label = table["planted"].to_numpy(), table["label"].to_numpy()
    assert set(np.unique(label)) == {0, 1}
    bins = np.digitize(planted, np.quantile(planted, np.arange(0.1, 1, 0.1)))
    for tenth in range(10):
        here = bins == tenth
        spread = np.sqrt((planted[here] * (1 - planted[here])).sum()) / here.sum()
        assert abs(label[here].mean() - planted[here].mean()) < 4 * spread
    assert 0.7 < synthetic.best_auc(table) < 0.85


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic.plant(tmp_path / name, rows=1000)
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))

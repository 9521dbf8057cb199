from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rtrain
from recipes.dlrm_movielens import run as recipe_run
from rtrain.data import sources
from rtrain.run import Run


@pytest.fixture
def tiny(tmp_path: Path) -> Run:
    """The main job on the first 3,000 rows: dropout on, prefetch on, an epoch of 10 steps."""
    (file,) = Path(sources.get("ml-100k")).glob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 3000), tmp_path / "rows.parquet", row_group_size=700)
    return rtrain.override(
        recipe_run(),
        {
            "name": "tiny",
            "storage": str(tmp_path / "runs"),
            "data.source": str(tmp_path / "rows.parquet"),
            "parallel.dense": "ddp",
            "model.dropout": 0.2,
            "global_batch": 250,
            "duration.epochs": 3,
            "log_every_steps": 1,
            "evaluation.every.steps": 5,
            "evaluation.patience": None,
            "checkpoint.every.steps": 7,
            "tracking.to": (),
        },
    )

"""The random state of a rank goes on after a resume as if there had been none."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.training import rng

pytestmark = pytest.mark.usefixtures("world_of_one")


def drawn() -> list[float]:
    """Of each generator, an odd number of normal ones: so one of a pair is left over, or was."""
    return [
        *(random.gauss(0, 1) for _ in range(3)),
        *np.random.normal(size=3).tolist(),
        *torch.randn(3).tolist(),
        random.random(),
        float(np.random.random()),
    ]


@pytest.mark.parametrize("before", [lambda: None, drawn], ids=["nothing left over", "one of a pair left over"])
def test_all_generators_go_on(tmp_path: Path, before: Callable[[], object]) -> None:
    rng.seed_all(5, 0)
    before()
    folders = CheckpointFolders(str(tmp_path))
    save(folders, 1, rng.chunks(0), {})
    wanted = [drawn(), drawn()]
    rng.seed_all(9, 0)
    drawn()
    rng.restore(0, Stored(folders.of(1), 1))
    assert [drawn(), drawn()] == wanted


def test_a_checkpoint_of_an_older_rtrain_has_nothing_left_over(tmp_path: Path) -> None:
    rng.seed_all(5, 0)
    folders = CheckpointFolders(str(tmp_path))
    save(folders, 1, [c for c in rng.chunks(0) if not c.name.endswith("gauss")], {})
    wanted = drawn()
    rng.restore(0, Stored(folders.of(1), 1))
    assert drawn() == wanted


def test_the_callers_generators_go_on_as_if_nothing_had_been_trained() -> None:
    rng.seed_all(5, 0)
    drawn()
    wanted = [drawn(), drawn()]
    rng.seed_all(5, 0)
    drawn()
    with pytest.raises(ZeroDivisionError), rng.left_alone():
        rng.seed_all(9, 0)
        drawn()
        raise ZeroDivisionError
    assert [drawn(), drawn()] == wanted

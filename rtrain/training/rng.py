"""The random state of one rank, as tensors for a checkpoint."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.parallel.chunks import Chunk, whole
from rtrain.training.world import World

GAUSS = "gauss"
"""Normal numbers are drawn in pairs: what numpy and Python have left over of theirs, as [has one, its value] each."""


def seed_all(seed: int, rank: int) -> None:
    """Seed every generator; ranks differ, so that their dropout masks do."""
    mixed = seed * 100_003 + rank
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed % 2**63)


@contextmanager
def left_alone() -> Iterator[None]:
    """After it, torch (CPU), numpy and Python draw on as before it: whose process it is finds them as they were."""
    torchs, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torchs)
        np.random.set_state(numpys)
        random.setstate(pythons)


def begin(seed: int, world: World, stored: Stored | None) -> None:
    """Put this rank's random state to the checkpoint's at the same world size, else fresh from the seed."""
    seed_all(seed, world.rank)
    if stored and stored.meta["world_size"] == world.size:
        restore(world.rank, stored)


def chunks(rank: int) -> Iterator[Chunk]:
    """The state of torch (CPU and current GPU), numpy and Python on this rank."""
    for kind, state in _states().items():
        yield whole(f"rng.{rank:05d}.{kind}", state)


def restore(rank: int, stored: Stored) -> None:
    """Put the state back; call it after everything that draws numbers while it is built."""
    known = {k: whole(f"rng.{rank:05d}.{k}", v) for k, v in _states().items()}
    if known[GAUSS].name not in stored.meta["tensors"]:
        del known[GAUSS]  # written by an older rtrain: as if no number had been left over
    if "cuda" in known and known["cuda"].name not in stored.meta["tensors"]:
        del known["cuda"]  # written on a CPU: the GPU's stays as it was seeded
    states = {k: stored.read(chunk) for k, chunk in known.items()}
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    left_over = states.get(GAUSS, torch.zeros(2, 2, dtype=torch.float64)).tolist()
    (numpy_has, numpy_next), (python_has, python_next) = left_over
    random.setstate((3, tuple(states["python"].tolist()), python_next if python_has else None))
    numpy = states["numpy"].numpy()
    np.random.set_state(("MT19937", numpy[:624].astype(np.uint32), int(numpy[624]), int(numpy_has), numpy_next))


def _states() -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=True)
    assert isinstance(numpy, tuple)
    _, python, gauss = random.getstate()
    left_over = [[numpy[3], numpy[4]], [gauss is not None, gauss or 0.0]]
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*numpy[1].tolist(), numpy[2]], dtype=torch.int64),
        "python": torch.tensor(python, dtype=torch.int64),
        GAUSS: torch.tensor(left_over, dtype=torch.float64),
    }
    if torch.cuda.is_initialized():  # whoever trains on CPU beside a GPU leaves that alone
        states["cuda"] = torch.cuda.get_rng_state()
    return states

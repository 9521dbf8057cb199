"""The random state of one rank, as tensors for a checkpoint."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.parallel.chunks import Chunk, ReadChunk, whole
from rtrain.training.world import World


def seed_all(seed: int, rank: int) -> None:
    """Seed every generator; ranks differ, so that their dropout masks do."""
    mixed = seed * 100_003 + rank
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed % 2**63)


def begin(seed: int, world: World, stored: Stored | None) -> None:
    """Put this rank's random state to the checkpoint's at the same world size, else fresh from the seed."""
    seed_all(seed, world.rank)
    if stored and stored.meta["world_size"] == world.size:
        restore(world.rank, stored.read)


def chunks(rank: int) -> Iterator[Chunk]:
    """The state of torch (CPU and current GPU), numpy and Python on this rank."""
    for kind, state in _states().items():
        yield whole(f"rng.{rank:05d}.{kind}", state)


def restore(rank: int, read: ReadChunk) -> None:
    """Put the state back; call it after everything that draws numbers while it is built."""
    states = {k: read(whole(f"rng.{rank:05d}.{k}", v)) for k, v in _states().items()}
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    python = states["python"].tolist()
    random.setstate((3, tuple(python), None))
    numpy = states["numpy"].numpy()
    np.random.set_state(("MT19937", numpy[:624].astype(np.uint32), int(numpy[624]), 0, 0.0))


def _states() -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=True)
    assert isinstance(numpy, tuple)
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*numpy[1].tolist(), numpy[2]], dtype=torch.int64),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states

"""Storages that autograd keeps of a stage's forward pass, piece by piece."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Storages = dict[int, torch.UntypedStorage]


class Saved:
    """What is kept for backward, each storage once."""

    def __init__(self, *, leave_out: Iterable[Tensor]):
        """`leave_out`: what is there anyway, such as weights."""
        self._left_out = {x.untyped_storage()._cdata for x in leave_out}
        self._given: list[Storages] = []
        self._of_pieces: list[Storages] = []
        self._outside: Storages = {}
        self._at = self._outside

    @contextmanager
    def watching(self, pieces: Iterable[nn.Module]) -> Iterator[None]:
        """All that is saved inside; of each of the `pieces` also what it is given, and what it saves itself."""
        hooks = []
        for piece in pieces:
            hooks.append(piece.register_forward_pre_hook(self._enter, prepend=True))
            hooks.append(piece.register_forward_hook(self._leave))
        try:
            with saved_tensors_hooks(self._pack, lambda x: x):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def bytes(self, again: int = 0) -> tuple[int, int]:
        """Kept for backward, and at most more in it, where so many of the first pieces do their forward pass again.

        Kept of these is what each is given. Backward begins with the last piece, and has one of them whole at a time,
        when what was kept of those behind it is free.
        """
        upto, most = Storages(), 0
        for given, own in zip(self._given[:again], self._of_pieces[:again], strict=True):
            upto = upto | given
            most = max(most, _bytes(upto | own))
        kept = _bytes(self._kept(again))
        return kept, max(0, most - kept)

    def beside(self, tensors: Iterable[Tensor], again: int = 0) -> Iterator[Tensor]:
        """Those that are neither kept nor left out."""
        known = self._left_out | self._kept(again).keys()
        return (x for x in tensors if x.untyped_storage()._cdata not in known)

    def _kept(self, again: int) -> Storages:
        found = Storages()
        for storages in (*self._given[:again], *self._of_pieces[again:], self._outside):
            found |= storages
        return found

    def _enter(self, _: nn.Module, given: Any) -> None:
        here = {x.untyped_storage()._cdata: x.untyped_storage() for x in given if isinstance(x, Tensor)}
        self._given.append({key: storage for key, storage in here.items() if key not in self._left_out})
        self._of_pieces.append({})
        self._at = self._of_pieces[-1]

    def _leave(self, *_: Any) -> None:
        self._at = self._outside

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._left_out:
            self._at[storage._cdata] = storage
        return x


def _bytes(storages: Storages) -> int:
    return sum(storage.nbytes() for storage in storages.values())

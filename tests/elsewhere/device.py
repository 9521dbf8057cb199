"""A device that is not this processor, for tests without a GPU: what lies there meets nothing that lies here.

What lies there is computed by the processor, to the same bits. So it shows that all which meets was brought to one
place, as a GPU wants it; it shows no kernel, stream, memory or speed of one. torch knows it as a device as any other,
in the whole process and for good: to import this is for a process of its own.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import Library
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXES = {"aten::index", "aten::index_put_"}
"""A GPU takes indices of the host too, not the other way round."""


class There(Tensor):
    """A tensor that lies there; `here` is what it holds."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=torch.device(NAME, 0)
        )
        made = cast(There, made)
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_has_compatible_shallow_copy_type":
            return False
        flat, shape = pytree.tree_flatten((args, kwargs))
        lie_there = [x for x in flat if isinstance(x, There)]
        _refuse_meeting(name, args, flat, lie_there)
        args, kwargs = pytree.tree_unflatten([_here(x) for x in flat], shape)
        wanted = next((x for x in flat if isinstance(x, torch.device)), None)
        found = func(*args, **kwargs)
        for x in lie_there:
            assert x.size() == x.here.size(), f"{name} changes a size, which this device cannot follow"
        same = {id(x.here): x for x in lie_there}

        def lying(x: Tensor) -> Tensor:  # where it is wanted, else where what it is made of lies
            if id(x) in same and func._schema.is_mutable:
                return same[id(x)]  # what was changed in place
            x = x.clone() if id(x) in same else x  # between two places there is always a copy
            return There(x) if wanted is None or wanted.type == NAME else x

        return pytree.tree_map_only(Tensor, lying, found)


def _here(x: Any) -> Any:
    if isinstance(x, There):
        return x.here
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def _refuse_meeting(name: str, args: Any, flat: list[Any], lie_there: list[There]) -> None:
    """As torch does of a GPU, which takes of the host numbers alone.

    Raises:
        RuntimeError: something lies here, and something there.
    """
    lie_here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, There) and x.dim()]
    if name in COPIES or (name in INDEXES and isinstance(args[0], There)):
        return
    if lie_here and lie_there:
        shapes = [tuple(x.shape) for x in lie_here], [tuple(x.shape) for x in lie_there]
        raise RuntimeError(f"{name}: tensors of {shapes[0]} lie on the host, and of {shapes[1]} elsewhere")


def _made(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What makes a tensor out of nothing."""

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        return There(op(*args, device="cpu", **kwargs))

    return make


def _copied(x: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    _here(to).copy_(_here(x))
    return to


_setup_privateuseone_for_python_backend(NAME)
ATEN = Library("aten", "IMPL")
for made_by in ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step"):
    base, _, overload = made_by.partition(".")
    ATEN.impl(made_by, _made(getattr(getattr(torch.ops.aten, base), overload or "default")), "PrivateUse1")
ATEN.impl("_copy_from", _copied, "PrivateUse1")
torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's type changes with its place
Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign, misc, assignment]  # no GPU, no pages

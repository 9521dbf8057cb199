"""What a person wants to know of a run's checkpoints: which there are, whether they are whole, how two differ."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rtrain.checkpoint import shards
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.marker import MARKER
from rtrain.errors import CheckpointError
from rtrain.scratch import Scratch
from rtrain.storage import Folder


@dataclass(frozen=True)
class Listed:
    """One checkpoint of a run, by one listing of its folder and its manifest."""

    step: int
    state: str
    """`intact` (every file at its size), `damaged`, or `half-written`."""
    bytes: int
    """Of its files as they lie there."""
    best: bool
    """Whether it is the best one that the newest intact one knows of."""
    attempt: int | None
    world_size: int | None
    saved_at: float | None
    """Seconds since 1970."""
    metrics: dict[str, float]
    """Validation metrics of the last evaluation before it was written; empty where there was none."""
    metrics_step: int | None
    """The step of that evaluation, where it is not this one."""
    uri: str

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def listing(folders: CheckpointFolders) -> list[Listed]:
    """Every step with a folder, ascending; no tensor is read."""
    found: list[Listed] = []
    best: int | None = None
    for step in folders.steps():
        folder = folders.of(step)
        sizes = folder.sizes()
        state, meta = "half-written", dict[str, Any]()
        if MARKER in sizes:
            state = "intact" if folders.looks_intact(step) else "damaged"
            if state == "intact":
                meta = Stored(folder, step).meta
                best = meta.get("state", {}).get("best_step", best)
        found.append(
            Listed(
                step=step,
                state=state,
                bytes=sum(sizes.values()),
                best=False,
                attempt=meta.get("attempt"),
                world_size=meta.get("world_size"),
                saved_at=meta.get("saved_at"),
                **_evaluation(meta, step),
                uri=folder.uri,
            )
        )
    return [Listed(**{**asdict(row), "best": row.step == best}) for row in found]


def _evaluation(meta: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The metrics that a checkpoint has of its own, and of which step they are where it is another one."""
    state = meta.get("state", {})
    # Older checkpoints hold those of the best step alone.
    values, at = state.get("latest", {}), state.get("latest_step")
    if not values and state.get("best_step") == step:
        values, at = state.get("best", {}), step
    return {"metrics": values, "metrics_step": at if values and at != step else None}


def verify(folders: CheckpointFolders, steps: Sequence[int]) -> dict[int, str]:
    """Read every file of the steps back; step -> what is wrong with it, empty when nothing is."""
    found = {}
    for step in steps:
        try:
            Stored(folders.of(step), step).verify()
            found[step] = ""
        except CheckpointError as error:
            found[step] = str(error)
    return found


def show(stored: Stored) -> dict[str, Any]:
    """The manifest without the places of the rectangles: tensor -> shape and dtype."""
    tensors = {name: {"shape": e["shape"], "dtype": e["dtype"]} for name, e in stored.meta["tensors"].items()}
    return {"uri": stored.uri, **stored.meta, "tensors": tensors}


def compare(a: Stored, b: Stored) -> dict[str, Any]:
    """How two checkpoints differ: config, tensors by name and shape, and how far the values of each are apart."""
    names_a, names_b = set(a.names()), set(b.names())
    shapes, values = dict[str, Any](), dict[str, Any]()
    same = 0
    for name in sorted(names_a & names_b):
        shape_a, shape_b = a.meta["tensors"][name]["shape"], b.meta["tensors"][name]["shape"]
        if shape_a != shape_b:
            shapes[name] = [shape_a, shape_b]
            continue
        left, right = a.tensor(name), b.tensor(name)
        if torch.equal(left, right):
            same += 1
        else:
            apart = (left.double() - right.double()).abs()
            values[name] = {"max": float(apart.max()), "mean": float(apart.mean())}
    before, after = _flat(a.meta.get("config", {})), _flat(b.meta.get("config", {}))
    keys = sorted({*before, *after})
    return {
        "steps": [a.step, b.step],
        "config": {k: [before.get(k), after.get(k)] for k in keys if before.get(k) != after.get(k)},
        "only_in_first": sorted(names_a - names_b),
        "only_in_second": sorted(names_b - names_a),
        "other_shape": shapes,
        "other_values": values,
        "equal_tensors": same,
        "metrics": [_evaluation(x.meta, x.step) for x in (a, b)],
    }


def export(stored: Stored, to: str) -> dict[str, Any]:
    """Write `model.safetensors`, every tensor of the model whole under its unsharded name, into a folder or URI.

    The model has to fit into this machine's memory. Optimizer, random state and ledger stay behind.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    stored.verify()
    tensors = {name: stored.tensor(logical) for name, logical in stored.weights().items()}
    target = Folder(to)
    with Scratch("export") as scratch:
        local = scratch / "model.safetensors"
        written = shards.write(local, tensors)
        target.adopt(local, local.name)
    return {"uri": f"{target.uri}/model.safetensors", "tensors": len(tensors), **written}


def at(folders: CheckpointFolders, step: int | None) -> Stored:
    """The checkpoint of a step, or the newest that looks intact.

    Raises:
        CheckpointError: there is none; the message names those that there are.
    """
    intact = [s for s in folders.steps() if folders.looks_intact(s)]
    if step is None and intact:
        step = intact[-1]
    if step is None or step not in folders.steps():
        there = ", ".join(map(str, folders.committed())) or "none"
        what = f"no checkpoint of step {step}" if step is not None else "no intact checkpoint"
        raise CheckpointError(f"{folders.root.uri}: {what}; committed steps: {there}")
    return Stored(folders.of(step), step)


def _flat(tree: Any, where: str = "") -> dict[str, Any]:
    """Dotted key -> value of a stored config; its classes need not exist here."""
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(x, dict) for x in tree):
        items = [(str(i), x) for i, x in enumerate(tree)]
    else:
        return {where: tree}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= _flat(value, f"{where}.{key}" if where else key)
    return found

"""Loss curves and checkpoints of each recipe's `debug()` at each layout, kept as files: what no redesign may change.

python -m tests.golden.traces             # writes them anew: a change of numerics is then a diff that a reader sees
python -m tests.golden.traces RECIPE ...  # the curves of these alone, beside the others

A layout trains `STEPS` steps, its state is saved after `SAVED` of them, and the later ones say how a run that is
resumed from that file must go on. The text of the language model is the license of this repository, for the source of
Python's own library changes with each version.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import rtrain
from recipes import (
    bpr_movielens,
    dlrm_criteo,
    dlrm_movielens,
    dlrm_synthetic,
    gpt_stdlib,
    hstu_movielens,
    lightgcn_movielens,
    mmoe_movielens,
    sasrec_movielens,
    sasrec_sequences,
    text_tower_movielens,
    two_tower_features_movielens,
    two_tower_movielens,
)
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.writing import save
from rtrain.data.tokens import Tokens, write_shards
from rtrain.duration import Duration
from rtrain.mesh import Parallel
from rtrain.parity import name_of
from rtrain.run import Run
from rtrain.training.processes import in_world
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from tests.golden.dlrm_schema import SCHEMA

FOLDER = Path(__file__).parent
STEPS, SAVED = 12, 8
DEADLINE_S = 600.0
ZERO1, ZERO3 = Parallel(data=2, zero_stage=1), Parallel(data=2, zero_stage=3)
ALONE = Parallel(data=1, dense="ddp")
RANKING = (ALONE, Parallel(data=2, dense="ddp"), ZERO1, ZERO3)
DENSE = (
    *RANKING,
    Parallel(data=1, tensor=2, zero_stage=1),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1),
)
# Every one of DENSE that is legal for the recipe's model (a test asks): what has one piece has no stages.
LAYOUTS = {
    "dlrm_movielens": RANKING,
    "dlrm_synthetic": RANKING,
    "dlrm_criteo": RANKING,
    "mmoe_movielens": RANKING,
    "bpr_movielens": RANKING,
    "two_tower_movielens": RANKING,
    "two_tower_features_movielens": RANKING,
    "text_tower_movielens": RANKING,
    "lightgcn_movielens": RANKING,
    "sasrec_movielens": DENSE,
    "sasrec_sequences": RANKING,
    "hstu_movielens": DENSE,
    "gpt_stdlib": DENSE,
}
# Their checkpoints lie in the repository, so they are small.
SMALL = {
    "dlrm_movielens": (
        Parallel(data=2, zero_stage=1, embeddings="row_wise"),
        Parallel(data=2, zero_stage=3, embeddings="table_wise"),
    ),
    "gpt_stdlib": (ALONE, ZERO1, ZERO3, *DENSE[-2:]),
}
Case = tuple[str, Parallel]


def runs(folder: Path) -> dict[str, Run]:
    """Recipe -> its small config; `folder` is for the language model's text."""
    text = (FOLDER.parents[1] / "LICENSE").read_bytes()
    if not (folder / "text").exists():
        write_shards(iter([np.frombuffer(text * 4, np.uint8)]), folder / "text", vocab=256, tokenizer="bytes")
    dlrm = dlrm_movielens.debug()
    dlrm = replace(dlrm, data=replace(dlrm.data, schema=SCHEMA))
    small = {"tables": {"model.dim": 4, "model.bottom": (8,), "model.top": (8,)}, "dense": {"model.dim": 16}}
    gpt = replace(gpt_stdlib.debug(), data=Tokens(source=str(folder / "text"), context=32, valid=0.05, test=0.05))
    # At Adagrad's own eps the first step of a gradient near zero is as large as any other, and titles have many: under
    # other vector instructions the losses were then 2e-4 off after 12 steps, and with this one 2e-6.
    text = rtrain.override(text_tower_movielens.debug(), {"sparse_optim.eps": 1e-4})
    return {
        "dlrm_movielens": dlrm,
        "dlrm_synthetic": dlrm_synthetic.debug(),
        "dlrm_criteo": dlrm_criteo.debug(),
        "mmoe_movielens": mmoe_movielens.debug(),
        "bpr_movielens": bpr_movielens.debug(),
        "two_tower_movielens": two_tower_movielens.debug(),
        "two_tower_features_movielens": two_tower_features_movielens.debug(),
        "text_tower_movielens": text,
        "lightgcn_movielens": lightgcn_movielens.debug(),
        "sasrec_movielens": sasrec_movielens.debug(),
        "sasrec_sequences": sasrec_sequences.debug(),
        "hstu_movielens": hstu_movielens.debug(),
        "gpt_stdlib": gpt,
        "small dlrm_movielens": rtrain.override(dlrm, small["tables"]),
        "small gpt_stdlib": rtrain.override(gpt, small["dense"]),
    }


def cases(world: int) -> list[Case]:
    """What a world of so many ranks trains."""
    found = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]
    found += [(f"small {name}", layout) for name, layouts in SMALL.items() for layout in layouts]
    return [c for c in found if (c[1].data or 1) * c[1].tensor * c[1].pipeline == world]


def key(case: Case) -> str:
    """Such as `gpt_stdlib dp2 zero1`."""
    return f"{case[0]} {name_of(case[1])}"


def folder_of(name: str) -> str:
    """Of a small case's checkpoint."""
    return str(FOLDER / "checkpoints" / name.removeprefix("small ").replace(" ", "-"))


def train(case: Case, data: Path, *, stored: Stored | None = None, keep: bool = False) -> dict[str, list[float]]:
    """Losses and gradient norms in the present world, from the beginning or from a checkpoint on."""
    name, layout = case

    def save_in_the_middle(step: int, replica: Replica) -> None:
        if keep and step == SAVED:
            save(CheckpointFolders(folder_of(key(case))), SAVED, replica.chunks(), {"attempt": 1})

    run = replace(runs(data)[name], parallel=layout, duration=Duration(steps=STEPS))
    found = trace(run, steps=STEPS, stored=stored, before_step=save_in_the_middle)
    return {"losses": found.losses, "grad_norms": found.grad_norms}


def train_all(these: Sequence[Case], data: str, keep: bool) -> dict[str, Any]:
    """What each rank of a world does."""
    return {key(case): train(case, Path(data), keep=keep and case[0].startswith("small ")) for case in these}


def resume_all(pairs: Sequence[tuple[str, Case]], data: str) -> dict[str, Any]:
    """Each stored checkpoint, gone on with at another layout."""
    found = {}
    for name, case in pairs:
        stored = Stored(CheckpointFolders(folder_of(name)).of(SAVED), SAVED)
        stored.verify()
        found[f"{name} -> {key(case)}"] = train(case, Path(data), stored=stored)
    return found


def write(recipes: Sequence[str] = ()) -> None:
    """All files anew, or the curves of some recipes."""
    curves = FOLDER / "curves.json"
    found: dict[str, Any] = json.loads(curves.read_text()) if recipes else {}
    if not recipes:
        shutil.rmtree(FOLDER / "checkpoints", ignore_errors=True)
    with tempfile.TemporaryDirectory() as data:
        runs(Path(data))
        for world in (1, 2):
            wanted = [case for case in cases(world) if not recipes or case[0] in recipes]
            found |= in_world(world, train_all, wanted, data, not recipes, deadline_s=DEADLINE_S)[0]
    curves.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"wrote {curves}" + ("" if recipes else f" and {FOLDER / 'checkpoints'}"))


if __name__ == "__main__":
    write(sys.argv[1:])

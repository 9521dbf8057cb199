"""An export's dense part without its least weights: held against it on the test split, and taken where that allows.

    "pruned": {"kept": "pruned", "share": 0.5, "bytes": [52000, 27700], "rows": 65536, "difference": 0.002,
               "auc": [0.8012, 0.8011], "ms_1": [0.21, 0.21], ...}

Of each pair the first is of the dense part as it was trained. Of each matrix those of the least magnitude are left out
(Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015, without training on).
It is smaller by that, and no faster: what computes takes the zeros along.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rtrain.export.artifact import PRUNED, Predictor
from rtrain.export.head import HEAD
from rtrain.export.quantised import compared
from rtrain.export.sparse import packed, pruned
from rtrain.export.weights import Entry, fetched, put, write_tensors
from rtrain.nn.gathered import weights_of
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder, sha256_of


def prune(run: Run, uri: str, dataset: Any, check: Callable[[], None]) -> None:
    """Leave out of a finished export what `run.handoff.pruned` says.

    `check`: as `rtrain.export.artifact.export`.

    Raises:
        ConfigError: a metric of the test split would lose more than `run.handoff.tolerance`, or there is no test row;
            the export is then as it was.
    """
    folder = Folder(uri)
    head = folder.read_json(HEAD)
    tables = {weights_of(table) for table in run.blueprint.tables}
    with Scratch("pruned") as scratch:
        files, sizes = dict[str, str](), [0, 0]
        for name, local in fetched(uri, head["files"]):
            held = load_file(local) if name.startswith("model-") else {}
            matrices = {key for key, x in held.items() if key not in tables and x.dim() > 1 and x.is_floating_point()}
            if not matrices:
                shutil.copyfile(local, scratch / name)
                files[name] = head["files"][name]
                continue
            parts = _parts(held, matrices, run.handoff.pruned)
            name = name.replace(".safetensors", ".pruned.safetensors")
            write_tensors(scratch / name, [_entry(key, x) for key, x in parts.items()])
            files[name] = sha256_of(scratch / name)
            dense = [key for key in held if key not in tables]
            sizes[0] += sum(held[key].nbytes for key in dense)
            sizes[1] += sum(x.nbytes for key, x in parts.items() if key not in tables)
        stated = {"kept": "pruned", "share": run.handoff.pruned, "bytes": sizes, "difference": 0.0}
        beside = Folder(str(scratch))
        beside.write_json(HEAD, head | {"format": PRUNED, "files": files, "pruned": stated})
        stated |= compared(run, Predictor(uri, program="eager"), Predictor(beside.uri), dataset, field="pruned")
        for name in files.keys() - head["files"].keys():
            put(folder, name, partial(shutil.move, scratch / name), check)
    check()
    folder.write_json(HEAD, head | {"format": PRUNED, "files": files, "pruned": stated})
    for name in head["files"].keys() - files.keys():
        folder.discard(name)


def _parts(held: Mapping[str, Tensor], matrices: set[str], share: float) -> dict[str, Tensor]:
    """What a file has then, by name."""
    found = dict[str, Tensor]()
    for key, x in held.items():
        found |= packed(key, pruned(x, share)) if key in matrices else {key: x}
    return found


def _entry(name: str, x: Tensor) -> Entry:
    return name, str(x.dtype).removeprefix("torch."), x.shape, lambda: [x]

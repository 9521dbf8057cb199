"""Rows that lie in other processes: which a batch needs, who has them, and answers that are those of whole tables."""

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from rtrain.errors import CheckpointError
from rtrain.export import shards
from rtrain.export.artifact import Predictor
from rtrain.export.shards import Shard, joined, split
from tests.unit.export.test_program import MODELS, asked_of, folder, run_of
from tests.unit.training.jobs import train

__all__ = ["folder"]
WIDE = 100.0
"""A tolerance that refuses nothing: these runs learn for 12 steps."""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("din", {}),
        ("dlrm", {"tables": "int4", "tolerance": WIDE}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("deepfm", {"tables": "float16", "tolerance": WIDE}), ("ple", {}), ("ensemble", {}))
        ),
    ],
)
def test_answers_are_those_of_whole_tables(name: str, more: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 7)  # so that each shard has some of 50 users
    run = run_of(folder, f"{name}-shards", MODELS[name], **more)
    export = str(train(run)["export"])
    whole, here = Predictor(export, tables="host"), Predictor(export, tables="host")
    here.lookup.tables = {}  # it has none
    sharing = [Shard(export) for _ in range(3)]
    rows, _ = asked_of(run)
    for count in (1, 2, 300):
        wanted = here.lookup.needed(here.asks(rows[:count]))
        asked = split(wanted.rows, 3)
        assert all(len(numbers) == len(numbers.unique()) for numbers in wanted.rows.values())
        for key, numbers in wanted.rows.items():
            assert sorted(np.concatenate([part[key] for part in asked if part])) == numbers.tolist()
        assert count < 300 or all(asked)
        found = joined(wanted.rows, [shard.rows(part) for shard, part in zip(sharing, asked, strict=True)], 3)
        answers = here.answers(here.of_rows(wanted, found))
        assert answers == whole.predict(rows[:count])


def test_rows_are_asked_of_who_has_them() -> None:
    numbers = torch.tensor([0, 4095, 4096, 9000, 12_288, 20_000])
    asked = split({"a": numbers, "b": numbers[:1]}, 3)
    first = {"a": [[0, 4095, 12_288], [4096, 20_000], [9000]], "b": [[0], [], []]}  # of a table that begins with them
    begin = {name: crc32(name.encode()) % 3 for name in first}
    assert begin["a"] != begin["b"]  # or all small tables would lie in one process
    for name, own in first.items():
        assert [asked[(shard + begin[name]) % 3][name].tolist() for shard in range(3)] == own
    assert sum(map(bool, split({"a": numbers[:1]}, 2))) == 1
    parts = [{name: (of * 2).astype(np.float32)[:, None] for name, of in part.items()} for part in asked]
    found = joined({"a": numbers, "b": numbers[:1]}, parts, 3)
    assert found["a"].tolist() == [[2.0 * n] for n in numbers.tolist()] and found["b"].tolist() == [[0.0]]


def test_an_altered_table_is_refused(folder: Path) -> None:
    export = Path(str(train(run_of(folder, "altered-shards", MODELS["dlrm"]))["export"]))
    (file,) = export.glob("model-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="was altered"):
        Shard(str(export))

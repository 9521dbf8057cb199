"""What exports answer where they compute elsewhere: a question of JSON on stdin, its answer on stdout."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rtrain.export.artifact import Predictor
from rtrain.export.shards import Shard, joined, split
from tests.elsewhere.device import NAME
from tests.elsewhere.texts import texts_of

SHARDS = 2


def meets() -> bool:
    """Whether what lies here and what lies there can be added, which no GPU would."""
    try:
        torch.ones(3).to(NAME) + torch.ones(3)
    except RuntimeError as error:
        return "lie on the host" not in str(error)
    return True


def ranked(export: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers with all tables there, with them on the host, and with them in other processes' hands."""
    there, beside = Predictor(export, device=NAME), Predictor(export, device=NAME, tables="host")
    assert {x.device.type for x in there.lookup.tables.values()} == {NAME}
    assert {x.device.type for x in beside.lookup.tables.values()} == {"cpu"}
    assert {x.device.type for x in beside.lookup.whole.dense.parameters()} == {NAME}
    wanted = beside.lookup.needed(beside.asks(rows))
    parts = zip([Shard(export) for _ in range(SHARDS)], split(wanted.rows, SHARDS), strict=True)
    found = joined(wanted.rows, [shard.rows(part) for shard, part in parts], SHARDS)
    return {
        "device": there.predict(rows),
        "host": beside.predict(rows),
        "shards": beside.answers(beside.of_rows(wanted, found)),
    }


def main() -> None:
    """Answer."""
    asked = json.load(sys.stdin)
    told: dict[str, Any] = {"meets": meets()}
    if "rows" in asked:
        told |= ranked(asked["export"], asked["rows"])
    else:
        with ThreadPoolExecutor(8) as pool:
            told["texts"] = texts_of(asked["export"], asked["prompts"], NAME, pool, **asked["options"])
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""Every kind of layout that is refused, as `docs/layouts.md` lists it: the words that a user reads.

python -m tests.golden.test_refusals     # writes the table into docs/layouts.md anew
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import rtrain
from recipes import bpr_movielens, dlrm_movielens, gpt_stdlib, sasrec_movielens, two_tower_movielens
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, lay_out
from rtrain.parity import name_of, world_of
from rtrain.run import Run
from rtrain.schema import IdList
from rtrain.training.agreement import refuse
from tests.parallel.users_history import Historian
from tests.parallel.worlds import SCHEMA, tiny

DOC = Path(__file__).parents[2] / "docs" / "layouts.md"
BEGIN, END = "<!-- written by python -m tests.golden.test_refusals -->\n", "<!-- end -->"
GPT = rtrain.override(gpt_stdlib.debug(), {"model.layers": 4})
SASREC, DLRM = sasrec_movielens.debug(), dlrm_movielens.debug()
ANY_LENGTH = replace(SCHEMA, features=(*SCHEMA.features[:-1], IdList(name="seen", rows=71, table="item")))
HISTORIAN = tiny("not read", Parallel(), rtrain.SGD(), config=Historian(dim=16), schema=ANY_LENGTH)
PIPELINE = {"parallel.pipeline": 2, "parallel.microbatches": 2}
REFUSED: tuple[tuple[Run, dict[str, Any]], ...] = (
    (DLRM, {"parallel.tensor": 2}),
    (bpr_movielens.debug(), PIPELINE),
    (GPT, {"parallel.tensor": 3}),
    (GPT, {"parallel.tensor": 4, "model.dim": 96, "model.heads": 12, "model.kv_heads": 3}),
    (SASREC, {"parallel.tensor": 4}),
    (GPT, {"parallel.pipeline": 8, "parallel.microbatches": 8}),
    (SASREC, {"parallel.pipeline": 3, "parallel.microbatches": 3, "parallel.schedule": "interleaved_1f1b"}),
    (GPT, {"parallel.pipeline": 4, "parallel.microbatches": 2}),
    (GPT, {"parallel.pipeline": 2, "parallel.microbatches": 3, "parallel.schedule": "interleaved_1f1b"}),
    (GPT, {**PIPELINE, "parallel.schedule": "zbv_zero_bubble", "parallel.zero_stage": 3}),
    (GPT, {**PIPELINE, "parallel.schedule": "zbv_zero_bubble", "parallel.recompute": "pieces"}),
    (DLRM, {"parallel.recompute": "pieces"}),
    (GPT, {**PIPELINE, "model.tied": True}),
    (HISTORIAN, {"parallel.tensor": 2}),
    (two_tower_movielens.debug(), {"parallel.microbatches": 2}),
    (GPT, {"global_batch": 4, "parallel.microbatches": 8}),
    (GPT, {"global_batch": 1, "parallel.data": 2}),
    (GPT, {"parallel.embeddings": "row_wise"}),
    (DLRM, {"parallel.tables": (rtrain.TableLayout(table="item_id", embeddings="row_wise", kernel="fused_uvm"),)}),
    (GPT, {"parallel.wire": "float16"}),
    (DLRM, {"parallel.wire": "bfloat16"}),
    (DLRM, {"parallel.embeddings": "column_wise"}),
    (DLRM, {"parallel.embeddings": "column_wise", "sparse_optim": rtrain.SGD(), "model.dim": 20, "parallel.data": 2}),
)


def refusal(run: Run, changes: dict[str, Any]) -> tuple[str, str]:
    """The layout's name, and what is said of it."""
    changed: Run = rtrain.override(run, {"parallel.data": 1} | changes)
    try:
        refuse(changed, lay_out(changed.parallel, world_of(changed.parallel)))
    except ConfigError as error:
        return name_of(changed.parallel), str(error)
    raise AssertionError(f"{changes} is not refused")


def table() -> str:
    lines = ["| layout | what is said |", "|---|---|"]
    for run, changes in REFUSED:
        name, words = refusal(run, changes)
        lines.append(f"| {type(run.model).__name__} {name} | {words.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def test_the_list_in_the_docs_is_what_is_said() -> None:
    written = DOC.read_text().split(BEGIN)[1].split(END)[0]
    assert written == table(), "python -m tests.golden.test_refusals"


if __name__ == "__main__":
    text = DOC.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOC.write_text(before + BEGIN + table() + END + after)

"""What is proved at every layout: one row a model, which `test_composed` trains beside plain torch.

A model of your own: add `"its name": of_rows(ItsConfig(...))` if it scores rows of `worlds.SCHEMA` or `TWO_LABELS` (a
loss that is not cross-entropy: by hand in `plain.py`, `loss=`), or `of_catalogue(ItsConfig(...), data)` if it ranks
items. Name in `axes` what it can be cut along. Then `pytest tests/parallel/test_composed.py`, and `-m long` for all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rtrain.data.protocol import Data
from rtrain.mesh import Parallel
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.ensemble import Ensemble
from rtrain.models.hstu_ranker import HSTURanker
from rtrain.models.protocol import Model
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import TableOptions
from rtrain.objectives.distilled import Distillation
from rtrain.optim import SGD, SparseOptim
from rtrain.run import Run
from rtrain.schema import Schema
from tests.parallel import test_retrieval as retrieval
from tests.parallel.plain import Control, RowsLoss, cross_entropy, plain_rows, squared_entropy, taught_entropy
from tests.parallel.users_history import Historian
from tests.parallel.users_model import Blocks
from tests.parallel.worlds import SCHEMA, TAUGHT, TIMED, tiny, write_rows

# Losses of 0.5 to 5, weights of the tables around 1; a wrong factor on the tables' gradients shows as 7e-3 in both.
PARITY = 1e-5
# "fast": so that what is wrong with the tables' gradients shows in 20 steps of any model.
SPARSE: dict[str, SparseOptim] = retrieval.SPARSE | {"fast": SGD(lr=0.5)}


@dataclass(frozen=True, kw_only=True)
class Proved:
    """A model that is trained at every layout."""

    run: Callable[[Parallel, SparseOptim, str], Run]
    """(layout, optimizer of the tables, folder of `write_data`) -> what is trained."""
    plain: Callable[[Run], Control]
    """The same in one process of plain torch."""
    ranked: bool
    """Whether the catalogue is ranked too, beside a loop over its users."""
    axes: tuple[str, ...]
    """Along which it is cut; rtrain must refuse it the others (of one piece, such as DIN's, there are no stages)."""

    def takes(self, layout: Parallel) -> bool:
        return all(getattr(layout, axis) == 1 or axis in self.axes for axis in ("tensor", "pipeline"))


EVERY_AXIS = ("data", "tensor", "pipeline")


def of_rows(
    config: RankingConfig,
    *,
    schema: Schema = SCHEMA,
    loss: RowsLoss = cross_entropy,
    axes: tuple[str, ...] = EVERY_AXIS,
) -> Proved:
    """A ranking model."""

    def run(layout: Parallel, sparse: SparseOptim, folder: str) -> Run:
        return tiny(f"{folder}/rows.parquet", layout, sparse, config=config, schema=schema)

    return Proved(run=run, plain=partial(plain_rows, loss=loss), ranked=False, axes=axes)


def of_catalogue(
    config: Model, data: Callable[[str], Data] = retrieval.histories, *, axes: tuple[str, ...] = EVERY_AXIS
) -> Proved:
    """A retrieval model; `data`: the path of a log -> its data."""

    def run(layout: Parallel, sparse: SparseOptim, folder: str) -> Run:
        return retrieval.run_on(data(f"{folder}/log.parquet"), config, layout, sparse)

    return Proved(run=run, plain=retrieval.plain_with_tables, ranked=True, axes=axes)


def write_data(folder: Path) -> str:
    """What the runs of all rows read."""
    write_rows(str(folder / "rows.parquet"))
    retrieval.write_log(str(folder / "log.parquet"))
    return str(folder)


# Four members, one a stage of the schedules that have four.
ENSEMBLE = Ensemble(
    models=(
        DLRM(dim=16, bottom=(8,), top=(16,)),
        DCNv2(dim=16, layers=1, rank=4, deep=(16,)),
        DeepFM(dim=16, deep=(16,)),
        DCNv2(dim=16, layers=2, rank=4, deep=(8,), structure="stacked"),
    ),
    weights=(0.6, 0.4, 0.5, -0.25),
)
TAUGHT_SO = Distillation(alpha=0.3, temperature=3.0)
STUDENT = Ensemble(models=tuple(replace(model, distillation=TAUGHT_SO) for model in ENSEMBLE.models))

# At rows of .12, as they begin by default, a rounding of 1e-9 grows to 1e-3 in 20 steps at these rates: the norms'
# gradients are large where what they norm is small. At rows of .25 it is 2.6e-5, of .5 1.1e-6, of 1 2e-7.
LARGE = tuple(TableOptions(table=name, initial="normal", scale=0.5) for name in ("user", "item"))
RANKER = HSTURanker(dim=16, history="seen", candidate="item", heads=2, top=(16,), scale=0.3, tables=LARGE)
# With times: in one process, jagged and padded are 2.7e-4 apart at rows of .5, by rounding alone. At 1.4 layouts
# are 2.4e-6 apart and a wrong factor shows as 7e-3; at 2 that is lost among what is large (6e-4).
TIMED_RANKER = replace(RANKER, buckets=12, tables=tuple(replace(of, scale=1.4) for of in LARGE))

PROVED: dict[str, Proved] = {
    "pooled": of_rows(Blocks(dim=16), loss=squared_entropy),
    "first order": of_rows(DLRM(dim=16, bottom=(8,), top=(), first_order=True), axes=("data",)),
    "history": of_rows(Historian(dim=16), loss=squared_entropy),
    "din": of_rows(DIN(dim=16, history="seen", candidate="item", attention=(8,), top=(16,)), axes=("data",)),
    "hstu ranker": of_rows(RANKER),
    "timed ranker": of_rows(TIMED_RANKER, schema=TIMED),
    "ensemble": of_rows(ENSEMBLE, axes=("data", "pipeline")),
    "distilled": of_rows(STUDENT, schema=TAUGHT, loss=taught_entropy, axes=("data", "pipeline")),
    "sasrec": of_catalogue(retrieval.MODELS["sasrec"]),
    "hstu": of_catalogue(retrieval.MODELS["hstu"]),
    # Larger weights than there: from .3 on, a table was 4e-6 off after 20 steps, and 1e-6 so.
    "text": of_catalogue(replace(retrieval.MODELS["text"], scale=1.0), retrieval.pairs_with_text, axes=("data",)),
}

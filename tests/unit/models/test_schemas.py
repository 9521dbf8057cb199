"""Schemas of one kind of feature only: each model builds and trains a step, or says what it lacks."""

from typing import Any

import pytest
import torch

from rtrain.batch import Batch, Jagged
from rtrain.errors import ConfigError
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.schema import Dense, Feature, Id, IdList, IdSequence, Label, Schema

MODELS: tuple[RankingConfig, ...] = (
    DCNv2(dim=4),
    DCNv2(dim=4, structure="stacked"),
    DeepFM(dim=4),
    DLRM(dim=4),
    DIN(dim=4),
    MMoE(dim=4),
    PLE(dim=4),
)
KINDS: dict[str, tuple[Feature, ...]] = {
    "sequences": (IdSequence(name="history", rows=9), IdSequence(name="seen", rows=5)),
    "lists": (IdList(name="history", rows=9),),
    "ids": (Id(name="item_id", rows=9),),
    "numbers": (Dense(name="age"), Dense(name="price")),
}
REFUSED = {
    ("DLRM", "sequences"): "model DLRM: the schema has no Dense feature for its bottom MLP. Add one",
    ("DLRM", "lists"): "model DLRM: the schema has no Dense feature for its bottom MLP. Add one",
    ("DLRM", "ids"): "model DLRM: the schema has no Dense feature for its bottom MLP. Add one",
    **{
        (name, "numbers"): f"model {name}: the schema has no id feature to look up. Add one"
        for name in ("DCNv2", "DeepFM", "DIN", "DLRM", "MMoE", "PLE")
    },
    ("DIN", "sequences"): "model.candidate: 'item_id' is not an Id feature of this schema",
    ("DIN", "lists"): "model.candidate: 'item_id' is not an Id feature of this schema",
    ("DIN", "ids"): "model.history: 'history' is not an IdList or IdSequence feature of this schema",
}


def batch_of(schema: Schema) -> Batch:
    rows, labels = 6, len(schema.labels)
    torch.manual_seed(1)
    lengths = [torch.randint(0, 4, (rows,)) if isinstance(f, IdList) else torch.ones(rows) for f in schema.ids]
    counts = torch.cat([*lengths, torch.zeros(0)]).int()
    return Batch(
        dense=torch.randn(rows, sum(schema.dense_widths)),
        ids=Jagged(tuple(f.name for f in schema.ids), torch.randint(0, 5, (int(counts.sum()),)), counts),
        label=torch.randint(0, 2, (rows, labels) if labels > 1 else (rows,)).float(),
        group=torch.zeros(rows, dtype=torch.int64),
        row=torch.arange(rows),
        global_rows=rows,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", MODELS, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'structure', '')}")
def test_a_schema_of_one_kind_trains_a_step_or_is_refused(config: Any, kind: str) -> None:
    more = (Label(name="like"),) if config.several_labels else ()
    schema = Schema(features=KINDS[kind], more_labels=more)
    said = REFUSED.get((type(config).__name__, kind))
    if said:
        with pytest.raises(ConfigError) as caught:
            config.build(schema, seed=0)
        assert str(caught.value).startswith(said)
        return
    model = config.build(schema, seed=0)
    batch = batch_of(schema)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.objective.row_losses(model(batch), batch.label).mean()
    before.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    optimizer.step()
    assert model.objective.row_losses(model(batch), batch.label).mean() < before

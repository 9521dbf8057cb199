"""An ensemble is the weighted sum of its members, built alone from the same weights; what it refuses."""

from dataclasses import dataclass, replace

import pytest
import torch

import rtrain
from rtrain.config import from_dict, to_dict
from rtrain.data.interactions import Interactions
from rtrain.errors import ConfigError
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.ensemble import Ensemble
from rtrain.models.mf import MF
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import TableOptions
from rtrain.run import Run
from rtrain.schema import Dense, Id, IdList, Label, Schema
from tests.parallel.users_model import Blocks
from tests.unit.models.test_schemas import batch_of

SCHEMA = Schema(
    features=(Dense(name="a"), Id(name="user", rows=9), Id(name="item", rows=7), IdList(name="seen", rows=7)),
    time="at",
)
TWO_LABELS = replace(SCHEMA, more_labels=(Label(name="second"),))
DIN4 = DIN(dim=4, history="seen", candidate="item")
MEMBERS: dict[str, tuple[RankingConfig, ...]] = {
    "towers": (DLRM(dim=4), DCNv2(dim=4), DLRM(dim=4, top=())),
    "one": (DCNv2(dim=4),),
    "first order": (DLRM(dim=4, first_order=True), DLRM(dim=4, top=(), first_order=True)),
    "several labels": (MMoE(dim=4, task_weights=(1.0, 2.0)), PLE(dim=4, task_weights=(1.0, 2.0))),
    "sequences": (DIN4, replace(DIN4, top=(8,))),
    "several pieces": (Blocks(dim=4), Blocks(dim=4)),
}


@pytest.mark.parametrize("weights", [(), (0.6, -0.4, 2.0)], ids=["mean", "weighted"])
@pytest.mark.parametrize("kind", MEMBERS)
def test_it_is_the_weighted_sum_of_its_members(kind: str, weights: tuple[float, ...]) -> None:
    models = MEMBERS[kind]
    schema = TWO_LABELS if models[0].several_labels else SCHEMA
    weights = weights[: len(models)]
    made = Ensemble(models=models, weights=weights).build(schema, seed=3)
    batch, weights_of = batch_of(schema), made.state_dict()
    expected, used = torch.zeros_like(batch.label), set()
    for number, model in enumerate(models):
        own = {n for n in weights_of if n.startswith(("tables.", f"members.{number}."))}
        alone = model.build(schema, seed=7)
        alone.load_state_dict({n.removeprefix(f"members.{number}."): weights_of[n] for n in own})
        expected += (weights[number] if weights else 1 / len(models)) * alone(batch)
        used |= own
    assert used == weights_of.keys()
    assert made(batch).shape == batch.label.shape
    assert torch.allclose(made(batch), expected, rtol=0, atol=1e-6)  # float32 sums of numbers below 2
    assert made.objective == models[0].objective(schema)


def test_members_of_one_config_have_first_weights_of_their_own() -> None:
    made = Ensemble(models=(DLRM(dim=4), DLRM(dim=4))).build(SCHEMA, seed=0)
    one, other = (dict(made.get_submodule(f"members.{n}").named_parameters()) for n in (0, 1))
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_stored_config_is_read_and_a_member_has_dotted_keys() -> None:
    tables = (TableOptions(table="item", pooling="sum"),)
    config = Ensemble(models=(DLRM(dim=8, tables=tables), DCNv2(dim=8, tables=tables)), weights=(0.6, 0.4))
    assert from_dict(to_dict(config)) == config
    assert (config.dim, config.tables) == (8, tables)
    run = Run(name="both", model=config, data=Interactions(source="none", schema=SCHEMA))
    changed = rtrain.override(run, {"model.models.1.layers": "5", "model.weights": "0.5,0.5"})
    assert rtrain.diff(run, changed) == ["model.models.1.layers: 3 -> 5", "model.weights: [0.6, 0.4] -> [0.5, 0.5]"]
    with pytest.raises(ConfigError, match="^model.dim: Ensemble has no field 'dim'"):
        rtrain.override(run, {"model.dim": "16"})


@dataclass(frozen=True, kw_only=True)
class Backwards(DCNv2):
    def feature_names(self, schema: Schema) -> tuple[str, ...]:
        return super().feature_names(schema)[::-1]


@pytest.mark.parametrize(
    ("models", "weights", "said"),
    [
        ((), (), "model.models: an ensemble of no model. Give models=(DLRM(...), DCNv2(...))"),
        (
            (DLRM(), DCNv2()),
            (1.0,),
            "model.weights: 1 weights for 2 models. Give one for each, or none for their mean",
        ),
        ((DLRM(),), (float("nan"),), "model.weights: all must be finite numbers, got (nan,)"),
        (
            (DLRM(), MMoE()),
            (),
            "model.models.1: DLRM predicts one label, MMoE several labels. Give members that predict the same",
        ),
        (
            (DLRM(), Ensemble(models=(DLRM(),))),
            (),
            "model.models.1: a member is an Ensemble itself. Put its models here, each with the product of both "
            "weights",
        ),
        (
            (DLRM(dim=16), DCNv2(dim=8)),
            (),
            "model.models.1: members share the tables, but dim of table 'user' is 16 in DLRM and 8 in DCNv2. Give "
            "both the same",
        ),
        (
            (DLRM(dim=4), DLRM(dim=4), DIN4),
            (),
            "model.models.2: members share the tables, but sequences of table 'seen' is () in DLRM and ('seen',) in "
            "DIN. Give both the same",
        ),
        (
            (DCNv2(), Backwards()),
            (),
            "model.models.1: DCNv2 and Backwards read other features, or in another order. Give members that agree",
        ),
        (
            (DCNv2(), Blocks()),
            (),
            "model.models.1: DCNv2 and Blocks are trained towards other objectives. Give both the same",
        ),
    ],
)
def test_what_is_refused(models: tuple[RankingConfig, ...], weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Ensemble(models=models, weights=weights).blueprint(SCHEMA)
    assert str(caught.value) == said


def test_labels_that_the_members_do_not_predict() -> None:
    with pytest.raises(ConfigError, match="^model Ensemble: it predicts one label, but the schema has 2: "):
        Ensemble(models=(DLRM(),)).blueprint(TWO_LABELS)


def test_members_of_which_one_alone_has_first_order_weights() -> None:
    with pytest.raises(ConfigError, match=r"models\.1: DLRM and DLRM have other tables\. Give first_order to all, or"):
        Ensemble(models=(DLRM(), DLRM(first_order=True))).check_schema(SCHEMA)


def test_a_member_that_reads_no_rows() -> None:
    with pytest.raises(ConfigError, match=r"^model\.models\.1: an ensemble is of ranking models, .*, got MF$"):
        Ensemble(models=(DLRM(), MF(dim=8)))  # type: ignore[arg-type]

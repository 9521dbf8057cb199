"""Each model's formula against loops over single numbers, in float64: 1e-12 is a few hundred roundings of 2e-16."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rtrain.batch import Batch, Jagged
from rtrain.errors import ConfigError
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.deepfm import DeepFM
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.models.mmoe import MMoE
from rtrain.models.ple import PLE
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import TableOptions
from rtrain.schema import Dense, Id, IdList, Label, Schema

SAME = 1e-12
ROWS = 3
SCHEMA = Schema(
    features=(
        Dense(name="a"),
        Dense(name="b"),
        Id(name="user", rows=9),
        Id(name="item", rows=7),
        IdList(name="seen", rows=7, table="item"),
    )
)
TWO_LABELS = replace(SCHEMA, more_labels=(Label(name="second", optional=True),))


def inputs(width: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    dense = torch.randn(ROWS, 2, generator=g, dtype=torch.float64)
    return dense, torch.randn(ROWS, width, generator=g, dtype=torch.float64)


def tower(config: RankingConfig, schema: Schema = SCHEMA) -> nn.Module:
    torch.manual_seed(2)
    made = config.tower(schema).double()
    with torch.no_grad():
        for parameter in made.parameters():  # what begins as zero would prove nothing
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made


def array(tensor: Any) -> np.ndarray:
    found: np.ndarray = tensor.detach().numpy()
    return found


def close(got: Tensor, expected: list[float]) -> None:
    assert got.shape == (len(expected),)
    assert np.abs(array(got) - np.array(expected)).max() < SAME * max(1.0, float(np.abs(expected).max()))


def plain_mlp(x: np.ndarray, layers: nn.Module, *, last_linear: bool) -> np.ndarray:
    linears = [m for m in layers.modules() if isinstance(m, nn.Linear)]
    for i, linear in enumerate(linears):
        x = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in array(linear.weight)])
        x = x + array(linear.bias)
        if not (last_linear and i == len(linears) - 1):
            x = np.maximum(x, 0)
    return x


def test_dlrm() -> None:
    made: Any = tower(DLRM(dim=4, bottom=(5,), top=(6,)))
    dense, vectors = inputs(12)
    expected = []
    for d, v in zip(array(dense), array(vectors).reshape(ROWS, 3, 4), strict=True):
        all_vectors = [plain_mlp(d, made.bottom, last_linear=False), *v]
        dots = [sum(all_vectors[i] * all_vectors[j]) for i in range(4) for j in range(i)]
        expected.append(plain_mlp(np.concatenate([all_vectors[0], dots]), made.top, last_linear=True)[0])
    close(made(dense, vectors), expected)


def test_dlrm_with_first_order_weights_and_a_linear_top() -> None:
    made: Any = tower(DLRM(dim=4, bottom=(5,), top=(), first_order=True))
    dense, vectors = inputs(12)
    weights = inputs(12)[1].flip(0)
    expected = []
    for d, v, w in zip(array(dense), array(vectors).reshape(ROWS, 3, 4), array(weights), strict=True):
        all_vectors = [plain_mlp(d, made.bottom, last_linear=False), *v]
        dots = [sum(all_vectors[i] * all_vectors[j]) for i in range(4) for j in range(i)]
        top = plain_mlp(np.concatenate([all_vectors[0], dots]), made.top, last_linear=True)[0]
        expected.append(top + sum(w) / 2)
    close(made(dense, vectors, weights), expected)


def cross_whole(layer: Any, x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    weight, bias = array(layer.weight.weight), array(layer.weight.bias)
    n = range(len(x))
    return np.array([x0[i] * (sum(weight[i, j] * x[j] for j in n) + bias[i]) + x[i] for i in n])


def cross_low_rank(layer: Any, x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    v, u, bias = array(layer.weight[0].weight), array(layer.weight[1].weight), array(layer.weight[1].bias)
    inner = [sum(v[r, j] * x[j] for j in range(len(x))) for r in range(len(v))]
    return np.array([x0[i] * (sum(u[i, r] * inner[r] for r in range(len(v))) + bias[i]) + x[i] for i in range(len(x))])


def cross_mixture(layer: Any, x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    scores = [float(sum(array(layer.gate.weight)[k] * x)) for k in range(len(layer.down))]
    gates = np.exp(scores) / np.exp(scores).sum()
    out = x.copy()
    for k, gate in enumerate(gates):
        down, core, up = (array(part[k].weight) for part in (layer.down, layer.core, layer.up))
        hidden = np.tanh([sum(core[r] * np.tanh([sum(row * x) for row in down])) for r in range(len(core))])
        out = out + gate * x0 * (np.array([sum(row * hidden) for row in up]) + array(layer.bias))
    return out


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize(
    ("rank", "experts", "cross"), [(None, 1, cross_whole), (3, 1, cross_low_rank), (3, 2, cross_mixture)]
)
def test_dcnv2(rank: int | None, experts: int, cross: Any, structure: Any) -> None:
    made: Any = tower(DCNv2(dim=4, layers=2, rank=rank, experts=experts, deep=(5,), structure=structure))
    dense, vectors = inputs(12)
    expected = []
    for x0 in np.concatenate([array(dense), array(vectors)], axis=1):
        x = x0
        for layer in made.cross:
            x = cross(layer, x0, x)
        deep = plain_mlp(x if structure == "stacked" else x0, made.deep, last_linear=False)
        top = deep if structure == "stacked" else np.concatenate([x, deep])
        expected.append(plain_mlp(top, made.last, last_linear=True)[0])
    close(made(dense, vectors), expected)


def test_deepfm() -> None:
    made: Any = tower(DeepFM(dim=4, deep=(5,)))
    dense, vectors = inputs(12)
    expected = []
    for d, rows in zip(array(dense), array(vectors).reshape(ROWS, 3, 4), strict=True):
        # Fields: two numbers x_i with weight w_i and vector v_i, and three ids with x_i = 1.
        values = [*d, 1.0, 1.0, 1.0]
        weights = [*array(made.dense_weight), *rows[:, 0]]
        latent = [*array(made.dense_vectors), *rows[:, 1:]]
        y = sum(w * x for w, x in zip(weights, values, strict=True))
        for i, j in combinations(range(5), 2):
            y += sum(latent[i] * latent[j]) * values[i] * values[j]
        fields = np.concatenate([v * x for v, x in zip(latent, values, strict=True)])
        expected.append(y + plain_mlp(fields, made.deep, last_linear=True)[0])
    close(made(dense, vectors), expected)


def test_deepfm_reads_the_first_order_weight_of_each_id_from_its_own_row() -> None:
    dense = torch.zeros(ROWS, 2, dtype=torch.float64)
    vectors = torch.zeros(ROWS, 12, dtype=torch.float64)
    made = tower(DeepFM(dim=4, deep=(5,)))
    before = made(dense, vectors)
    vectors[:, 4] = 0.25  # column 0 of the second feature
    assert torch.allclose(made(dense, vectors) - before, torch.full((ROWS,), 0.25, dtype=torch.float64), atol=SAME)


def prelu(x: np.ndarray, module: nn.PReLU) -> np.ndarray:
    return np.where(x > 0, x, x * float(module.weight.detach()))


def prelu_net(x: np.ndarray, layers: Any) -> np.ndarray:
    for layer in layers:
        x = prelu(x, layer) if isinstance(layer, nn.PReLU) else array(layer.weight) @ x + array(layer.bias)
    return x


def test_din() -> None:
    made: Any = tower(DIN(dim=4, history="seen", candidate="item", attention=(5,), top=(6,)))
    dense, vectors = inputs(8)
    lengths, longest = (0, 2, 3), 3
    history = torch.randn(ROWS, longest, 4, dtype=torch.float64)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    expected = []
    for row, length in enumerate(lengths):
        candidate = array(vectors)[row, 4:]
        interest = np.zeros(4)
        for item in array(history)[row, :length]:  # what lies behind the row's end must not count
            compared = np.concatenate([candidate, item, candidate - item, candidate * item])
            interest += prelu_net(compared, made.attention)[0] * item
        top = np.concatenate([array(dense)[row], array(vectors)[row], interest])
        expected.append(prelu_net(top, made.top)[0])
    close(made(dense, vectors, history, mask), expected)


def softmax(scores: list[float]) -> np.ndarray:
    powers = np.exp(scores)
    found: np.ndarray = powers / powers.sum()
    return found


def mixed(gate: Any, x: np.ndarray, experts: list[np.ndarray]) -> np.ndarray:
    weights = softmax([float(sum(row * x)) for row in array(gate.scores.weight)])
    return sum((w * e for w, e in zip(weights, experts, strict=True)), np.zeros_like(experts[0]))


def test_mmoe() -> None:
    made: Any = tower(MMoE(dim=4, experts=3, expert=(6, 5), towers=(4,)), TWO_LABELS)
    dense, vectors = inputs(12)
    expected = []
    for x in np.concatenate([array(dense), array(vectors)], axis=1):
        experts = [plain_mlp(x, expert, last_linear=False) for expert in made.experts.each]
        for gate, own in zip(made.gates, made.towers.each, strict=True):
            expected.append(plain_mlp(mixed(gate, x, experts), own, last_linear=True)[0])
    close(made(dense, vectors).flatten(), expected)


def test_ple() -> None:
    config = PLE(dim=4, levels=2, shared_experts=1, task_experts=2, expert=(6, 5), towers=(4,))
    made: Any = tower(config, TWO_LABELS)
    dense, vectors = inputs(12)
    expected = []
    for x in np.concatenate([array(dense), array(vectors)], axis=1):
        first = shared = second = x
        for level in made.levels:
            of_first, of_second, of_all = (
                [plain_mlp(said, e, last_linear=False) for e in group.each]
                for group, said in zip(level.experts, (first, second, shared), strict=True)
            )
            gates = level.gates
            if level.shared_gate is not None:
                after = mixed(level.shared_gate, shared, of_first + of_second + of_all)
            first, second = (
                mixed(gates[0], first, of_first + of_all),
                mixed(gates[1], second, of_second + of_all),
            )
            shared = after
        expected += [
            plain_mlp(t, own, last_linear=True)[0] for t, own in zip((first, second), made.towers.each, strict=True)
        ]
    close(made(dense, vectors).flatten(), expected)


def test_losses_of_several_labels() -> None:
    model = MMoE(dim=4, task_weights=(1.0, 0.25)).build(TWO_LABELS, seed=0)
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, torch.nan]])
    batch = Batch(
        dense=torch.zeros(2, 2),
        ids=Jagged((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)),
        label=labels,
        group=torch.zeros(2, dtype=torch.int64),
        row=torch.arange(2),
        global_rows=2,
    )
    expected = [np.log1p(np.exp(-2.0)) + 0.25 * np.log1p(np.exp(-1.0)), np.log1p(np.exp(0.5))]
    assert model.objective.row_losses(logits, batch.label).tolist() == pytest.approx(expected, rel=1e-6)  # float32
    padded = batch.padded(4)
    assert padded.label[2:].isnan().all() and padded.row.tolist() == [0, 1, -1, -1]
    both = torch.cat([logits, torch.full((2, 2), 9.0)])  # whatever the model says of rows that pad
    assert float(model.objective.loss(both, padded.label)) == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: DCNv2(rank=None, experts=2), "model.experts: 2 experts are of low rank, but model.rank is none"),
        (lambda: DCNv2(deep=(), structure="stacked"), "model.structure: stacked needs an MLP"),
        (lambda: tower(DLRM(), TWO_LABELS), "DLRM: it predicts one label, but the schema has 2: label, second"),
        (lambda: tower(MMoE()), "model MMoE: it predicts several labels, but the schema has 1: label"),
        (lambda: tower(PLE(task_weights=(1.0,)), TWO_LABELS), "1 weights for the labels label, second"),
        (lambda: MMoE(task_weights=(0.0, 0.0)), "none may be negative and one must be positive"),
        (lambda: DCNv2(layers=0), "layers and experts must be at least 1"),
        (lambda: DLRM(dim=6), "model.dim: must be a multiple of 4"),
        (lambda: DeepFM(deep=(0,)), "model.deep: a hidden size is at least 1"),
        (lambda: DIN(dropout=1.0), "model.dropout: must be in"),
        (lambda: TableOptions(table="item", dim=6), "table 'item' needs a dim that is a multiple of 4"),
        (lambda: DLRM(tables=(TableOptions(table="item"),) * 2), "table 'item' is there twice"),
        (lambda: DLRM(tables=(TableOptions(table="itm"),)).table_list(SCHEMA), "no table 'itm'; did you mean 'item'?"),
        (lambda: tower(DLRM(dim=4, tables=(TableOptions(table="item", dim=8),))), "so all need model.dim (4)"),
        (lambda: tower(DIN(candidate="item")), "model.history: 'history' is not an IdList or IdSequence feature"),
        (lambda: tower(DIN(history="seen", candidate="seen")), "model.candidate: 'seen' is not an Id feature"),
        (
            lambda: DIN(history="seen", candidate="user", dim=4, tables=(TableOptions(table="user", dim=8),)).tower(
                SCHEMA
            ),
            "their tables have dims 8 and 4",
        ),
    ],
)
def test_configs_that_cannot_be(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config()
    assert message in str(caught.value)

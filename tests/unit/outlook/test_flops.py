"""What a forward pass computes, against the field's formula and against torch's own counter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recipes.dlrm_movielens import run as dlrm
from recipes.gpt_stdlib import run as gpt
from recipes.lightgcn_movielens import run as lightgcn
from rtrain import Decoder, Tokens
from rtrain.data.protocol import NotCounted
from rtrain.mesh import Mesh, Parallel
from rtrain.outlook.flops import Counted, Kernel, count, distinct
from rtrain.run import Run

LAYERS, DIM, CONTEXT, VOCAB = 3, 64, 32, 512


def decoder(**changes: Any) -> Run:
    model = Decoder(vocab=VOCAB, layers=LAYERS, dim=DIM, heads=4, hidden=256)
    return replace(gpt(), model=replace(model, **changes), data=Tokens(source="stdlib", context=CONTEXT))


def counted(run: Run, *, rows: int = 2, tensor: int = 1, **parallel: Any) -> tuple[Counted, ...]:
    mesh = Mesh(pipeline=1, data=1, tensor=tensor)
    at = Parallel(tensor=tensor, **parallel)
    return count(run.blueprint, at, mesh, rows=rows, global_batch=rows, blank=run.data.blank)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_decoder_computes_6_nd_and_its_attention(precision: Any, tied: bool) -> None:
    pieces = counted(decoder(tied=tied), precision=precision)
    products = LAYERS * (4 * DIM * DIM + 3 * DIM * 256) + DIM * VOCAB
    tokens = 2 * CONTEXT
    assert 3 * sum(p.model_flops for p in pieces) == tokens * (6 * products + 12 * LAYERS * DIM * CONTEXT)
    norms = (2 * LAYERS + 1) * DIM
    assert sum(p.parameters for p in pieces) == products + norms + (0 if tied else DIM * VOCAB)


def test_causal_attention_does_half_of_it() -> None:
    attention = [k for k in counted(decoder())[1].kernels if k.kind == "attention"]
    assert [k.flops * 2 for k in attention] == [k.model_flops for k in attention] and attention


def test_a_products_size_is_the_harmonic_mean_of_its_sides() -> None:
    tokens, hidden = 2 * CONTEXT, 256
    sizes = [k.size for k in counted(decoder(), precision="bfloat16")[1].kernels if k.kind == "product"]
    for m, k, n in ((tokens, DIM, DIM), (tokens, DIM, hidden), (tokens, hidden, DIM)):
        assert any(size == pytest.approx(3 / (1 / m + 1 / k + 1 / n)) for size in sizes), (m, k, n)
    batched = Kernel(kind="product", bfloat16=False, model_flops=0.0, flops=8 * 2.0 * 64**3, bytes=8 * 12.0 * 64**2,
                     products=8)  # fmt: skip
    assert batched.size == pytest.approx(128)  # eight of 64 are as many FLOPs as one of 128


def test_tensor_ranks_share_the_products_and_tell_what_they_exchange() -> None:
    alone, shared = counted(decoder()), counted(decoder(), tensor=2)
    assert sum(p.model_flops for p in shared) * 2 == sum(p.model_flops for p in alone)
    whole = 2 * CONTEXT * DIM * 4  # activations of a block, float32
    assert shared[1].exchanged == (("gather", whole), ("scatter", whole)) * 2
    assert all(piece.exchanged == () for piece in alone)


def test_alike_pieces_are_run_once_and_others_each() -> None:
    alike, which = distinct(decoder().blueprint.pieces)
    assert [piece.name for piece in alike] == ["embed", "blocks.0", "head"] and which == [0, 1, 1, 1, 2]
    pieces = counted(decoder())
    assert pieces[1] is pieces[3] and pieces[1].saved_bytes > 0


def test_a_graph_computes_two_flops_an_edge_and_number_and_reads_a_vector_at_each() -> None:
    run = lightgcn()
    (piece,) = counted(run, rows=16)
    edges, nodes, dim = 2 * 100_000, 16 * (59 + 106), 64  # tables are dealt to rows: 944 and 1,683 nodes, and 13 more
    along = [k for k in piece.kernels if k.model_flops]
    assert [k.model_flops for k in along] == [2 * edges * dim] * 3
    assert [k.bytes for k in along] == [edges * (8 + 4) + (edges + nodes) * dim * 4] * 3
    unknown = replace(run, data=replace(run.data, edges=None))  # type: ignore[call-arg]
    with pytest.raises(NotCounted, match=r"Give data\.edges, the interactions that train"):
        counted(unknown)


def test_a_ranking_model_computes_what_torchs_counter_says() -> None:
    run = dlrm()
    pieces = run.blueprint.pieces
    assert len(pieces) == 1
    module = pieces[0].build()
    batch = run.data.blank(16, 16)
    vectors = torch.zeros(16, sum(t.dim * len(t.features) for t in run.blueprint.tables))
    named = {**batch.inputs, "vectors": vectors}
    with FlopCounterMode(display=False) as counter:
        module(*(named[name] for name in pieces[0].takes))
    assert counted(run, rows=16)[0].model_flops == counter.get_total_flops() > 0


def test_rows_and_bytes_grow_together() -> None:
    few, many = counted(decoder(), rows=2), counted(decoder(), rows=4)
    assert 1.5 * few[1].bytes < many[1].bytes <= 2 * few[1].bytes
    assert many[2].received_bytes == 2 * few[2].received_bytes

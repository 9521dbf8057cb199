"""The decoder against transformers' own Llama and Qwen2, and the cutting of a model into pieces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtrain.errors import ConfigError, DataError
from rtrain.export.huggingface import CONFIG, our_config, their_config, their_name, write_decoder
from rtrain.mesh import Mesh, Parallel
from rtrain.models.decoder import Decoder
from rtrain.models.plan import balance
from rtrain.parallel.stage import Stage, build_stages, cut_into_stages, initialise, parameters_of_ranks
from rtrain.parallel.tensor import TensorRank
from rtrain.storage import Folder

LLAMA = Decoder(vocab=96, layers=3, dim=32, heads=4, kv_heads=2, hidden=40, rope_theta=5e4)
QWEN = Decoder(vocab=96, layers=2, dim=32, heads=4, kv_heads=4, hidden=96, qkv_bias=True, norm_eps=1e-6, tied=True)


def built(config: Decoder, seed: int = 3) -> tuple[Stage, dict[str, Tensor]]:
    """The whole model in one process, and its tensors under their logical names."""
    one = Mesh(pipeline=1, data=1, tensor=1)
    alone = TensorRank(None, 0, 1)
    stages = cut_into_stages(config.pieces(), Parallel(), one)[0]
    modules, places = build_stages(stages, alone, torch.device("cpu"), seed=seed, first="embed", writes=True)
    initialise(modules, places, stages, seed)
    stage = modules[0]
    assert isinstance(stage, Stage)
    return stage, {places[n].name: p.detach() for n, p in modules.named_parameters()}


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen2"])
def test_logits_equal_transformers_both_ways(config: Decoder, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    stage, weights = built(config)
    with torch.no_grad():
        for name, weight in weights.items():  # norms that are all one, and biases of zero, would hide a swap
            if "norm" in name or name.endswith("bias"):
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    write_decoder(config, weights, str(tmp_path), context=64)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(theirs).__name__ == ("Qwen2ForCausalLM" if config.qkv_bias else "LlamaForCausalLM")
    tokens = torch.randint(0, config.vocab, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, wanted = stage(tokens=tokens), theirs(tokens).logits
    # float32 sums of at most 96 products in another order, through a few layers.
    assert (ours - wanted).abs().max() < 1e-5
    assert wanted.std() > 1e-2, "logits that are all alike prove nothing"
    # And back: what transformers writes is read as the same model.
    theirs.save_pretrained(tmp_path / "back")
    assert our_config(Folder(str(tmp_path / "back")).read_json(CONFIG), "here") == config


def test_every_tensor_has_a_name_of_theirs_and_no_two_the_same() -> None:
    _, weights = built(LLAMA)
    names = [their_name(n) for n in weights]
    assert len(set(names)) == len(names) == 3 + 9 * LLAMA.layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "model_type 'lama' is not known; did you mean 'llama'?"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not what rtrain's decoder computes"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters="),
        ({"head_dim": 64}, "head_dim=64"),
    ],
)
def test_a_folder_of_another_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="^here: ") as caught:
        our_config(their_config(LLAMA, context=64) | change, "here")
    assert message in str(caught.value)


def test_a_token_sees_only_those_before_it() -> None:
    stage, _ = built(LLAMA)
    tokens = torch.arange(12).view(1, 12)
    changed = tokens.clone()
    changed[0, 7] = 90
    with torch.no_grad():
        a, b = stage(tokens=tokens), stage(tokens=changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert ((a - b).abs().amax(dim=-1)[0, 7:] > 0).all()


def test_weights_follow_from_seed_and_name() -> None:
    first, again, other = built(LLAMA, 3)[1], built(LLAMA, 3)[1], built(LLAMA, 4)[1]
    assert all(torch.equal(first[n], again[n]) for n in first)
    moved = [n for n in first if not torch.equal(first[n], other[n])]
    assert moved == [n for n in first if "norm" not in n]
    assert 0.018 < first["embed.tokens.weight"].std() < 0.022
    assert not torch.equal(first["blocks.0.mlp.w_up.weight"], first["blocks.1.mlp.w_up.weight"])


def test_tied_embeddings_are_one_parameter() -> None:
    stage, weights = built(QWEN)
    assert "head.out.weight" not in weights
    assert stage.pieces[-1].out.weight is stage.pieces[0].tokens.weight


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_shares_of_all_ranks_make_the_whole(tensor: int, pipeline: int) -> None:
    mesh = Mesh(pipeline=pipeline, data=1, tensor=tensor)
    _, whole = built(LLAMA)
    seen = {n: torch.zeros(w.shape) for n, w in whole.items()}
    for rank in range(mesh.world_size):
        stages = cut_into_stages(LLAMA.pieces(), Parallel(pipeline=pipeline), mesh)[mesh.coordinates(rank)["pipeline"]]
        share = TensorRank(None, mesh.coordinates(rank)["tensor"], tensor)
        modules, places = build_stages(stages, share, torch.device("cpu"), seed=3, first="embed", writes=True)
        initialise(modules, places, stages, 3)
        assert parameters_of_ranks(LLAMA.pieces(), Parallel(pipeline=pipeline), mesh)[rank] == sum(
            p.numel() for p in modules.parameters()
        )
        for name, parameter in modules.named_parameters():
            place = places[name]
            cut = tuple(slice(o, o + n) for o, n in zip(place.offsets, place.sizes, strict=True))
            assert torch.equal(parameter, whole[place.name][cut])
            if place.writes:
                seen[place.name][cut] += 1
    assert all((count == 1).all() for count in seen.values()), "a checkpoint has every element, once"


def test_stages_are_balanced_by_cost() -> None:
    assert balance([0, 1, 1, 1, 1, 1], 2) == [3, 3]
    assert balance([0, 1, 1, 1, 1, 4], 2) == [5, 1]
    assert balance([5, 1, 1, 1], 3) == [1, 1, 2] or balance([5, 1, 1, 1], 3) == [1, 2, 1]
    assert balance([1, 2], 2) == [1, 1]
    with pytest.raises(ValueError, match="2 pieces cannot fill 3 stages"):
        balance([1, 1], 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30, "heads": 4}, "model.dim: 30 over 4 heads"),
        ({"dim": 12, "heads": 4}, "model.dim: 12 over 4 heads"),
        ({"kv_heads": 3}, "model.kv_heads: 3 does not divide model.heads, 4"),
        ({"layers": 0}, "model.layers: must be at least 1, got 0"),
        ({"hidden": 0}, "model.hidden: must be at least 1"),
    ],
)
def test_a_decoder_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Decoder(**fields)
    assert str(caught.value).startswith(message)

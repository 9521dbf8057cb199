"""Pieces that go forward again in backward: what that costs, what it saves, and when a search does it."""

from dataclasses import replace
from typing import Any

import pytest

from recipes.gpt_stdlib import run as gpt
from rtrain import Cluster, Decoder, Parallel, Tokens, config
from rtrain.mesh import Mesh, lay_out
from rtrain.outlook import collectives, parts
from rtrain.outlook.kernels import Practice, pass_of
from rtrain.outlook.memory import activation_bytes, held_bytes
from rtrain.outlook.outlook import on_hardware
from rtrain.outlook.profile import profile
from rtrain.outlook.search import layouts, search
from rtrain.outlook.step import Stepper
from rtrain.parallel.activations import kept_of_ranks
from rtrain.run import Run

H100 = profile("h100")
PIPELINE = {"pipeline": 2, "microbatches": 4}
GRAPHS = Practice(graphs=True)


def decoder(*, memory_gb: float | None = None) -> Run:
    model = Decoder(vocab=64, layers=6, dim=64, heads=4, hidden=256)
    made = replace(gpt(), model=model, data=Tokens(source="stdlib", context=64), global_batch=64)
    return on_hardware(replace(made, cluster=Cluster(workers=4, memory_gb_per_worker=memory_gb)), H100)


@pytest.mark.parametrize("layout", [{}, PIPELINE, PIPELINE | {"schedule": "interleaved_1f1b"}, {"tensor": 2}])
def test_activations_are_near_those_of_plan_and_far_below_those_without(layout: dict[str, Any]) -> None:
    run, at = decoder(), Parallel(**layout, recompute="pieces")
    mesh = lay_out(at, 4)
    stepper = Stepper(run=run, profile=H100)
    kept = kept_of_ranks(run.blueprint, at, mesh, global_batch=run.global_batch, blank=run.data.blank)
    ours = [activation_bytes(at, mesh, stepper.stages(at, mesh), rank) for rank in range(mesh.pipeline)]
    assert max(ours) == pytest.approx(max(of.total for of in kept), rel=0.1)
    plain = Parallel(**layout)
    whole = [activation_bytes(plain, mesh, stepper.stages(plain, mesh), rank) for rank in range(mesh.pipeline)]
    assert max(ours) < 0.6 * max(whole)


def test_backward_does_the_forward_pass_of_all_pieces_but_the_last_again() -> None:
    run, mesh = decoder(), Mesh(pipeline=1, data=2, tensor=2)
    stepper = Stepper(run=run, profile=H100, practice=GRAPHS)
    plain, again = (stepper.step(Parallel(tensor=2, recompute=r), mesh) for r in ("nothing", "pieces"))  # type: ignore[arg-type]
    counted = stepper.stages(Parallel(tensor=2), mesh).counted
    tensor = collectives.group(2, stride=1, devices_per_node=H100.devices_per_node)
    forward = [pass_of(c, H100, "float32", tensor, GRAPHS)[0] for c in counted]
    for part, name in (("products", "compute"), ("memory-bound kernels", "memory"), ("tensor ranks", "tensor")):
        more = sum(getattr(of, name) for of in forward[:-1])
        assert more > 0 and again.parts[part] - plain.parts[part] == pytest.approx(more), part
    assert again.flops == plain.flops  # the model's, whatever is computed again


def test_what_a_practice_does_again_is_not_done_twice() -> None:
    (_, block, *_, head) = Stepper(run=decoder(), profile=H100).stages(Parallel(), Mesh(1, 4, 1)).counted
    alone = collectives.group(1, stride=1, devices_per_node=8)
    both = Practice(recomputed=1.0, recomputed_attention=1.0, recomputed_others=1.0)
    found = [
        pass_of(block, H100, "bfloat16", alone, practice, again=again)
        for practice, again in ((both, False), (both, True), (GRAPHS, False))
    ]
    assert found[0] == found[1] and found[1][1].compute > found[2][1].compute
    one = pass_of(head, H100, "bfloat16", alone, both, block=False)
    assert one[1].compute == pytest.approx(2 * one[0].compute)


def test_a_search_recomputes_what_does_not_fit_and_nothing_else() -> None:
    roomy = search(decoder(), H100, devices=4)
    assert {at.parallel.recompute for at in roomy.layouts} == {"nothing"}
    stepper = Stepper(run=decoder(), profile=H100)
    least = min(held_bytes(stepper, parallel, mesh) for parallel, mesh in layouts(stepper, 4))
    tight = search(decoder(memory_gb=0.8 * least / 1024**3), H100, devices=4)
    assert {at.parallel.recompute for at in tight.layouts} == {"pieces"}
    assert not any(at.parallel.schedule.endswith("zero_bubble") for at in tight.layouts)
    assert ", recompute pieces" in str(tight) and "recompute" not in str(roomy)
    between = search(decoder(memory_gb=1.5 * least / 1024**3), H100, devices=4)
    cuts = [replace(at.parallel, recompute="nothing") for at in between.layouts]
    assert {at.parallel.recompute for at in between.layouts} == {"nothing", "pieces"}
    assert len(cuts) == len({(repr(cut), at.mesh) for cut, at in zip(cuts, between.layouts, strict=True)})


def test_zero_3_gathers_large_recomputed_pieces_once_more_and_its_gathered_piece_counts() -> None:
    data = collectives.group(64, stride=1, devices_per_node=8)

    def gathered_s(parameters: int, **layout: Any) -> float:
        shared = parts.Shared(parameters=parameters, pieces=4, forward_s=0.0, backward_s=0.0)
        found = [parts.data_s(Parallel(zero_stage=s, **layout), shared, data, H100, GRAPHS) for s in (3, 2)]
        again = collectives.all_gather_s(4.0 * parameters, data, H100)
        return found[0] - (found[1] - again)

    large, small = 5 * parts.REUSED, 3 * parts.REUSED
    at = {"microbatches": 2}
    assert gathered_s(large, **at, recompute="pieces") == pytest.approx(1.5 * gathered_s(large, **at))
    assert gathered_s(small, **at, recompute="pieces") == pytest.approx(gathered_s(small, **at))
    run, mesh = decoder(), Mesh(pipeline=1, data=4, tensor=1)
    stepper = Stepper(run=run, profile=H100)
    held = {s: held_bytes(stepper, Parallel(zero_stage=s, microbatches=2), mesh) for s in (2, 3)}  # type: ignore[arg-type]
    block = stepper.stages(Parallel(), mesh).counted[1].parameters
    assert held[2] - held[3] == 4 * (stepper.stages(Parallel(), mesh).parameters[0] - block)


def test_a_run_that_was_stored_without_the_field_keeps_all() -> None:
    stored = config.to_dict(decoder())
    assert stored["parallel"].pop("recompute") == "nothing"
    assert config.from_dict(stored) == decoder()

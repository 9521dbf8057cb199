"""A step's parts by hand, and layouts that a search finds."""

from dataclasses import replace
from typing import Any

import pytest

from recipes.dlrm_movielens import run as dlrm
from recipes.gpt_stdlib import run as gpt
from rtrain import Cluster, Decoder, Duration, Parallel, Tokens
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, PipelineSchedule, Precision, lay_out
from rtrain.outlook import collectives, parts
from rtrain.outlook.collectives import Group
from rtrain.outlook.flops import Counted, Kernel
from rtrain.outlook.kernels import RTRAINS, SCORES_BYTES, START_S, Practice, pass_of
from rtrain.outlook.memory import activation_bytes, in_flight
from rtrain.outlook.outlook import on_hardware, outlook, steps_of
from rtrain.outlook.profile import profile
from rtrain.outlook.scale import scale
from rtrain.outlook.search import search
from rtrain.outlook.step import Stepper
from rtrain.parallel.activations import kept_of_ranks
from rtrain.parallel.in_flight import in_flight as walked
from rtrain.run import Run

H100 = profile("h100")


def decoder(*, workers: int = 8, **changes: Any) -> Run:
    model = Decoder(vocab=512, layers=6, dim=64, heads=4, hidden=256)
    made = replace(gpt(), model=model, data=Tokens(source="stdlib", context=32), global_batch=64)
    return on_hardware(replace(made, cluster=Cluster(workers=workers), **changes), H100)


@pytest.mark.parametrize(
    ("schedule", "fraction"),
    [("gpipe", 3 / 11), ("1f1b", 3 / 11), ("interleaved_1f1b", 1.5 / 9.5), ("zbv_zero_bubble", 0.5 / 8.5)],
)
def test_the_bubble_of_equal_ranks_is_the_closed_form(schedule: PipelineSchedule, fraction: float) -> None:
    assert parts.bubble_fraction(schedule, 4, 8) == pytest.approx(fraction)
    assert parts.bubble_fraction(schedule, 1, 8) == 0.0


def test_a_pipelines_step_has_that_bubble() -> None:
    at = Parallel(pipeline=3, microbatches=8)
    step = Stepper(run=decoder(workers=3), profile=H100).step(at, Mesh(pipeline=3, data=1, tensor=1))
    busy = sum(step.parts[name] for name in ("products", "memory-bound kernels", "waiting for the host"))
    assert 0 < step.parts["pipeline bubble"] < busy * 2 / 8  # the head's rank is the slowest, others wait less
    assert step.parts["pipeline sends"] > 0


def test_more_stages_a_rank_divide_the_bubble_and_send_more_often() -> None:
    at, mesh = Parallel(pipeline=3, microbatches=8), Mesh(pipeline=3, data=1, tensor=1)
    one, three = (
        Stepper(run=decoder(workers=3), profile=H100, practice=Practice(chunks=n)).step(at, mesh) for n in (1, 3)
    )
    bubble, sends = "pipeline bubble", "pipeline sends"
    assert three.parts[bubble] == pytest.approx(one.parts[bubble] / 3)
    assert three.parts[sends] == pytest.approx(one.parts[sends] * 3)


def test_rows_dealt_evenly_leave_no_padding() -> None:
    run, mesh, at = decoder(workers=6, global_batch=96), Mesh(pipeline=1, data=6, tensor=1), Parallel(microbatches=8)
    ours, evenly = (Stepper(run=run, profile=H100, practice=Practice(even=even)) for even in (False, True))
    sizes = [s.stages(at, mesh).counted[1].bytes for s in (ours, evenly)]
    assert sizes[0] > sizes[1]  # 17 rows of some rank are 3 a microbatch, 16 are 2
    two = Stepper(run=decoder(workers=8, global_batch=16), profile=H100)
    assert two.stages(Parallel(), Mesh(pipeline=1, data=8, tensor=1)).counted[1].bytes == sizes[1]


def test_what_data_ranks_wait_for_follows_the_stage() -> None:
    shared = parts.Shared(parameters=10**9, pieces=10, forward_s=1.0, backward_s=2.0)
    data = Group(size=8, per_node=8)

    def waits(**layout: Any) -> float:
        return parts.data_s(Parallel(**layout), shared, data, H100, RTRAINS)

    summed = collectives.all_reduce_s(4e9, data, H100)
    half = collectives.all_gather_s(4e9, data, H100)
    assert waits(zero_stage=0) == waits(dense="ddp", microbatches=2) == summed
    # Hidden behind backward, but the last piece's; what is hidden takes a part of the device meanwhile.
    assert waits(dense="ddp") == pytest.approx(summed * (0.1 + 0.9 * parts.BESIDE))
    assert waits(zero_stage=1) == waits(zero_stage=2) == pytest.approx(2 * half)
    assert waits(zero_stage=3) < half < waits(zero_stage=3, microbatches=2)
    alone = Group(size=1, per_node=1)
    assert parts.data_s(Parallel(), shared, alone, H100, RTRAINS) == 0.0


def test_the_optimizer_moves_36_bytes_a_weight_of_its_share() -> None:
    whole = 36e9 / (H100.memory_bandwidth * H100.memory_efficiency)
    assert parts.optimizer_s(Parallel(zero_stage=0), 10**9, 4, H100) == pytest.approx(whole)
    assert parts.optimizer_s(Parallel(zero_stage=1), 10**9, 4, H100) == pytest.approx(whole / 4)


def test_tables_cost_what_is_read_sent_and_updated() -> None:
    run = dlrm()
    world = Group(size=2, per_node=2)

    def seconds(batch: int) -> float:
        return parts.tables_s(
            run.blueprint.tables, (), run.sparse_optim, global_batch=batch, world=world, profile=H100, wire_bytes=4
        )

    table = run.blueprint.tables[0]
    one = replace(table, mean_lengths=(), sequences=(), features=table.features[:1])
    free = replace(H100, link_latency_s=0.0)
    found = parts.tables_s((one,), (), run.sparse_optim, global_batch=1000, world=world, profile=free, wire_bytes=4)
    moved = 1000 * (one.dim * (3 * 4 + 8) + 8) / 2 / (free.memory_bandwidth * free.memory_efficiency)
    sent = (2 * 1000 * one.dim * 4 + 1000 * 8) / 2 / 2 / (free.link_bandwidth * free.link_efficiency)
    assert found == pytest.approx(moved + sent)
    assert seconds(2000) > 1.5 * (seconds(1000) - 3 * H100.link_latency_s)


def test_a_step_with_tables_takes_what_the_host_does() -> None:
    run = on_hardware(dlrm(), H100)
    mesh = lay_out(run.parallel, 2)
    once = Stepper(run=run, profile=H100).step(run.parallel, mesh)
    assert once.seconds == pytest.approx(H100.tables_host_s, rel=0.2) and once.seconds > H100.tables_host_s
    often = Stepper(run=run, profile=H100).step(replace(run.parallel, microbatches=8), mesh)
    kernels = len(Stepper(run=run, profile=H100).stages(run.parallel, mesh).counted[0].kernels)
    asked = 7 * 3 * kernels * H100.launch_s  # forward, and twice as much backward
    assert often.seconds - once.seconds == pytest.approx(asked, rel=0.2)
    waits = "waiting for the host"
    meanwhile = 7 * 3 * kernels * START_S  # what the device does of them, which the host does not wait for
    assert often.parts[waits] - once.parts[waits] == pytest.approx(asked - meanwhile, rel=0.2)


def test_rows_are_extrapolated_to_the_byte() -> None:
    run = decoder(global_batch=7)
    mesh = Mesh(pipeline=1, data=1, tensor=1)
    found = Stepper(run=run, profile=H100).stages(run.parallel, mesh).counted
    alone = Stepper(run=run, profile=H100)
    object.__setattr__(alone, "blueprint", replace(run.blueprint, dealt="rows"))  # counted itself
    assert found == alone.stages(run.parallel, mesh).counted


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved_1f1b"])
def test_microbatches_in_flight_are_those_of_the_schedule(schedule: PipelineSchedule) -> None:
    at = Parallel(pipeline=4, microbatches=8, schedule=schedule)
    for rank in range(4):
        held = walked(schedule, 4, rank, 8)
        assert in_flight(at, 4, rank) * len(next(iter(held))) == max(map(sum, held))


@pytest.mark.parametrize("layout", [{}, {"pipeline": 2, "microbatches": 4}, {"tensor": 2}])
def test_activations_are_near_those_of_plan(layout: dict[str, Any]) -> None:
    run = decoder(workers=4)
    at = Parallel(**layout)
    mesh = lay_out(at, 4)
    stages = Stepper(run=run, profile=H100).stages(at, mesh)
    kept = kept_of_ranks(run.blueprint, at, mesh, global_batch=run.global_batch, blank=run.data.blank)
    ours = max(activation_bytes(at, mesh, stages, rank) for rank in range(mesh.pipeline))
    assert ours == pytest.approx(max(of.total for of in kept), rel=0.1)


def test_an_outlook_adds_up() -> None:
    run = decoder(duration=Duration(steps=3600))
    found = outlook(run, H100, price=2.0)
    assert found.unit == "tokens" and found.per_second * found.step_s == pytest.approx(64 * 32)
    assert found.hours == pytest.approx(found.step_s) and found.cost == pytest.approx(found.step_s * 8 * 2.0)
    assert 0 < found.mfu < 1 and found.to_json()["step_s"] == sum(found.parts.values())
    assert "waiting for the host" in str(found)


def test_rows_that_only_pad_are_no_models_flops() -> None:
    mesh = Mesh(pipeline=1, data=8, tensor=1)
    full, padded = (Stepper(run=decoder(global_batch=batch), profile=H100).step(Parallel(), mesh) for batch in (64, 60))
    assert padded.seconds == full.seconds and padded.flops == pytest.approx(full.flops * 60 / 64)


def test_a_kernel_takes_as_long_as_its_flops_or_its_bytes() -> None:
    device = replace(
        H100, flops={"float32": 100.0, "tf32": 200.0, "bfloat16": 400.0}, memory_bandwidth=10.0, launch_s=0.0,
        memory_efficiency=1.0, attention_efficiency=0.5, efficiency=((1.0, 1.0),),
    )  # fmt: skip

    def forward_s(precision: Precision = "float32", practice: Practice = RTRAINS, **kernel: Any) -> float:
        taken = {"kind": "product", "bfloat16": False, "flops": 1000.0, "bytes": 10.0} | kernel
        one = Kernel(model_flops=taken["flops"], **taken)
        forward, backward = pass_of(piece_of(one), device, precision, ALONE, practice)
        times = 2.5 if taken["kind"] == "attention" else 2 + practice.recomputed_others
        assert backward.seconds == pytest.approx(times * forward.seconds)
        return forward.seconds

    assert forward_s() == 10.0 and forward_s("tf32") == 5.0 and forward_s("bfloat16", bfloat16=True) == 2.5
    assert forward_s(bytes=200.0) == pytest.approx(20.0 + START_S)  # memory-bound
    assert forward_s("bfloat16", kind="attention", bfloat16=True) == 5.0  # half of the peak at most
    # Of float32 the memory-efficient kernel, each product as three of tf32, whatever the products beside it are.
    assert forward_s(kind="attention") == forward_s("tf32", kind="attention") == pytest.approx(1000 / (200 / 3 * 0.5))
    other = {"kind": "other", "flops": 0.0, "bytes": 100.0}
    assert forward_s(**other) == pytest.approx(10.0 + START_S)
    half = Practice(fused=0.5, recomputed_others=1.0)
    assert forward_s(practice=half, **other) == pytest.approx(5.0 + START_S / 2)


ALONE = Group(size=1, per_node=1)


def piece_of(*kernels: Kernel) -> Counted:
    return Counted(kernels=kernels, exchanged=(), parameters=0, saved_bytes=0, received_bytes=0)


def test_attention_whose_scores_lie_in_memory_reads_and_writes_them() -> None:
    device = replace(H100, launch_s=0.0, efficiency=((1.0, 1.0),))
    heads, length, head_dim = 16, 2048, 128
    flops = 4.0 * heads * length**2 * head_dim
    kernel = Kernel(kind="attention", bfloat16=True, model_flops=flops, flops=flops / 2, bytes=1.0)
    forward, backward = pass_of(piece_of(kernel), device, "bfloat16", ALONE, Practice(head_dim=head_dim))
    bandwidth = device.memory_bandwidth * device.memory_efficiency
    written = max(flops / device.peak("bfloat16"), 4 * heads * length**2 / bandwidth)
    assert forward.seconds == pytest.approx(written + SCORES_BYTES * heads * length**2 / bandwidth)
    assert backward.seconds == pytest.approx(2 * forward.seconds)


def test_only_blocks_are_fused_and_done_again() -> None:
    other = Kernel(kind="other", bfloat16=True, model_flops=0.0, flops=0.0, bytes=1e9)
    practice = Practice(fused=0.5, recomputed_others=1.0)
    (block, back), (once, back_once) = (
        pass_of(piece_of(other), H100, "bfloat16", ALONE, practice, block=block) for block in (True, False)
    )
    assert block.seconds * 2 == once.seconds and back.seconds == 3 * block.seconds
    assert back_once.seconds == 2 * once.seconds


def test_a_graph_asks_for_nothing_kernel_by_kernel() -> None:
    small = Kernel(kind="other", bfloat16=True, model_flops=0.0, flops=0.0, bytes=2.0)
    eager, graph = (
        pass_of(piece_of(small), H100, "bfloat16", ALONE, practice)[0] for practice in (RTRAINS, Practice(graphs=True))
    )
    assert eager.seconds == pytest.approx(H100.launch_s) and graph.seconds == pytest.approx(START_S, rel=1e-3)


def test_epochs_of_unknown_data_have_no_hours() -> None:
    found = outlook(on_hardware(dlrm(), H100), H100, price=2.0)
    assert found.hours is None and found.cost is None and "Give --rows, or duration.steps" in str(found)
    known = dlrm()
    known = replace(known, data=replace(known.data, train_rows=10 * known.global_batch), duration=Duration(epochs=2))
    assert steps_of(known) == (20, "duration, of data.train_rows")


def test_a_search_ranks_what_fits_and_says_why() -> None:
    run = decoder()
    found = search(run, H100, devices=8)
    seconds = [at.step.seconds for at in found.layouts]
    assert seconds == sorted(seconds) and found.too_large == 0 and len(seconds) == found.legal > 100
    assert {at.mesh.world_size for at in found.layouts} == {8}
    assert all(at.parallel.microbatches >= at.mesh.pipeline for at in found.layouts if at.mesh.pipeline > 1)
    assert {at.mesh.tensor for at in found.layouts} == {1, 2, 4}  # 4 heads
    assert "less a step of" in found.why and str(found).count("\n") > 10


def with_memory(run: Run, size_bytes: int) -> Run:
    return replace(run, cluster=replace(run.cluster, memory_gb_per_worker=size_bytes / 1024**3))


def test_a_search_leaves_out_what_does_not_fit() -> None:
    run = decoder()
    roomy = search(run, H100, devices=8)
    most = sorted(at.held_bytes for at in roomy.layouts)
    tight = search(with_memory(run, most[len(most) // 2]), H100, devices=8)
    assert 0 < tight.too_large < tight.legal and max(at.held_bytes for at in tight.layouts) <= most[len(most) // 2]
    with pytest.raises(ConfigError, match="legal layouts of 8 devices fits: the smallest needs"):
        search(with_memory(run, 1000), H100, devices=8)
    with pytest.raises(ConfigError, match="no layout of 7 devices is legal for a global batch of 1"):
        search(replace(run, global_batch=1), H100, devices=7)


def test_scaling_keeps_rows_or_the_batch() -> None:
    run = decoder()
    weak = scale(run, H100, devices=[8, 16], price=1.0)
    strong = scale(run, H100, devices=[8, 16, 128], scaling="strong")
    assert [batch for batch, _ in weak.rows] == [64, 128] and [batch for batch, _ in strong.rows] == [64, 64]
    assert weak.efficiency(weak.rows[0][1]) == 1.0 and weak.efficiency(weak.rows[1][1]) < 1.0
    assert strong.left_out[0][0] == 128 and "cannot be shared by 128 ranks" in strong.left_out[0][1]
    first, second = weak.to_json()["rows"]
    assert first["hours"] > second["hours"] and first["cost"] < second["cost"]
    assert "strong scaling: global_batch stays" in str(strong)

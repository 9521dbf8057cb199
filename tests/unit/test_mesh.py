"""The mesh is arithmetic: ranks and coordinates are inverses, groups partition the world."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrain.errors import ConfigError
from rtrain.mesh import AXES, Mesh, Parallel, lay_out

degrees = st.integers(1, 6)
meshes = st.builds(Mesh, pipeline=degrees, data=degrees, tensor=degrees)


@settings(deadline=None)
@given(meshes)
def test_rank_and_coordinates_are_inverses(mesh: Mesh) -> None:
    seen = set()
    for rank in range(mesh.world_size):
        where = mesh.coordinates(rank)
        assert list(where) == list(AXES)
        assert all(0 <= where[axis] < mesh.degree(axis) for axis in AXES)
        assert mesh.rank(where) == rank
        seen.add(tuple(where.values()))
    assert len(seen) == mesh.world_size == mesh.pipeline * mesh.data * mesh.tensor


@settings(deadline=None)
@given(meshes)
def test_the_groups_of_each_axis_partition_the_world(mesh: Mesh) -> None:
    for axis in AXES:
        groups = mesh.groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.world_size))
        assert {len(group) for group in groups} == {mesh.degree(axis)}


@settings(deadline=None)
@given(meshes)
def test_the_ranks_of_a_group_differ_along_its_axis_only(mesh: Mesh) -> None:
    for axis in AXES:
        for group in mesh.groups(axis):
            places = [mesh.coordinates(rank) for rank in group]
            assert [place[axis] for place in places] == list(range(mesh.degree(axis)))
            assert len({tuple(place[a] for a in AXES if a != axis) for place in places}) == 1


def test_tensor_neighbours_are_adjacent_and_pipeline_stages_lie_farthest_apart() -> None:
    mesh = Mesh(pipeline=2, data=3, tensor=2)
    assert mesh.groups("tensor") == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert mesh.groups("data") == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert mesh.groups("pipeline") == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    assert mesh.coordinates(9) == {"pipeline": 1, "data": 1, "tensor": 1}


@settings(deadline=None)
@given(data=degrees, tensor=degrees, pipeline=degrees, spelled=st.booleans())
def test_lay_out_fills_the_workers(data: int, tensor: int, pipeline: int, spelled: bool) -> None:
    parallel = Parallel(data=data if spelled else None, tensor=tensor, pipeline=pipeline)
    mesh = lay_out(parallel, data * tensor * pipeline)
    assert (mesh.data, mesh.tensor, mesh.pipeline) == (data, tensor, pipeline)


@settings(deadline=None)
@given(tensor=degrees, pipeline=degrees, workers=st.integers(1, 64))
def test_lay_out_succeeds_exactly_where_the_degrees_divide_and_else_names_both_numbers(
    tensor: int, pipeline: int, workers: int
) -> None:
    model = tensor * pipeline
    parallel = Parallel(tensor=tensor, pipeline=pipeline)
    if workers % model == 0:
        assert lay_out(parallel, workers).world_size == workers
        return
    with pytest.raises(ConfigError) as caught:
        lay_out(parallel, workers)
    message = str(caught.value)
    assert f"tensor({tensor}) * pipeline({pipeline}) = {model} does not divide the {workers} workers" in message
    assert f"Set cluster.workers to a multiple of {model}" in message


@settings(deadline=None)
@given(data=degrees, tensor=degrees, other=degrees)
def test_lay_out_refuses_a_data_degree_that_does_not_fill_the_workers(data: int, tensor: int, other: int) -> None:
    if data == other:
        other += 1
    workers = other * tensor
    with pytest.raises(ConfigError) as caught:
        lay_out(Parallel(data=data, tensor=tensor), workers)
    message = str(caught.value)
    assert f"makes {data * tensor} ranks, but cluster.workers is {workers}" in message
    assert f"Set parallel.data to {other}" in message


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("degree", [0, -1])
def test_a_degree_below_one_is_refused(axis: str, degree: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Parallel(**{axis: degree})  # type: ignore[arg-type]
    assert str(caught.value) == f"parallel.{axis}: a degree is at least 1, got {degree}"

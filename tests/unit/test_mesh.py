import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.errors import ConfigError
from rtrain.mesh import AXES, Mesh, Parallel, lay_out

meshes = st.builds(Mesh, pipeline=st.integers(1, 4), data=st.integers(1, 4), tensor=st.integers(1, 4))


@given(meshes)
def test_coordinates_and_rank_are_inverse(mesh: Mesh) -> None:
    ranks = range(mesh.world_size)
    assert [mesh.rank(mesh.coordinates(r)) for r in ranks] == list(ranks)
    assert len({tuple(mesh.coordinates(r).items()) for r in ranks}) == mesh.world_size


@given(meshes)
def test_groups_partition_the_world(mesh: Mesh) -> None:
    for axis in AXES:
        groups = mesh.groups(axis)
        assert sorted(r for g in groups for r in g) == list(range(mesh.world_size))
        for group in groups:
            assert [mesh.coordinates(r)[axis] for r in group] == list(range(mesh.degree(axis)))


def test_tensor_varies_fastest() -> None:
    mesh = Mesh(pipeline=2, data=2, tensor=2)
    assert mesh.groups("tensor") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mesh.groups("data") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert mesh.groups("pipeline") == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_the_data_degree_is_what_is_left() -> None:
    assert lay_out(Parallel(), 6) == Mesh(pipeline=1, data=6, tensor=1)
    assert lay_out(Parallel(tensor=2, pipeline=3), 12) == Mesh(pipeline=3, data=2, tensor=2)


def test_degrees_that_do_not_divide_name_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"tensor\(3\) \* pipeline\(1\) = 3 does not divide the 8 workers"):
        lay_out(Parallel(tensor=3), 8)
    with pytest.raises(ConfigError, match=r"data\(3\) \* tensor.* makes 3 ranks, but cluster.workers is 4\. Set .* 4"):
        lay_out(Parallel(data=3), 4)
    with pytest.raises(ConfigError, match=r"parallel.tensor: a degree is at least 1, got 0"):
        Parallel(tensor=0)

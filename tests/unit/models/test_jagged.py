"""Rows in groups of similar length: nothing real is left out or computed twice, and little of what only pads is."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rtrain.nn import jagged
from rtrain.nn.jagged import SHORT, SPREAD, Groups, groups_of, one_group


def mask_of(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)


def drawn(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [min(200, int(draw.lognormvariate(3.3, 0.9))) for _ in range(draw.randrange(1, 150))]


CASES = [[0], [1], [0, 0, 0], [200], [200, 0, 1], [16, 15, 1], [17, 16, 1], [100] * 5, *map(drawn, range(20))]


@pytest.mark.parametrize("lengths", CASES, ids=range(len(CASES)))
def test_every_real_position_is_in_one_group_once(lengths: list[int]) -> None:
    mask = mask_of(lengths, max(1, *lengths, 5))
    groups = groups_of(mask)
    assert groups.at_N is not None
    at = groups.at_N.tolist()
    assert len(at) == len(set(at)) == sum(rows * longest for rows, longest in groups.shapes)
    assert set(mask.flatten().nonzero().flatten().tolist()) <= set(at)
    assert sum(rows for rows, _ in groups.shapes) == len(lengths)


@pytest.mark.parametrize("lengths", CASES, ids=range(len(CASES)))
def test_rows_of_a_group_are_of_similar_length(lengths: list[int]) -> None:
    groups = groups_of(mask_of(lengths, max(1, *lengths)))
    at, falling = 0, sorted((max(1, n) for n in lengths), reverse=True)
    for i, (rows, longest) in enumerate(groups.shapes):
        of_group = falling[at : at + rows]
        at += rows
        assert of_group[0] == longest
        assert longest <= SHORT or of_group[-1] > SPREAD * longest - 1
        if i + 1 < len(groups.shapes):
            assert falling[at] <= SPREAD * longest, "it would have fitted in"


def test_short_rows_are_one_group_however_they_differ() -> None:
    assert groups_of(mask_of([SHORT, 1, 3, SHORT - 1, 0], SHORT)).shapes == ((5, SHORT),)
    assert groups_of(mask_of([SHORT + 1, 1, 3], SHORT + 1)).shapes == ((1, SHORT + 1), (2, 3))


def test_a_heavy_tail_costs_little_padding() -> None:
    lengths = [200, *drawn(7)]
    groups, real = groups_of(mask_of(lengths, 200)), sum(lengths)
    assert sum(rows * longest for rows, longest in groups.shapes) < 1.15 * real < 0.5 * 200 * len(lengths)
    assert len(groups.shapes) <= 15


@pytest.mark.parametrize("group", [groups_of, one_group])
def test_what_is_packed_and_split_lies_row_after_row_and_comes_back(group: Callable[[Tensor], Groups]) -> None:
    lengths = [3, 0, 40, 39, 1, 22]
    mask = mask_of(lengths, 40)
    x = torch.randn(6, 40, 4)
    groups = group(mask)
    packed = groups.pack(x)
    assert torch.equal(torch.cat([part.flatten(0, 1) for part in groups.split(packed)]), packed)
    assert torch.equal(groups.unpack(packed)[mask], x[mask])
    assert torch.equal(groups.split(packed)[0][2 if group is one_group else 0], x[2])


def test_what_is_in_no_group_comes_back_as_zeros() -> None:
    groups = groups_of(mask_of([3, 40, 0], 40))
    back = groups.unpack(groups.pack(torch.ones(3, 40, 2)))
    assert back[1].eq(1).all() and back[0, :3].eq(1).all() and back[[0, 2], 3:].eq(0).all()


def test_groups_of_a_mask_are_made_once_and_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    make = jagged._groups
    monkeypatch.setattr(jagged, "_groups", lambda mask: made.append(mask.clone()) or make(mask))
    mask, alike, before = mask_of([3, 40], 40), mask_of([3, 40], 40), len(jagged._MADE)
    assert groups_of(mask) is groups_of(mask) and len(made) == 1
    assert groups_of(alike) is not groups_of(mask) and len(made) == 2
    other = mask_of([1, 2], 40)
    assert groups_of(other).shapes == ((2, 2),) and len(jagged._MADE) == before + 3
    del mask, alike, other
    assert len(jagged._MADE) == before

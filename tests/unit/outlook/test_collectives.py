"""Collectives by hand: 8 devices a node, 100 bytes/s within it, 10 between nodes, every latency a second."""

from dataclasses import replace

import pytest

from rtrain.outlook import collectives as c
from rtrain.outlook.profile import profile

DEVICE = replace(
    profile("h100"), link_bandwidth=100.0, network_bandwidth=10.0, link_efficiency=1.0, link_latency_s=1.0,
    network_latency_s=2.0,
)  # fmt: skip


def test_ranks_of_a_group_are_counted_by_node() -> None:
    assert c.group(8, stride=1, devices_per_node=8) == c.Group(size=8, per_node=8)
    assert c.group(4, stride=4, devices_per_node=8) == c.Group(size=4, per_node=2)  # ranks 0, 4 | 8, 12
    assert c.group(4, stride=8, devices_per_node=8).nodes == 4
    assert c.group(1, stride=8, devices_per_node=8) == c.Group(size=1, per_node=1)


def test_a_ring_sends_all_but_a_share() -> None:
    node = c.Group(size=4, per_node=4)
    assert c.all_gather_s(400.0, node, DEVICE) == pytest.approx(300 / 100 + 3)
    assert c.reduce_scatter_s(400.0, node, DEVICE) == c.all_gather_s(400.0, node, DEVICE)
    assert c.all_reduce_s(400.0, node, DEVICE) == pytest.approx(2 * (300 / 100 + 3))


def test_between_nodes_each_rank_of_a_node_has_a_port() -> None:
    two_by_two, four_by_one = c.Group(size=4, per_node=2), c.Group(size=4, per_node=1)
    assert c.all_gather_s(400.0, two_by_two, DEVICE) == pytest.approx(300 / 20 + 1 + 2)
    assert c.all_gather_s(400.0, four_by_one, DEVICE) == pytest.approx(300 / 10 + 2 * 2)
    many = c.Group(size=64, per_node=32)
    assert c.bus_bandwidth(many, DEVICE) == 100.0  # its links are the slowest now


def test_all_to_all_leaves_a_share_at_home() -> None:
    assert c.all_to_all_s(400.0, c.Group(size=4, per_node=4), DEVICE) == pytest.approx(300 / 100 + 1)
    assert c.all_to_all_s(400.0, c.Group(size=4, per_node=2), DEVICE) == pytest.approx(200 / 10 + 2)


def test_one_rank_waits_for_nobody() -> None:
    alone = c.Group(size=1, per_node=1)
    assert {f(400.0, alone, DEVICE) for f in (c.all_gather_s, c.reduce_scatter_s, c.all_reduce_s, c.all_to_all_s)} == {
        0.0
    }


def test_a_message_goes_by_link_or_by_network() -> None:
    assert c.send_s(400.0, DEVICE, between_nodes=False) == pytest.approx(5.0)
    assert c.send_s(400.0, DEVICE, between_nodes=True) == pytest.approx(42.0)

"""How long a collective takes: messages of a latency each, and bytes over the slowest link (the alpha-beta model).

Every function takes the bytes of the whole tensor that ranks have in common (what an all-gather gives, what a
reduce-scatter takes, what an all-reduce does both with), of all-to-all and point-to-point what one rank sends, and
gives seconds. See Thakur, Rabenseifner & Gropp, "Optimization of Collective Communication Operations in MPICH" (2005).
"""

from dataclasses import dataclass
from math import ceil, log2

from rtrain.outlook.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks that communicate, as many on each of their nodes."""

    size: int
    per_node: int
    """Of its ranks those on one node; `size` where one node has them all."""

    @property
    def nodes(self) -> int:
        """That it spans."""
        return ceil(self.size / self.per_node)


def group(size: int, *, stride: int, devices_per_node: int) -> Group:
    """Ranks 0, stride, 2 stride, ... of nodes whose devices are numbered one after the other."""
    return Group(size=size, per_node=max(1, min(size, devices_per_node // stride)))


def bus_bandwidth(of: Group, profile: Profile) -> float:
    """Bytes/s of a ring through all ranks: within a node its links; between nodes a ring for each rank of a node, each
    over the network's port of that rank."""
    between = profile.network_bandwidth * of.per_node
    slowest = profile.link_bandwidth if of.nodes == 1 else min(profile.link_bandwidth, between)
    return slowest * profile.link_efficiency


def _half_ring_s(size_bytes: float, of: Group, profile: Profile) -> float:
    """Each rank sends its neighbour (n - 1) / n of the bytes in n - 1 messages, some of them between nodes.

    Between nodes NCCL takes trees where messages are short, so that latencies grow with the logarithm of the nodes.
    """
    if of.size == 1:
        return 0.0
    latencies = (of.per_node - 1) * profile.link_latency_s + ceil(log2(of.nodes)) * profile.network_latency_s
    return size_bytes * (of.size - 1) / of.size / bus_bandwidth(of, profile) + latencies


def reduce_scatter_s(size_bytes: float, of: Group, profile: Profile) -> float:
    """A share of the sum on each rank."""
    return _half_ring_s(size_bytes, of, profile)


def all_gather_s(size_bytes: float, of: Group, profile: Profile) -> float:
    """All shares on every rank."""
    return _half_ring_s(size_bytes, of, profile)


def all_reduce_s(size_bytes: float, of: Group, profile: Profile) -> float:
    """The sum on every rank: 2 (n - 1) / n of the bytes."""
    return 2 * _half_ring_s(size_bytes, of, profile)


def all_to_all_s(sent_bytes: float, of: Group, profile: Profile) -> float:
    """`sent_bytes` of each rank dealt to all ranks, its own among them; link and network work at the same time.

    A message to each of the others goes out at once: one latency of the farthest, and bytes.
    """
    if of.size == 1:
        return 0.0
    near = sent_bytes * (of.per_node - 1) / of.size / (profile.link_bandwidth * profile.link_efficiency)
    far = sent_bytes * (of.size - of.per_node) / of.size / (profile.network_bandwidth * profile.link_efficiency)
    return max(near, far) + (profile.link_latency_s if of.nodes == 1 else profile.network_latency_s)


def send_s(sent_bytes: float, profile: Profile, *, between_nodes: bool) -> float:
    """From one rank to another."""
    bandwidth = profile.network_bandwidth if between_nodes else profile.link_bandwidth
    latency = profile.network_latency_s if between_nodes else profile.link_latency_s
    return sent_bytes / (bandwidth * profile.link_efficiency) + latency

"""Parallel degrees -> axes -> ranks -> groups, as plain arithmetic.

Ranks are laid out row-major over (pipeline, data, tensor): the tensor axis varies fastest, so that
tensor-parallel neighbours share a node, and pipeline stages lie farthest apart.
"""

from dataclasses import dataclass
from itertools import product
from math import lcm, prod
from typing import Literal

from rtrain.errors import ConfigError
from rtrain.rounding import ceil_div, round_up

Axis = Literal["pipeline", "data", "tensor"]
Dealt = Literal["rows", "tokens"]
"""What the ranks of a tensor group share between the regions where they divide weights: rows, each reading its own, or
the tokens of rows that all of them read."""
PipelineSchedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble"]
ONE_STAGE_A_RANK = ("gpipe", "1f1b")
"""The others give each pipeline rank two stages."""
AXES: tuple[Axis, ...] = ("pipeline", "data", "tensor")


Embeddings = Literal["sharded", "table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
Wire = Literal["float32", "float16", "bfloat16"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """How one table is split, otherwise than the others."""

    table: str
    """Name of the table, as the schema's features name it; of retrieval `item`, `user` and those of their features."""
    embeddings: Embeddings
    """As `Parallel.embeddings`."""
    kernel: Kernel = "fused"
    """Of fbgemm's: fused: all weights in the device's memory; on GPU alone fused_uvm: in the host's, which the GPU
    reads through unified memory; fused_uvm_caching: so, with a cache of rows on the GPU."""
    cache_fraction: float | None = None
    """Share of the table that the cache holds; none: fbgemm's own, 0.2."""
    cache_policy: Literal["lru", "lfu"] | None = None
    """Which rows leave the cache, those least recently or least often read; none: fbgemm's own, lru."""
    cache_spare_gb: float | None = None
    """GiB of the GPU that the cache leaves free, smaller than asked for if need be; none: fbgemm's own, 0."""

    def __post_init__(self) -> None:
        given = [f for f in ("cache_fraction", "cache_policy", "cache_spare_gb") if getattr(self, f) is not None]
        here = f"parallel.tables: table {self.table!r}"
        if given and self.kernel != "fused_uvm_caching":
            raise ConfigError(
                f"{here} has {given[0]}, but kernel {self.kernel!r} has no cache. Use 'fused_uvm_caching'"
            )
        if self.cache_fraction is not None and not 0 < self.cache_fraction <= 1:
            raise ConfigError(f"{here}: cache_fraction must be above 0 and at most 1, got {self.cache_fraction}")
        if self.cache_spare_gb is not None and not self.cache_spare_gb >= 0:
            raise ConfigError(f"{here}: cache_spare_gb must be at least 0, got {self.cache_spare_gb}")

    @property
    def device_share(self) -> float:
        """Of the table's bytes, those in the device's memory."""
        cached = 0.2 if self.cache_fraction is None else self.cache_fraction
        return {"fused": 1.0, "fused_uvm": 0.0, "fused_uvm_caching": cached}[self.kernel]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a run is laid out over its workers."""

    data: int | None = None
    """Data-parallel degree; none: every worker that the other degrees leave."""
    tensor: int = 1
    """Tensor-parallel degree of the dense part."""
    pipeline: int = 1
    """Pipeline-parallel degree of the dense part."""
    microbatches: int = 1
    """Parts that each data rank's rows of a step are cut into; a pipeline works on several of them at a time."""
    schedule: PipelineSchedule = "1f1b"
    """Order of forward and backward passes in a pipeline."""
    dense: Literal["zero", "ddp"] = "zero"
    """Who keeps the dense replicas in step: DeepSpeed ZeRO, or torch's DistributedDataParallel."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What ZeRO partitions: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    embeddings: Embeddings = "sharded"
    """How TorchRec splits the tables; sharded: its planner chooses for each; table_row_wise: the rows of one over the
    ranks of one node; data_parallel: whole on every rank. A table with too few rows to split stays whole on one."""
    tables: tuple[TableLayout, ...] = ()
    """Tables that are split, or kept, otherwise."""
    wire: Wire = "float32"
    """What looked-up vectors and their gradients travel between the tables' ranks as while training, each rounded;
    bfloat16 on GPU only. Evaluation is in float32."""
    precision: Precision = "float32"
    """What the dense part's matrix products take while training. tf32: float32 of 10 bits behind the point, on NVIDIA's
    GPUs alone. bfloat16: torch's autocast. Weights, gradients, optimizers, tables, losses and what travels between
    stages stay float32, and so does all evaluation: what is scored is what is exported."""
    recompute: Literal["nothing", "pieces"] = "nothing"
    """What of the forward pass is done again in backward. pieces: of every piece of the dense part (a decoder's
    embedding and blocks) but the model's last one, what goes in is kept and nothing else (Chen et al.,
    arXiv:1604.06174). Costs up to one more forward pass, and saves all activations but those of one piece at a time;
    losses and weights are the same to the bit."""
    overlap: bool = True
    """Send the next batch's ids to the ranks of their tables while a step computes; losses are the same."""

    def __post_init__(self) -> None:
        for axis in ("data", "tensor", "pipeline"):
            degree = getattr(self, axis)
            if degree is not None and degree < 1:
                raise ConfigError(f"parallel.{axis}: a degree is at least 1, got {degree}")
        if self.microbatches < 1:
            raise ConfigError(f"parallel.microbatches: must be at least 1, got {self.microbatches}")
        named = [of.table for of in self.tables]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ConfigError(f"parallel.tables: table {twice[0]!r} is there twice. Give each once")

    def embeddings_of(self, table: str) -> Embeddings:
        """How a table is split: by its own entry of `tables`, else as all."""
        return self.layout_of(table).embeddings

    def layout_of(self, table: str) -> TableLayout:
        """A table's own entry of `tables`, else that of all."""
        others = TableLayout(table=table, embeddings=self.embeddings)
        return next((of for of in self.tables if of.table == table), others)


@dataclass(frozen=True)
class Share:
    """Which of a batch's rows a rank reads."""

    index: int
    """Of the shares that a global batch is cut into, this rank's."""
    count: int
    """Shares in all."""
    first: bool
    """Whether this is the first of the ranks that read the same."""


@dataclass(frozen=True)
class Mesh:
    """The degrees of one world and who sits where in it."""

    pipeline: int
    data: int
    tensor: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return prod(self.degree(a) for a in AXES)

    def degree(self, axis: Axis) -> int:
        """Number of ranks along one axis."""
        degree: int = getattr(self, axis)
        return degree

    def coordinates(self, rank: int) -> dict[Axis, int]:
        """Where a rank sits: axis -> index along it."""
        where: dict[Axis, int] = {}
        for axis in reversed(AXES):
            rank, where[axis] = divmod(rank, self.degree(axis))
        return {axis: where[axis] for axis in AXES}

    def readers(self, dealt: Dealt) -> int:
        """Shares that the rows of a global batch are cut into."""
        return self.data * (self.tensor if dealt == "rows" else 1)

    def share(self, rank: int, dealt: Dealt) -> Share:
        """What a rank reads of each batch: the ranks of a pipeline all the same."""
        at = self.coordinates(rank)
        if dealt == "rows":
            return Share(at["data"] * self.tensor + at["tensor"], self.readers(dealt), first=not at["pipeline"])
        return Share(at["data"], self.data, first=not at["pipeline"] and not at["tensor"])

    def rank(self, coordinates: dict[Axis, int]) -> int:
        """The rank that sits at `coordinates`; the inverse of `coordinates()`."""
        rank = 0
        for axis in AXES:
            rank = rank * self.degree(axis) + coordinates[axis]
        return rank

    def groups(self, axis: Axis) -> list[list[int]]:
        """The rank groups along one axis; each rank is in exactly one of them."""
        others = [a for a in AXES if a != axis]
        found = []
        for fixed in product(*(range(self.degree(a)) for a in others)):
            at = dict(zip(others, fixed, strict=True))
            found.append([self.rank({**at, axis: i}) for i in range(self.degree(axis))])
        return found


def rows_of_stages(share: int, parallel: Parallel) -> int:
    """Rows that a step's batch is padded to where all steps need as many, which microbatches and lookups divide.

    `share`: most rows of a global batch that a rank reads.
    """
    count = parallel.microbatches
    return round_up(ceil_div(share, count) * count, lcm(count, parallel.pipeline))


def lay_out(parallel: Parallel, workers: int) -> Mesh:
    """The mesh of `parallel` over `workers` ranks.

    Raises:
        ConfigError: degrees whose product is not the number of workers; names both numbers.
    """
    model = parallel.tensor * parallel.pipeline
    spelled = f"tensor({parallel.tensor}) * pipeline({parallel.pipeline}) = {model}"
    if workers % model:
        raise ConfigError(
            f"parallel: {spelled} does not divide the {workers} workers of cluster.workers. "
            f"Set cluster.workers to a multiple of {model}, or lower parallel.tensor or parallel.pipeline"
        )
    data = parallel.data if parallel.data is not None else workers // model
    if data * model != workers:
        raise ConfigError(
            f"parallel: data({data}) * {spelled} makes {data * model} ranks, but cluster.workers is {workers}. "
            f"Set parallel.data to {workers // model}, or leave it out"
        )
    return Mesh(pipeline=parallel.pipeline, data=data, tensor=parallel.tensor)

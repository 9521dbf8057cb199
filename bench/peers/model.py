"""The same DLRM, written by hand with torch and TorchRec only, and a plain Parquet reader."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingEnv

from bench.data import DENSE, DIM, ROWS_PER_TABLE, TABLES

KEYS = [f"c{i}" for i in range(TABLES)]


class Model(nn.Module):
    """Tables and tower in one module, as DMP wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=k, num_embeddings=ROWS_PER_TABLE, embedding_dim=DIM, feature_names=[k])
                for k in KEYS
            ],
            device=torch.device("meta"),
        )
        self.bottom = nn.Sequential(nn.Linear(DENSE, 64), nn.ReLU(), nn.Linear(64, DIM), nn.ReLU())
        pairs = (TABLES + 1) * TABLES // 2
        self.top = nn.Sequential(nn.Linear(DIM + pairs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        rows, columns = torch.tril_indices(TABLES + 1, TABLES + 1, offset=-1)
        self.register_buffer("flat", rows * (TABLES + 1) + columns)

    def forward(self, dense: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        embedded = self.ebc(ids).to_dict()
        projected = self.bottom(dense)
        vectors = torch.stack([projected, *(embedded[k] for k in KEYS)], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.flat)
        return self.top(torch.cat([projected, dots], dim=1)).squeeze(1)


def build(world_size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """DMP shards the tables and wraps the rest in DDP: TorchRec's own documented way."""
    torch.manual_seed(0)
    model = Model()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu"),
        constraints={k: ParameterConstraints(sharding_types=["table_wise"]) for k in KEYS},
    )
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 2e-2, "eps": 1e-8}
    sharder: Any = EmbeddingBagCollectionSharder(fused_params=fused)
    group = torch.distributed.group.WORLD
    dmp = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        device=torch.device("cpu"),
        plan=planner.plan(model, [sharder]),
        sharders=[sharder],
    )
    dense = [p for n, p in dmp.named_parameters() if "ebc" not in n]
    return dmp, torch.optim.AdamW(dense, lr=1e-3, weight_decay=0.0)


def batches(path: str, *, batch: int, rank: int, world_size: int) -> Iterator[tuple[Tensor, KeyedJaggedTensor, Tensor]]:
    """Shuffled epochs over the first 90 % of the file, held in memory as numpy."""
    table = pq.read_table(path)
    rows = int(table.num_rows * 0.9)
    dense = np.stack([table[f"d{i}"].to_numpy() for i in range(DENSE)], axis=1).astype(np.float32)
    ids = np.stack([table[k].to_numpy() for k in KEYS], axis=1)
    label = table["label"].to_numpy().astype(np.float32)
    del table
    mine = batch // world_size
    lengths = torch.ones(TABLES * mine, dtype=torch.int32)
    epoch = 0
    while True:
        order = np.random.default_rng(epoch).permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            at = order[start + rank * mine : start + (rank + 1) * mine]
            kjt = KeyedJaggedTensor(KEYS, torch.from_numpy(ids[at].T.reshape(-1)), lengths=lengths)
            yield torch.from_numpy(dense[at]), kjt, torch.from_numpy(label[at])
        epoch += 1

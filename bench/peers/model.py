"""The same DLRM, written by hand with torch and TorchRec only, and a plain Parquet reader."""

from collections.abc import Iterator, Sequence
from itertools import count
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

from bench.data import BATCH, DENSE, DIM, ROWS_PER_TABLE, TABLES, TRAIN_ROWS

KEYS = [f"c{i}" for i in range(TABLES)]


class Tower(nn.Module):
    """DLRM without its tables: numbers [B, 13] and the tables' vectors, 26 of [B, 16] -> logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(DENSE, 64), nn.ReLU(), nn.Linear(64, DIM), nn.ReLU())
        pairs = (TABLES + 1) * TABLES // 2
        self.top = nn.Sequential(nn.Linear(DIM + pairs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        rows, columns = torch.tril_indices(TABLES + 1, TABLES + 1, offset=-1)
        self.register_buffer("flat", rows * (TABLES + 1) + columns)

    def forward(self, dense: Tensor, embedded: Sequence[Tensor]) -> Tensor:
        projected = self.bottom(dense)
        vectors = torch.stack([projected, *embedded], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.flat)
        return self.top(torch.cat([projected, dots], dim=1)).squeeze(1)


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
        self.tower = Tower()

    def forward(self, dense: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        embedded = self.ebc(ids).to_dict()
        return self.tower(dense, [embedded[k] for k in KEYS])


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


def load(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The training rows in memory, as small as they go: dense [N, 13], ids [N, 26] int32, label [N]."""
    file = pq.ParquetFile(path)
    dense = np.empty((TRAIN_ROWS, DENSE), np.float32)
    ids = np.empty((TRAIN_ROWS, TABLES), np.int32)
    label = np.empty(TRAIN_ROWS, np.float32)
    at = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)[: TRAIN_ROWS - at]
        rows = slice(at, at + table.num_rows)
        for i in range(DENSE):
            dense[rows, i] = table[f"d{i}"].to_numpy()
        for i, key in enumerate(KEYS):
            ids[rows, i] = table[key].to_numpy()
        label[rows] = table["label"].to_numpy()
        at = rows.stop
    return dense, ids, label


def batches(path: str, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, KeyedJaggedTensor, Tensor]]:
    """Shuffled epochs over the training rows; each rank takes its slice of every global batch."""
    dense, ids, label = load(path)
    mine = BATCH // world_size
    lengths = torch.ones(TABLES * mine, dtype=torch.int32)
    for epoch in count():
        order = np.random.default_rng(epoch).permutation(TRAIN_ROWS)
        for start in range(0, TRAIN_ROWS, BATCH):
            at = order[start + rank * mine : start + (rank + 1) * mine]
            values = np.ascontiguousarray(ids[at].T, dtype=np.int64).reshape(-1)
            kjt = KeyedJaggedTensor(KEYS, torch.from_numpy(values), lengths=lengths)
            yield torch.from_numpy(dense[at]), kjt, torch.from_numpy(label[at])

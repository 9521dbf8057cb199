"""The same DLRM in one process of plain torch: nn.EmbeddingBag with sparse gradients and SparseAdam."""

import json
import os
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.asked import nothing_but_help
from bench.data import DIM, ROWS_PER_TABLE, TABLES
from bench.peers.model import Tower, batches


class Model(nn.Module):
    """A bag for each table."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(ROWS_PER_TABLE, DIM, mode="sum", sparse=True, include_last_offset=True)
            for _ in range(TABLES)
        )
        self.tower = Tower()

    def forward(self, dense: Tensor, ids: list[Tensor], offsets: Tensor) -> Tensor:
        return self.tower(dense, [bag(i, offsets) for bag, i in zip(self.bags, ids, strict=True)])


def main() -> None:
    torch.manual_seed(0)
    steps, log_every = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_LOG_EVERY"])
    model = Model()
    tables = torch.optim.SparseAdam(list(model.bags.parameters()), lr=2e-3)
    tower = torch.optim.AdamW(model.tower.parameters(), lr=1e-3, weight_decay=0.0)
    data = batches(os.environ["BENCH_DATA"], rank=0, world_size=1)
    total, points = torch.zeros(()), []
    for step in range(1, steps + 1):
        dense, ids, label = next(data)
        rows = len(label)
        per_table = ids.values().view(TABLES, rows).unbind()
        loss = binary_cross_entropy_with_logits(model(dense, per_table, torch.arange(rows + 1)), label)
        model.zero_grad(set_to_none=True)
        loss.backward()
        tables.step()
        tower.step()
        total += loss.detach()
        if step % log_every == 0:
            points.append({"step": step, "at": time.perf_counter(), "loss": float(total) / log_every})
            total.zero_()
    print(json.dumps({"points": points}), flush=True)


if __name__ == "__main__":
    nothing_but_help("bench.peers.embedding_bags", __doc__)
    main()

"""SASRec and its training loop, written by hand with torch only; prints one line of JSON.

The sizes, data, objective, optimizers and batches of `bench/histories.py` with `BENCH_MODEL=sasrec`: what a good
engineer would write, all histories in one padded array, negatives drawn for the batch, dense gradients of one table.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from bench.asked import nothing_but_help
from bench.histories import BATCH, HELD_OUT, ITEMS, SASREC_LENGTH, USERS, write

DIM, LAYERS, HEADS, DROPOUT = 64, 2, 2, 0.2


class Block(nn.Module):
    """Attention and feed-forward layer, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=DROPOUT)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(rows, length, DIM)))
        return x + self.drop(self.down(self.drop(torch.relu(self.up(self.norm2(x))))))


class Model(nn.Module):
    """Items, positions, blocks, norm."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM)
        self.positions = nn.Parameter(torch.randn(SASREC_LENGTH, DIM) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.drop = nn.LayerNorm(DIM), nn.Dropout(DROPOUT)
        nn.init.normal_(self.items.weight, 0.0, 0.02)

    def forward(self, history: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        x = self.drop(self.items(history) * DIM**0.5 + self.positions[: history.shape[1]])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return -logsigmoid((x * self.items(positive)).sum(-1)) - logsigmoid(-(x * self.items(negative)).sum(-1))


def arrays(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Of each user the newest items, the item that came after each, and how many there are."""
    table = pq.read_table(path)
    users, items = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    history, following = (np.zeros((USERS, SASREC_LENGTH), np.int64) for _ in range(2))
    lengths = np.zeros(USERS, np.int64)
    for user, own in enumerate(np.split(items, np.flatnonzero(np.diff(users)) + 1)):
        trained = own[: len(own) - HELD_OUT + 1][-SASREC_LENGTH - 1 :]
        lengths[user] = len(trained) - 1
        history[user, : lengths[user]], following[user, : lengths[user]] = trained[:-1], trained[1:]
    return torch.from_numpy(history), torch.from_numpy(following), torch.from_numpy(lengths)


def main() -> None:
    torch.set_num_threads(1)
    steps, warm = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_WARM"])
    history, following, lengths = arrays(write(Path(os.environ["BENCH_STORAGE"]) / "data"))
    model = Model()
    adagrad = torch.optim.Adagrad(model.items.parameters(), lr=0.05)
    adam = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("items.")], lr=1e-3)
    order, losses, began = torch.randperm(USERS), list[float](), 0.0
    for step in range(steps):
        if step == warm:
            began = time.perf_counter()
        at = step * BATCH % USERS
        if at == 0:
            order = torch.randperm(USERS)
        rows = order[at : at + BATCH]
        longest = int(lengths[rows].max())
        real = torch.arange(longest) < lengths[rows].unsqueeze(1)
        positive = following[rows, :longest]
        loss = model(history[rows, :longest], positive, torch.randint(0, ITEMS, positive.shape))[real].mean()
        adagrad.zero_grad()
        adam.zero_grad()
        loss.backward()
        adagrad.step()
        adam.step()
        losses.append(loss.detach().item())
    rate = (steps - warm) / (time.perf_counter() - began)
    print(json.dumps({"steps_per_s": rate, "last_loss": float(np.mean(losses[-10:]))}), flush=True)


if __name__ == "__main__":
    nothing_but_help("bench.peers.sasrec", __doc__)
    main()

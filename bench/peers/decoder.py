"""A Llama-style decoder and its training loop, written by hand with torch only; prints one line of JSON.

The same sizes, initial weights, batches, optimizer and schedule as `recipes/gpt_stdlib.py`.
"""

import json
import math
import os
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from bench.asked import nothing_but_help
from recipes.gpt_stdlib import run

VOCAB, LAYERS, DIM, HEADS, HIDDEN = 256, 4, 128, 4, 352


class Block(nn.Module):
    """Attention and SwiGLU, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(DIM, 1e-5), nn.RMSNorm(DIM, 1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(DIM, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.norm1(x)
        rows, length, _ = x.shape
        q, k, v = (f(h).view(rows, length, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))

        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-b, a), dim=-1) * sin

        seen = scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(rows, length, DIM))
        h = self.norm2(x)
        return x + self.down(silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, 1e-5)
        self.out = nn.Linear(DIM, VOCAB, bias=False)
        half = DIM // HEADS // 2
        angle = torch.outer(torch.arange(context).float(), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", torch.cat((angle, angle), dim=-1).cos())
        self.register_buffer("sin", torch.cat((angle, angle), dim=-1).sin())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.out(self.norm(x))


def begin(model: Model) -> None:
    """rtrain's initial weights, so that the curves can be compared."""
    import hashlib

    theirs = {
        "embed.tokens": model.embed,
        "head.out": model.out,
        **{
            f"blocks.{i}.{name}": module
            for i, b in enumerate(model.blocks)
            for name, module in {
                "attention.wq": b.q,
                "attention.wk": b.k,
                "attention.wv": b.v,
                "attention.wo": b.o,
                "mlp.w_gate": b.gate,
                "mlp.w_up": b.up,
                "mlp.w_down": b.down,
            }.items()
        },
    }
    for name, module in theirs.items():
        digest = hashlib.sha256(f"0:{name}.weight".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
        std = 0.02 / (2 * LAYERS) ** 0.5 if name.endswith(("wo", "w_down")) else 0.02
        with torch.no_grad():
            module.weight.normal_(0.0, std, generator=generator)


def main() -> None:
    torch.set_num_threads(1)
    config = run()
    steps, warm = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_WARM"])
    data = config.data.open()
    model = Model(config.data.context)
    begin(model)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    reader = iter(data.reader(global_batch=config.global_batch, seed=0, rank=0, world_size=1))
    total, points = torch.zeros(()), []
    began = 0.0
    for step in range(steps):
        if step == warm:
            began = time.perf_counter()
        batch, _ = next(reader)
        loss = cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = min(1.0, (step - 100) / (2000 - 100))
        factor = (step + 1) / 100 if step < 100 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        adam.param_groups[0]["lr"] = 1e-3 * factor
        adam.step()
        total += loss.detach()
        if (step + 1) % 50 == 0:
            points.append(float(total) / 50)
            total.zero_()
    rate = (steps - warm) / (time.perf_counter() - began)
    valid = tokens = 0.0
    with torch.no_grad():
        for batch in data.scan("valid", global_batch=48, rank=0, world_size=1):
            valid += float(cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten(), reduction="sum"))
            tokens += batch.loss_units(float)
    print(json.dumps({"steps_per_s": rate, "valid": valid / tokens, "losses": points}), flush=True)


if __name__ == "__main__":
    nothing_but_help("bench.peers.decoder", __doc__)
    main()

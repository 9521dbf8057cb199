"""A Llama-style decoder (Touvron et al., arXiv:2307.09288) and how it may be cut.

Shape legend: B rows, T tokens, E model dim, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from rtrain.data.tokens import TokenBatch, TokenDataset, TokenFacts
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.plan import Cut, Fill, Piece
from rtrain.models.protocol import Blueprint, Model
from rtrain.nn.attention import Attention, RMSNorm, SwiGLU
from rtrain.objectives.next_token import NextToken
from rtrain.rounding import ceil_div, round_up


@dataclass(frozen=True, kw_only=True)
class Decoder(Model):
    """Next-token model: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    vocab: int = 256
    """Different tokens; ids are 0..vocab-1."""
    layers: int = 4
    """Transformer blocks."""
    dim: int = 128
    """Width of a token's vector."""
    heads: int = 4
    """Query heads of a block."""
    kv_heads: int | None = None
    """Key-value heads, which query heads share; none: as many as `heads`."""
    hidden: int | None = None
    """Width of the feed-forward layer; none: 8/3 of `dim`, rounded up to a multiple of 32."""
    qkv_bias: bool = False
    """Biases on queries, keys and values, as Qwen2 has them."""
    rope_theta: float = 10000.0
    """Base of the rotary positions' wavelengths."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    tied: bool = False
    """Whether the head uses the embedding's weights."""

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "dim", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ConfigError(
                f"model.dim: {self.dim} over {self.heads} heads (model.heads) is no even number for the rotary "
                f"positions to halve. Set model.dim to a multiple of {2 * self.heads}"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ConfigError(f"model.kv_heads: {self.kv_heads} does not divide model.heads, {self.heads}")
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"model.hidden: must be at least 1, or none, got {self.hidden}")
        if not self.rope_theta > 0 or not self.norm_eps > 0:
            raise ConfigError("model: rope_theta and norm_eps must be positive")

    @property
    def kv(self) -> int:
        """Key-value heads, spelled out."""
        return self.kv_heads or self.heads

    @property
    def ffn(self) -> int:
        """Width of the feed-forward layer, spelled out."""
        return self.hidden or round_up(ceil_div(8 * self.dim, 3), 32)

    reads: ClassVar[Any] = TokenBatch
    exported: ClassVar[str] = "hugging face"
    served: ClassVar[bool] = True

    def blueprint(self, facts: TokenFacts) -> Blueprint:
        """See `rtrain.models.protocol`."""
        against = partial(self._reasons_against, context=facts.context)
        return Blueprint(pieces=self.pieces(), objective=NextToken(), against=against, dealt="tokens")

    def check(self, data: TokenDataset) -> None:
        """Refuse tokens that the vocabulary does not have.

        Raises:
            ConfigError: there may be some.
        """
        if data.vocab > self.vocab:
            raise ConfigError(
                f"model.vocab: {self.vocab}, but the tokens of {data.shards.folder} come from a vocabulary of "
                f"{data.vocab} ({data.shards.tokenizer}). Set model.vocab to {data.vocab} or more"
            )

    def _reasons_against(self, parallel: Parallel, mesh: Mesh, *, context: int) -> Iterator[str]:
        ranks = parallel.tensor
        divided = {"model.heads": self.heads, "model.ffn": self.ffn, "model.vocab": self.vocab, "data.context": context}
        for name, size in divided.items():
            if size % ranks:
                spelled = "model.hidden (the feed-forward layer's width)" if name == "model.ffn" else name
                yield (
                    f"parallel.tensor: {ranks} does not divide {spelled}, {size}. "
                    "Choose a degree that does, or change it"
                )
        if self.kv % ranks and ranks % self.kv:
            yield (
                f"parallel.tensor: {ranks} ranks and {self.kv} key-value heads (model.kv_heads): one must divide the "
                "other, so that heads are divided or replicated evenly"
            )
        if mesh.pipeline > 1 and self.tied:
            yield (
                "model.tied: embedding and head lie in different pipeline stages, whose gradients nothing adds up yet. "
                "Set model.tied to false, or parallel.pipeline to 1"
            )

    def pieces(self) -> tuple[Piece, ...]:
        """Embedding, blocks, head: the order of a pipeline."""
        cuts: dict[str, Cut] = {"mlp.w_gate.weight": "column", "mlp.w_up.weight": "column"}
        for end in ("weight", "bias") if self.qkv_bias else ("weight",):
            cuts |= {f"attention.wq.{end}": "column", f"attention.wk.{end}": "kv", f"attention.wv.{end}": "kv"}
        cuts |= {"attention.wo.weight": "row", "mlp.w_down.weight": "row"}
        projections = self.dim * self.dim * 2 + self.dim * (self.dim // self.heads) * self.kv * 2
        block = Piece(
            name="block",
            build=partial(Block, self),
            cost=2.0 * (projections + 3 * self.dim * self.ffn),
            fill=self.initialise,
            cuts=cuts,
            kv_heads=self.kv,
            kv=("attention",),
            enter=("attention", "mlp"),
            leave=("attention.wo", "mlp.w_down"),
        )
        embed = Piece(
            name="embed",
            build=partial(Embed, self),
            cost=0.0,
            takes=("tokens",),
            fill=self.initialise,
            cuts={"tokens.weight": "vocab"},
            leave=("tokens",),
        )
        head = Piece(
            name="head",
            build=partial(Head, self),
            cost=2.0 * self.dim * self.vocab,
            fill=self.initialise,
            cuts={"out.weight": "vocab"},
            shared={"out.weight": "embed.tokens.weight"} if self.tied else {},
            enter=("out",),
        )
        blocks = (replace(block, name=f"blocks.{i}") for i in range(self.layers))
        return (embed, *blocks, head)

    def initialise(self, name: str) -> Fill:
        """What fills a fresh tensor of a logical name: GPT-2's normal draws, ones for norms, zeros for biases."""
        if "norm" in name:
            return lambda weight, _: weight.fill_(1.0)
        if name.endswith(".bias"):
            return lambda weight, _: weight.zero_()
        residual = name.endswith(("attention.wo.weight", "mlp.w_down.weight"))
        std = 0.02 / (2 * self.layers) ** 0.5 if residual else 0.02
        return lambda weight, generator: weight.normal_(0.0, std, generator=generator)


class Embed(nn.Module):
    """Tokens int64 [B, T] -> [B, T, E]."""

    def __init__(self, config: Decoder):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, config.dim)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Each token's vector."""
        out: Tensor = self.tokens(tokens_BT)
        return out


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and beside a residual: [B, T, E] -> [B, T, E]."""

    def __init__(self, config: Decoder):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim, config.heads, config.kv, theta=config.rope_theta, qkv_bias=config.qkv_bias
        )
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config.dim, config.ffn)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """The residual stream after this block."""
        x_BTE = x_BTE + self.attention(self.attention_norm(x_BTE))
        out: Tensor = x_BTE + self.mlp(self.mlp_norm(x_BTE))
        return out


class Head(nn.Module):
    """[B, T, E] -> logits [B, T, V]."""

    def __init__(self, config: Decoder):
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.vocab, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Logits of the next token."""
        logits: Tensor = self.out(self.norm(x_BTE))
        return logits

"""Grouped-query attention with rotary positions (arXiv 2305.13245, 2104.09864)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from supernet.elastic import (
    ElasticLinear,
    ElasticModule,
    ElasticRMSNorm,
    Extent,
    Reordering,
    Stream,
    extent,
    format_gene,
)
from supernet.elimination import elimination_order, second_moments
from supernet.errors import UserError
from supernet.formats import Q4_0, Fitting, check_formats
from supernet.formats.activations import as_cached
from supernet.genes import Gene, Value
from supernet.inventory import Choices, Inventory, add, joint, matrices, mean, shares
from supernet.plain import Block, Cache, Linear, Matrix, RMSNorm, project

LEAST_CHANNELS = 16  # of a head: with 8 attention takes 1.5 times as long on a CPU as with zeros beside them


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (batch, heads, tokens, head_dim); channel i pairs with i + head_dim / 2, as Hugging Face's.

    The sines come with the sign of the rotation, so the partner channels need no negation.
    """
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(
    x: Tensor,
    matrices: tuple[Matrix, Matrix, Matrix, Matrix],
    rope: tuple[Tensor, Tensor],
    kv_heads: int,
    head_dim: int,
    kv_format: str | None,
) -> Tensor:
    """Causal self-attention of x (batch, tokens, d_model) under q, k, v and o, keys and values cached in a format."""
    return matrices[3](mixed_heads(x, matrices[:3], rope, kv_heads, head_dim, kv_format))


def mixed_heads(
    x: Tensor,
    matrices: tuple[Matrix, Matrix, Matrix],
    rope: tuple[Tensor, Tensor],
    kv_heads: int,
    head_dim: int,
    kv_format: str | None,
) -> Tensor:
    """Return what the output projection reads, (batch, tokens, heads * head_dim)."""
    heads_first = (x.shape[0], x.shape[1], -1, head_dim)
    q, k, v = (each.view(heads_first).transpose(1, 2) for each in project(x, *matrices))
    q, k, v = as_cached(rotate(q, rope), rotate(k, rope), v, kv_format)
    if head_dim < LEAST_CHANNELS:
        q, k, v = (F.pad(each, (0, LEAST_CHANNELS - head_dim)) for each in (q, k, v))
    mixed = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=head_dim**-0.5, enable_gqa=q.shape[1] != kv_heads
    )
    return mixed[..., :head_dim].transpose(1, 2).flatten(2)


class Attention(Block):
    """A plain attention block: norm, then grouped-query attention."""

    kv_format: str | None

    def __init__(self, norm: RMSNorm, projections: Mapping[str, Linear], kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = norm
        self.q_proj, self.k_proj = projections["q_proj"], projections["k_proj"]
        self.v_proj, self.o_proj = projections["v_proj"], projections["o_proj"]
        self.kv_heads, self.head_dim, self.kv_format = kv_heads, head_dim, None

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.q_proj.weight.shape[0] // self.head_dim

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update for x (batch, tokens, d_model)."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        q, k, v, o = (p.effective() for p in projections)
        return attend(self.norm(x), (q, k, v, o), rope, self.kv_heads, self.head_dim, self.kv_format)

    def step(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        """Return the update for one more token x (batch, 1, d_model), which sees itself and those in the cache."""
        matrices = [p.effective() for p in (self.q_proj, self.k_proj, self.v_proj)]
        # Query heads that share keys and values stand side by side, as tokens would: nothing is repeated for them.
        heads = (x.shape[0], self.kv_heads, -1, self.head_dim)
        q, k, v = (each.view(heads) for each in project(self.norm(x), *matrices))
        q, k, v = as_cached(rotate(q, rope), rotate(k, rope), v, self.kv_format)
        k, v = cache.add(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj.effective()(mixed.flatten(1).unsqueeze(1))


class ElasticAttention(ElasticModule):
    """Attention whose key-value heads, query heads for each of them, formats and presence are genes.

    Query weights are viewed as (kv_heads, heads_per_kv, head_dim, d_model), so any prefix keeps every
    query head on its own key-value head.
    """

    kv_format: str | None = None

    def __init__(
        self,
        d_model: Sequence[int],
        norm_eps: float,
        head_dim: int,
        kv_heads: Sequence[int],
        heads_per_kv: Sequence[int],
        qkv_formats: Sequence[str],
        o_formats: Sequence[str],
        droppable: bool,
        scales: Mapping[str, Fitting] | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.head_dim, self.droppable = tuple(d_model), head_dim, droppable
        self.kv_heads, self.heads_per_kv = tuple(kv_heads), tuple(heads_per_kv)
        for key, widths in (("kv_heads", self.kv_heads), ("heads_per_kv", self.heads_per_kv)):
            if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
                raise UserError(f"model.blocks.attention.{key} must ascend from 1 or more, got {list(widths)}")
        if head_dim < 2 or head_dim % 2:
            raise UserError(f"model.head_dim must be even for rotary positions, got {head_dim}")
        if droppable:  # its stand-in ships in Q4_0
            check_formats("model.blocks.attention.droppable", (Q4_0.name,), (head_dim, *self.d_model))
        self.qkv_formats = check_formats("model.blocks.attention.qkv_formats", tuple(qkv_formats), self.d_model)
        heads = [head_dim * kv * per_kv for kv in self.kv_heads for per_kv in self.heads_per_kv]
        self.o_formats = check_formats("model.blocks.attention.o_formats", tuple(o_formats), heads)
        width, kv, per_kv = self.d_model[-1], self.kv_heads[-1], self.heads_per_kv[-1]
        self.norm = ElasticRMSNorm(width, norm_eps)
        self.q_proj = ElasticLinear((kv, per_kv, head_dim), (width,), self.qkv_formats, scales)
        self.k_proj = ElasticLinear((kv, head_dim), (width,), self.qkv_formats, scales)
        self.v_proj = ElasticLinear((kv, head_dim), (width,), self.qkv_formats, scales)
        self.o_proj = ElasticLinear((width,), (kv, per_kv, head_dim), self.o_formats, scales)

    def genes(self) -> tuple[Gene, ...]:
        """Return presence, head counts and formats."""
        return (
            Gene("active", (0, 1) if self.droppable else (1,), "switch"),
            Gene("kv_heads", self.kv_heads, "width", needs="active"),
            Gene("heads_per_kv", self.heads_per_kv, "width", needs="active"),
            format_gene("qkv_format", self.qkv_formats, ("d_model",)),
            format_gene("o_format", self.o_formats, ("kv_heads", "heads_per_kv"), self.head_dim),
        )

    def forward(self, x: Tensor, choice: Choices, width: Extent, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update for x (batch, tokens, width)."""
        kv = extent(choice["kv_heads"], self.kv_heads)
        per_kv = extent(choice["heads_per_kv"], self.heads_per_kv)
        # A soft head count only masks what the output projection reads; all heads are computed.
        all_kv = kv if isinstance(kv, int) else self.kv_heads[-1]
        all_per_kv = per_kv if isinstance(per_kv, int) else self.heads_per_kv[-1]
        full = x.shape[-1]
        qkv_format = choice["qkv_format"]
        weights = (
            self.q_proj.effective((all_kv, all_per_kv, self.head_dim), (full,), qkv_format),
            self.k_proj.effective((all_kv, self.head_dim), (full,), qkv_format),
            self.v_proj.effective((all_kv, self.head_dim), (full,), qkv_format),
            self.o_proj.effective((width,), (kv, per_kv, self.head_dim), choice["o_format"]),
        )
        return attend(self.norm(x, width), weights, rope, all_kv, self.head_dim, self.kv_format)

    def extract(self, choice: Mapping[str, Value], width: int) -> Attention:
        """Return the plain block of a hard choice."""
        kv, per_kv = int(choice["kv_heads"]), int(choice["heads_per_kv"])
        qkv_format, o_format = str(choice["qkv_format"]), str(choice["o_format"])
        projections = {
            "q_proj": self.q_proj.extract((kv, per_kv, self.head_dim), (width,), qkv_format),
            "k_proj": self.k_proj.extract((kv, self.head_dim), (width,), qkv_format),
            "v_proj": self.v_proj.extract((kv, self.head_dim), (width,), qkv_format),
            "o_proj": self.o_proj.extract((width,), (kv, per_kv, self.head_dim), o_format),
        }
        block = Attention(self.norm.extract(width), projections, kv, self.head_dim)
        block.kv_format = self.kv_format
        return block

    def inventory(self, choice: Choices, width: Mapping[int, Any]) -> Inventory:
        """Return the (expected) counts of norm, q, k, v, o, heads and what the key-value cache gains by a token."""
        kv, per_kv = shares(choice["kv_heads"], self.kv_heads), shares(choice["heads_per_kv"], self.heads_per_kv)
        qkv, o = shares(choice["qkv_format"], self.qkv_formats), shares(choice["o_format"], self.o_formats)
        return self._count(mean(kv), joint(kv, per_kv), width, qkv, o)

    def stand_in(self, width: Mapping[int, Any]) -> Inventory:
        """Return the counts of one head of zeros in Q4_0, and its norm."""
        return self._count(1, {1: 1.0}, width, {Q4_0.name: 1.0}, {Q4_0.name: 1.0})

    def _count(
        self,
        kv: Any,
        heads: Mapping[int, Any],
        width: Mapping[int, Any],
        qkv: Mapping[Value, Any],
        o: Mapping[Value, Any],
    ) -> Inventory:
        found: Inventory = {
            "attention": 1.0,
            "heads": mean(heads),
            "kv_values": 2 * kv * self.head_dim,
            "norm.weights": mean(width),
        }
        add(found, matrices((mean(heads) + 2 * kv) * self.head_dim, width, qkv))
        add(found, matrices(mean(width), joint(heads, {self.head_dim: 1.0}), o))
        return found

    def stream(self) -> Stream:
        """Return the norm, what reads it and what writes the update."""
        return Stream(self.norm, (self.q_proj, self.k_proj, self.v_proj), (self.o_proj,))

    def ordered(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[list[int], list[Reordering]]:
        """Return the heads in the order in which `o_proj` needs them; where none are cut, as they are.

        Key-value heads move with their query heads, all of a group at once; query heads move within their group.
        """
        kv, per_kv, head_dim = self.kv_heads[-1], self.heads_per_kv[-1], self.head_dim
        if len(self.kv_heads) == len(self.heads_per_kv) == 1:
            return list(range(kv * per_kv)), []
        q, k, v = (Matrix(p.weight.flatten(0, -2)) for p in (self.q_proj, self.k_proj, self.v_proj))
        moments = second_moments(
            mixed_heads(self.norm(part, part.shape[-1]), (q, k, v), rope, kv, head_dim, None) for part in x.split(1)
        )
        output_weight = self.o_proj.weight.flatten(1)
        groups = elimination_order(moments, output_weight, per_kv * head_dim)
        places = elimination_order(moments, output_weight, head_dim).argsort()
        heads = places.view(kv, per_kv)[groups].argsort(dim=1)

        def query(w: Tensor) -> Tensor:
            return w[groups.unsqueeze(1), heads]

        def output(w: Tensor) -> Tensor:
            return w[:, groups.unsqueeze(1), heads]

        projections = (self.q_proj, query), (self.k_proj, lambda w: w[groups]), (self.v_proj, lambda w: w[groups])
        weights = [(p.weight, put) for p, put in (*projections, (self.o_proj, output))]
        return (groups.unsqueeze(1) * per_kv + heads).flatten().tolist(), weights

    def intermediates(self, choice: Choices) -> dict[int, Any]:
        """Return the sizes of q, k, v and the mixed values together."""
        found: dict[int, Any] = {}
        for kv, p in shares(choice["kv_heads"], self.kv_heads).items():
            for per_kv, q in shares(choice["heads_per_kv"], self.heads_per_kv).items():
                size = 2 * int(kv) * (int(per_kv) + 1) * self.head_dim
                found[size] = found.get(size, 0.0) + p * q
        return found


def zero_attention(width: int, head_dim: int, norm_eps: float) -> Attention:
    """Return one head of zeros in Q4_0: it adds nothing, where a runtime insists on attention."""
    shapes = {"q_proj": (head_dim, width), "k_proj": (head_dim, width), "v_proj": (head_dim, width)}
    projections = {k: Linear(torch.zeros(s), Q4_0()) for k, s in {**shapes, "o_proj": (width, head_dim)}.items()}
    return Attention(RMSNorm(torch.ones(width), norm_eps), projections, 1, head_dim)

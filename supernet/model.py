"""The supernet: an elastic Llama-like decoder over injected blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.elastic import (
    Choice,
    Choices,
    ElasticLinear,
    ElasticModule,
    ElasticRMSNorm,
    Extent,
    Inventory,
    add,
    expected,
    extent,
    inventory_bytes,
    matrices,
    shares,
    under,
)
from supernet.errors import UserError
from supernet.formats import check_formats
from supernet.genes import Gene, SearchSpace

BlockFactory = Callable[..., ElasticModule]
ONCE = "once."  # prefix of what only the last token of a prompt meets


def rope_table(n_tokens: int, head_dim: int, theta: float, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Return the cosines and signed sines, each (n_tokens, head_dim), of rotary positions (arXiv 2104.09864)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(n_tokens, device=device, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class Supernet(nn.Module):
    """Embedding, layers of elastic blocks in pre-norm residual form, norm, tied output projection.

    The model owns two genes, the width of the residual stream and the embedding's format; all others
    are collected from the blocks. Channels of the stream are prefixes too: a narrow net reads and writes
    the first channels only.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        n_layers: int,
        d_model: Sequence[int],
        head_dim: int,
        rope_theta: float,
        norm_eps: float,
        embedding_formats: Sequence[str],
        blocks: Mapping[str, BlockFactory],
    ) -> None:
        super().__init__()
        self.d_model = tuple(d_model)
        if not self.d_model or list(self.d_model) != sorted(set(self.d_model)) or self.d_model[0] < 1:
            raise UserError(f"model.d_model must ascend from 1 or more, got {list(self.d_model)}")
        if n_layers < 1:
            raise UserError(f"model.n_layers must be 1 or more, got {n_layers}")
        if list(blocks) != ["attention", "mlp"]:
            raise UserError(f"model.blocks must hold attention and mlp, got {list(blocks)}")
        self.vocab_size, self.context_length = vocab_size, context_length
        self.head_dim, self.rope_theta, self.norm_eps = head_dim, rope_theta, norm_eps
        formats = check_formats("model.embedding_formats", tuple(embedding_formats), self.d_model)
        self.embedding = ElasticLinear((vocab_size,), (self.d_model[-1],), formats)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: make(d_model=self.d_model, norm_eps=norm_eps) for name, make in blocks.items()})
            for _ in range(n_layers)
        )
        self.norm = ElasticRMSNorm(self.d_model[-1], norm_eps)
        self._shrink_residual_writers()
        self.space = SearchSpace(self._genes())

    def _shrink_residual_writers(self) -> None:
        """Scale what writes to the residual stream by 1 / sqrt(2 n_layers), as GPT-2 does."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.mul_((2 * len(self.layers)) ** -0.5)

    def blocks(self) -> list[tuple[str, ElasticModule]]:
        """Return every block under the prefix of its genes, `layers.3.mlp.`, in forward order."""
        return [
            (f"layers.{i}.{name}.", block)
            for i, layer in enumerate(self.layers)
            for name, block in layer.items()  # type: ignore[operator]
        ]

    def _genes(self) -> list[Gene]:
        genes = [
            Gene("d_model", self.d_model, "width"),
            Gene("embedding.format", tuple(f.name for f in self.embedding.formats), "format"),
        ]
        for prefix, block in self.blocks():
            for gene in block.genes():
                needs = prefix + gene.needs if gene.needs else None
                genes.append(replace(gene, name=prefix + gene.name, needs=needs))
        return genes

    def forward(self, tokens: Tensor, choices: Choices) -> Tensor:
        """Return the logits (batch, tokens, vocab_size) of the subnet, or mixture of subnets, chosen.

        Args:
            tokens: ids (batch, tokens).
            choices: for every gene a value, or probabilities over its choices.
        """
        width: Extent = extent(choices["d_model"], self.d_model)
        all_width = width if isinstance(width, int) else self.d_model[-1]
        embedding = self.embedding.effective((self.vocab_size,), (all_width,), choices["embedding.format"])
        x = F.embedding(tokens, embedding)
        if isinstance(width, Tensor):
            x = x * width
        rope = rope_table(tokens.shape[1], self.head_dim, self.rope_theta, tokens.device)
        for prefix, block in self.blocks():
            local = under(choices, prefix)
            active = local["active"]
            if isinstance(active, Tensor) and len(active) == 2:
                x = x + active[1] * block(x, local, width, rope)
            elif isinstance(active, Tensor) or active:
                x = x + block(x, local, width, rope)
        return F.linear(self.norm(x, width), embedding)

    def inventory(self, choices: Choices) -> Inventory:
        """Return what the net holds as shipped; under soft choices, its differentiable expectation.

        All genes are independent under the gates, so products of expectations are exact. Beside the sums
        of the blocks' inventories there are `d_model`; `once.Q4_0.weights` and such, the share of
        `Q4_0.weights` that only the last token of a prompt meets (the output projection and the last layer's
        FFN); and `intermediate`, the largest number of values that a kept block computes per token of a prompt.
        """
        found = self._tensors(choices)
        add(found, self._once(choices), prefix=ONCE)
        found["d_model"] = expected(choices["d_model"], self.d_model)
        found["intermediate"] = self._largest_intermediate(choices)
        return found

    def n_bytes(self, choices: Choices) -> Any:
        """Return the bytes of all tensors as shipped; under soft choices, their differentiable expectation."""
        return inventory_bytes(self._tensors(choices))

    def _tensors(self, choices: Choices) -> Inventory:
        """Return the sums over embedding, final norm and blocks.

        Counts what llama.cpp needs: a layer without attention or without FFN has a stand-in for the FFN,
        and for attention where it is the first; a layer with neither is left out (but one always stays).
        """
        width = expected(choices["d_model"], self.d_model)
        found: Inventory = {"norm.weights": width}
        add(found, self._head(choices, width))
        layers = self._layers(choices)
        empty: Any = 1.0  # probability that no layer was kept so far
        for (attention, a_local, a), (mlp, m_local, m) in layers:
            add(found, attention.inventory(a_local, width), a)
            add(found, attention.stand_in(width), empty * (1 - a) * m)
            add(found, mlp.inventory(m_local, width), m)
            add(found, mlp.stand_in(width), a * (1 - m))
            empty = empty * (1 - a) * (1 - m)
        for block, _, _ in layers[0]:
            add(found, block.stand_in(width), empty)
        return found

    def _once(self, choices: Choices) -> Inventory:
        """Return what only the last token of a prompt meets: the output projection and the last layer's FFN."""
        width = expected(choices["d_model"], self.d_model)
        found = self._head(choices, width)
        last: Any = 1.0  # probability that no later layer is kept
        for (_, _, a), (mlp, m_local, m) in reversed(self._layers(choices)):
            add(found, mlp.inventory(m_local, width), last * m)
            add(found, mlp.stand_in(width), last * a * (1 - m))
            last = last * (1 - a) * (1 - m)
        add(found, mlp.stand_in(width), last)
        return found

    def _head(self, choices: Choices, width: Any) -> Inventory:
        formats = shares(choices["embedding.format"], [f.name for f in self.embedding.formats])
        return matrices(self.vocab_size, width, formats)

    def _layers(self, choices: Choices) -> list[tuple[tuple[ElasticModule, Choices, Any], ...]]:
        """Return (block, its choices, probability that it is kept) of attention and mlp of each layer."""
        blocks = []
        for prefix, block in self.blocks():
            local = under(choices, prefix)
            blocks.append((block, local, _kept(local["active"])))
        return list(zip(blocks[::2], blocks[1::2], strict=True))

    def _largest_intermediate(self, choices: Choices) -> Any:
        """Return the (expected) maximum over kept blocks, without the last layer's FFN, which sees one token."""
        layers = [
            ((attention.intermediates(a_local), a), (mlp.intermediates(m_local), m))
            for (attention, a_local, a), (mlp, m_local, m) in self._layers(choices)
        ]
        sizes = sorted({0}.union(*(sizes for layer in layers for sizes, _ in layer)))
        mean: Any = 0.0
        for size, next_size in pairwise(sizes):
            last: Any = 1.0  # probability that no later layer is kept
            within: Any = 0.0  # that one is, and nothing from here on exceeds `size`
            for attention, mlp in reversed(layers):
                empty = (1 - attention[1]) * (1 - mlp[1])
                a, m = _within(size, *attention), _within(size, *mlp)
                last, within = last * empty, last * (a - empty) + within * a * m
            mean = mean + (next_size - size) * (1 - last - within)
        return mean


def _within(size: int, sizes: Mapping[int, Any], kept: Any) -> Any:
    """Return the probability that a block is dropped or computes no more than `size` values."""
    return 1 - kept * sum(p for s, p in sizes.items() if s > size)


def _kept(active: Choice) -> Any:
    """Return the probability that a block is kept."""
    if isinstance(active, Tensor):
        return active[-1]
    return float(active)

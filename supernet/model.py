"""The supernet: an elastic Llama-like decoder over injected blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from supernet.elastic import ElasticLinear, ElasticModule, ElasticRMSNorm, Extent, emulate, extent, format_gene, under
from supernet.errors import UserError
from supernet.formats import Q8_0, Fitting, check_formats, format_named
from supernet.formats.activations import check_kv_format
from supernet.genes import Gene, SearchSpace
from supernet.inventory import (
    Choice,
    Choices,
    Inventory,
    add,
    fitted,
    inventory_bytes,
    joint,
    matrices,
    mean,
    shares,
)
from supernet.rope import Rope, check_scaling

BlockFactory = Callable[..., ElasticModule]
ONCE = "once."  # prefix of what only the last token of a prompt meets
LOOKUP = "lookup."  # of what no product reads, only the rows of the tokens at hand
OUTPUT = "output.format"  # gene of an output projection that is not the embedding


class Supernet(nn.Module):
    """Embedding, layers of elastic blocks in pre-norm residual form, norm, output projection.

    The model owns two genes, the width of the residual stream and the embedding's format, and where the output
    projection is not the embedding (untied) that one's format; all others are collected from the blocks. Channels of
    the stream are prefixes too: a narrow net reads and writes the first channels only.

    Args:
        vocab_size: number of token ids.
        context_length: what the shipped files announce.
        n_layers: of the largest net.
        d_model: choices of the residual stream's width.
        head_dim: channels of a head.
        rope_theta: base of the rotary positions.
        norm_eps: of the norms.
        embedding_formats: choices of the embedding's format.
        blocks: what makes the attention and the mlp of a layer.
        scales: format -> where its scales come from, see `WeightFormat`; `absmax` where not named.
        emulate_activations: round the inputs of quantized products as llama.cpp does.
        kv_format: round keys and values as a cache in that format does; None: not.
        rope_scaling: of the rotary positions, see `Llama3Scaling`; None: none.
        tied: the output projection is the embedding.
        output_formats: choices of its format where it is not.

    Raises:
        UserError: settings that do not make a supernet.
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
        scales: Mapping[str, Fitting] | None = None,
        emulate_activations: bool = False,
        kv_format: str | None = None,
        rope_scaling: Mapping[str, Any] | None = None,
        tied: bool = True,
        output_formats: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.d_model = tuple(d_model)
        if not self.d_model or list(self.d_model) != sorted(set(self.d_model)) or self.d_model[0] < 1:
            raise UserError(f"model.d_model must ascend from 1 or more, got {list(self.d_model)}")
        if n_layers < 1:
            raise UserError(f"model.n_layers must be 1 or more, got {n_layers}")
        if rope_theta <= 0 or norm_eps < 0:
            raise UserError(f"model: rope_theta must be above 0, norm_eps 0 or more, got {rope_theta} and {norm_eps}")
        for name, fitting in (scales or {}).items():
            format_named(name, fitting)  # refused here if it cannot be
        if check_kv_format("model.kv_format", kv_format) == Q8_0.name and head_dim % Q8_0.group:
            raise UserError(f"model.kv_format=Q8_0 needs a model.head_dim that is a multiple of 32, got {head_dim}")
        if list(blocks) != ["attention", "mlp"]:
            raise UserError(f"model.blocks must hold attention and mlp, got {list(blocks)}")
        self.vocab_size, self.context_length = vocab_size, context_length
        self.rope = Rope(head_dim, rope_theta, check_scaling("model.rope_scaling", rope_scaling))
        self.head_dim, self.norm_eps = head_dim, norm_eps
        formats = check_formats("model.embedding_formats", tuple(embedding_formats), self.d_model)
        self.embedding = ElasticLinear((vocab_size,), (self.d_model[-1],), formats, scales)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.output: ElasticLinear | None = None
        if not tied:
            formats = check_formats("model.output_formats", tuple(output_formats), self.d_model)
            self.output = ElasticLinear((vocab_size,), (self.d_model[-1],), formats, scales)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: make(d_model=self.d_model, norm_eps=norm_eps, scales=scales) for name, make in blocks.items()}
            )
            for _ in range(n_layers)
        )
        self.norm = ElasticRMSNorm(self.d_model[-1], norm_eps)
        self._shrink_residual_writers()
        self.space = SearchSpace(self._genes())
        emulate(self, emulate_activations, kv_format)

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
            replace(format_gene("embedding.format", tuple(self.embedding.formats), ("d_model",)), needs=None),
        ]
        if self.output is not None:
            genes.append(replace(format_gene(OUTPUT, tuple(self.output.formats), ("d_model",)), needs=None))
        for prefix, block in self.blocks():
            for gene in block.genes():
                needs = prefix + gene.needs if gene.needs else None
                row = tuple(name if name == "d_model" else prefix + name for name in gene.row)
                genes.append(replace(gene, name=prefix + gene.name, needs=needs, row=row))
        return genes

    def _fitted(self, choices: Choices) -> Choices:
        """Return the choices with soft formats moved to what fits their rows; hard ones fit."""
        soft = [gene for gene in self.space if gene.row and isinstance(choices[gene.name], Tensor)]
        return {**choices, **{gene.name: self._fitted_format(gene, choices) for gene in soft}}

    def _fitted_format(self, gene: Gene, choices: Choices) -> Choice:
        widths: Any = [shares(choices[name], self.space.genes[self.space.position[name]].choices) for name in gene.row]
        return fitted(choices[gene.name], [str(c) for c in gene.choices], joint({gene.unit: 1.0}, *widths))

    def forward(self, tokens: Tensor, choices: Choices, states: list[Tensor] | None = None) -> Tensor:
        """Return the logits (batch, tokens, vocab_size) of the subnet, or mixture of subnets, chosen.

        Args:
            tokens: ids (batch, tokens).
            choices: for every gene a value, or probabilities over its choices.
            states: a list to which the residual stream (batch, tokens, width) behind each layer is added.
        """
        choices = self._fitted(choices)
        width: Extent = extent(choices["d_model"], self.d_model)
        all_width = width if isinstance(width, int) else self.d_model[-1]
        embedding = self.embedding.effective((self.vocab_size,), (all_width,), choices["embedding.format"])
        x = F.embedding(tokens, embedding.weight)
        if isinstance(width, Tensor):
            x = x * width
        rope = self.rope.table(tokens.shape[1], tokens.device)
        for prefix, block in self.blocks():
            local = under(choices, prefix)
            active = local["active"]
            if isinstance(active, Tensor) and len(active) == 2:
                x = x + active[1] * block(x, local, width, rope)
            elif isinstance(active, Tensor) or active:
                x = x + block(x, local, width, rope)
            if states is not None and prefix.endswith("mlp."):  # the end of a layer
                states.append(x)
        if self.output is not None:
            head = self.output.effective((self.vocab_size,), (all_width,), choices[OUTPUT])
        else:
            head = embedding
        return head(self.norm(x, width))

    def inventory(self, choices: Choices) -> Inventory:
        """Return what the net holds as shipped; under soft choices, its differentiable expectation.

        All genes are independent under the gates, so products of expectations are exact. Beside the sums
        of the blocks' inventories there are `d_model`; `once.Q4_0.weights` and such, the share of
        `Q4_0.weights` that only the last token of a prompt meets (the output projection and the last layer's
        FFN); `lookup.Q4_0.weights` and such, an embedding that is not the output projection; and `intermediate`,
        the largest number of values that a kept block computes per token of a prompt.
        """
        found = self._tensors(choices)
        add(found, self._once(choices), prefix=ONCE)
        if self.output is not None:
            add(found, self._embedding(choices, self._width(choices)), prefix=LOOKUP)
        found["d_model"] = mean(self._width(choices))
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
        width = self._width(choices)
        found: Inventory = {"norm.weights": mean(width)}
        add(found, self._embedding(choices, width))
        if self.output is not None:
            add(found, self._head(choices, width))
        if self.rope.scaling is not None:
            found["rope.weights"] = self.head_dim / 2  # ships as divisors of the frequencies
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
        width = self._width(choices)
        found = self._head(choices, width)
        last: Any = 1.0  # probability that no later layer is kept
        for (_, _, a), (mlp, m_local, m) in reversed(self._layers(choices)):
            add(found, mlp.inventory(m_local, width), last * m)
            add(found, mlp.stand_in(width), last * a * (1 - m))
            last = last * (1 - a) * (1 - m)
        add(found, mlp.stand_in(width), last)
        return found

    def _width(self, choices: Choices) -> Mapping[int, Any]:
        """Return the widths of the residual stream -> probability."""
        return shares(choices["d_model"], self.d_model)

    def _head(self, choices: Choices, width: Mapping[int, Any]) -> Inventory:
        """Return the inventory of the output projection, which may be the embedding."""
        if self.output is None:
            return self._embedding(choices, width)
        return matrices(self.vocab_size, width, shares(choices[OUTPUT], list(self.output.formats)))

    def _embedding(self, choices: Choices, width: Mapping[int, Any]) -> Inventory:
        formats = shares(choices["embedding.format"], list(self.embedding.formats))
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

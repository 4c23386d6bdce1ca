"""Gated feed-forward network (SwiGLU, arXiv 2002.05202)."""

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
from supernet.genes import Gene, Value
from supernet.inventory import Choices, Inventory, add, matrices, mean, shares
from supernet.plain import Block, Linear, Matrix, RMSNorm, project

STAND_IN_WIDTH = 32  # the narrowest that Q4_0 can store


def feed(x: Tensor, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
    """Return down(silu(gate x) * up x) for x (..., d_model)."""
    gated, plain = project(x, gate, up)
    return down(F.silu(gated) * plain)


class SwiGLU(Block):
    """A plain feed-forward block: norm, then SwiGLU."""

    def __init__(self, norm: RMSNorm, gate_proj: Linear, up_proj: Linear, down_proj: Linear) -> None:
        super().__init__()
        self.norm = norm
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    @property
    def width(self) -> int:
        """Number of hidden channels."""
        return self.gate_proj.weight.shape[0]

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update for x (batch, tokens, d_model)."""
        gate, up, down = self.gate_proj.effective(), self.up_proj.effective(), self.down_proj.effective()
        return feed(self.norm(x), gate, up, down)


class ElasticSwiGLU(ElasticModule):
    """SwiGLU whose hidden width, formats and presence are genes: every width is a prefix of the widest."""

    def __init__(
        self,
        d_model: Sequence[int],
        norm_eps: float,
        width: Sequence[int],
        gate_up_formats: Sequence[str],
        down_formats: Sequence[str],
        droppable: bool,
        scales: Mapping[str, Fitting] | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.widths, self.droppable = tuple(d_model), tuple(width), droppable
        if not self.widths or list(self.widths) != sorted(set(self.widths)) or self.widths[0] < 1:
            raise UserError(f"model.blocks.mlp.width must ascend from 1 or more, got {list(self.widths)}")
        if droppable:  # its stand-in ships in Q4_0
            check_formats("model.blocks.mlp.droppable", (Q4_0.name,), self.d_model)
        self.gate_up_formats = check_formats("model.blocks.mlp.gate_up_formats", tuple(gate_up_formats), self.d_model)
        self.down_formats = check_formats("model.blocks.mlp.down_formats", tuple(down_formats), self.widths)
        self.norm = ElasticRMSNorm(self.d_model[-1], norm_eps)
        self.gate_proj = ElasticLinear((self.widths[-1],), (self.d_model[-1],), self.gate_up_formats, scales)
        self.up_proj = ElasticLinear((self.widths[-1],), (self.d_model[-1],), self.gate_up_formats, scales)
        self.down_proj = ElasticLinear((self.d_model[-1],), (self.widths[-1],), self.down_formats, scales)

    def genes(self) -> tuple[Gene, ...]:
        """Return presence, hidden width and formats."""
        return (
            Gene("active", (0, 1) if self.droppable else (1,), "switch"),
            Gene("width", self.widths, "width", needs="active"),
            format_gene("gate_up_format", self.gate_up_formats, ("d_model",)),
            format_gene("down_format", self.down_formats, ("width",)),
        )

    def forward(self, x: Tensor, choice: Choices, width: Extent, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update for x (batch, tokens, width)."""
        hidden = extent(choice["width"], self.widths)
        all_hidden = hidden if isinstance(hidden, int) else self.widths[-1]
        gate = self.gate_proj.effective((all_hidden,), (x.shape[-1],), choice["gate_up_format"])
        up = self.up_proj.effective((all_hidden,), (x.shape[-1],), choice["gate_up_format"])
        down = self.down_proj.effective((width,), (hidden,), choice["down_format"])
        return feed(self.norm(x, width), gate, up, down)

    def extract(self, choice: Mapping[str, Value], width: int) -> SwiGLU:
        """Return the plain block of a hard choice."""
        hidden, gate_up, down = (
            int(choice["width"]),
            str(choice["gate_up_format"]),
            str(choice["down_format"]),
        )
        return SwiGLU(
            self.norm.extract(width),
            self.gate_proj.extract((hidden,), (width,), gate_up),
            self.up_proj.extract((hidden,), (width,), gate_up),
            self.down_proj.extract((width,), (hidden,), down),
        )

    def inventory(self, choice: Choices, width: Mapping[int, Any]) -> Inventory:
        """Return the (expected) counts of norm, gate, up and down."""
        gate_up = shares(choice["gate_up_format"], self.gate_up_formats)
        down = shares(choice["down_format"], self.down_formats)
        return self._count(shares(choice["width"], self.widths), width, gate_up, down)

    def stand_in(self, width: Mapping[int, Any]) -> Inventory:
        """Return the counts of the narrowest SwiGLU of zeros in Q4_0, and its norm."""
        return self._count({STAND_IN_WIDTH: 1.0}, width, {Q4_0.name: 1.0}, {Q4_0.name: 1.0})

    def _count(
        self,
        hidden: Mapping[int, Any],
        width: Mapping[int, Any],
        gate_up: Mapping[Value, Any],
        down: Mapping[Value, Any],
    ) -> Inventory:
        found: Inventory = {"mlp": 1.0, "norm.weights": mean(width)}
        add(found, matrices(2 * mean(hidden), width, gate_up))
        add(found, matrices(mean(width), hidden, down))
        return found

    def stream(self) -> Stream:
        """Return the norm, what reads it and what writes the update."""
        return Stream(self.norm, (self.gate_proj, self.up_proj), (self.down_proj,))

    def ordered(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[list[int], list[Reordering]]:
        """Return the hidden channels in the order in which `down_proj` needs them; where none are cut, as they are."""
        if len(self.widths) == 1:
            return list(range(self.widths[0])), []

        def hidden(x: Tensor) -> Tensor:
            x = self.norm(x, x.shape[-1])
            return F.silu(F.linear(x, self.gate_proj.weight)) * F.linear(x, self.up_proj.weight)

        order = elimination_order(second_moments(map(hidden, x.split(1))), self.down_proj.weight)
        rows, columns = (lambda w: w[order]), (lambda w: w[:, order])
        weights = (self.gate_proj.weight, rows), (self.up_proj.weight, rows), (self.down_proj.weight, columns)
        return order.tolist(), list(weights)

    def intermediates(self, choice: Choices) -> dict[int, Any]:
        """Return the sizes of gate, up and their product together."""
        return {3 * int(hidden): p for hidden, p in shares(choice["width"], self.widths).items()}


def zero_swiglu(width: int, norm_eps: float) -> SwiGLU:
    """Return a narrow SwiGLU of zeros in Q4_0: it adds nothing, where a runtime insists on one."""
    hidden = (STAND_IN_WIDTH, width)
    return SwiGLU(
        RMSNorm(torch.ones(width), norm_eps),
        Linear(torch.zeros(hidden), Q4_0()),
        Linear(torch.zeros(hidden), Q4_0()),
        Linear(torch.zeros(hidden[::-1]), Q4_0()),
    )

"""Matrix-multiplication FLOPs of forward passes and training steps: what is compared when methods share a budget.

Two for each weight and token (of embedding and output projection only the latter: a lookup costs none), and attention's
two products over the causal half. Norms, activations and the rounding of weights are left out, as usual
(Kaplan et al., arXiv 2001.08361, section 2.1).
"""

from typing import Any

from supernet.elastic import under
from supernet.genes import Architecture
from supernet.inventory import Inventory, add
from supernet.model import Supernet
from supernet.sandwich import Schedule
from supernet.subnet import Decoder

TRAINING = 3  # a training pass in forward passes: backward takes two products for each one of forward


def forward_flops(decoder: Decoder, n_tokens: int) -> float:
    """Return the FLOPs of a forward pass of a plain decoder, per sequence of `n_tokens`."""
    weights = sum(linear.weight.numel() for linear in decoder.linears())
    if decoder.output is not None:
        weights -= decoder.embedding.weight.numel()
    blocks: list[Any] = [layer.attention for layer in decoder.layers if layer.attention is not None]
    return _flops(weights, sum(block.heads * block.head_dim for block in blocks), n_tokens)


def subnet_flops(supernet: Supernet, architecture: Architecture, n_tokens: int) -> float:
    """Return the FLOPs of a forward pass of a subnet, per sequence of `n_tokens`; nothing is extracted.

    Equal to `forward_flops` of what is extracted. The stand-ins that a runtime needs for dropped blocks, which
    `Supernet.inventory` counts, are no part of training.
    """
    width = int(architecture["d_model"])
    found: Inventory = {"output.weights": supernet.vocab_size * width}
    for prefix, block in supernet.blocks():
        local = under(architecture, prefix)
        if local["active"]:
            add(found, block.inventory(local, {width: 1.0}))
    weights = sum(n for name, n in found.items() if name.endswith(".weights") and name != "norm.weights")
    return _flops(weights, found.get("heads", 0) * supernet.head_dim, n_tokens)


def _flops(weights: float, head_channels: float, n_tokens: int) -> float:
    """Return FLOPs from the weights of all matrices and the channels of all query heads."""
    return 2.0 * weights * n_tokens + 2 * 2 * head_channels * n_tokens * n_tokens / 2


def tuning_flops(student: float, teacher: float = 0.0) -> float:
    """Return the FLOPs of a step that trains one net, from those of forward passes; a teacher only predicts."""
    return TRAINING * student + teacher


def phase_flops(
    supernet: Supernet, schedule: Schedule, seed: int, n_tokens: int, teacher: float = 0.0
) -> dict[str, float]:
    """Return phase -> FLOPs of all its steps, per sequence of `n_tokens` that a step takes.

    A weight step trains the subnets of the schedule; in-place distillation reads the largest one's forward pass,
    which is there already. A gate step trains the relaxed net, all of the largest; it takes fewer sequences.

    Args:
        supernet: whose subnets train.
        schedule: which ones.
        seed: of their draws.
        n_tokens: of a sequence.
        teacher: FLOPs of a forward pass of a frozen teacher, one in each weight step; 0: there is none.
    """
    largest = subnet_flops(supernet, supernet.space.decode(supernet.space.largest), n_tokens)
    known: dict[tuple[object, ...], float] = {}  # largest and smallest train again and again
    total = dict.fromkeys(("alone", "joint", "gates"), 0.0)
    for step in range(schedule.steps):
        kind = schedule.kind(step)
        if kind == "gates":
            total[kind] += TRAINING * largest
            continue
        total[kind] += teacher
        for _, architecture in schedule.subnets(supernet.space, seed, step):
            key = tuple(architecture.values())
            if key not in known:
                known[key] = subnet_flops(supernet, architecture, n_tokens)
            total[kind] += TRAINING * known[key]
    return total

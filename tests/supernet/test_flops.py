"""FLOPs against what torch counts while it computes."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from supernet.flops import TRAINING, forward_flops, phase_flops, subnet_flops, tuning_flops
from supernet.subnet import extract
from tests.supernet.schedule import SCHEDULE

N = 12


def counted(run):
    """Return the matrix-multiplication FLOPs of `run`, attention left out: torch counts the masked half too."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return sum(n for operator, n in counter.get_flop_counts()["Global"].items() if "mm" in str(operator))


def genomes(space, n=30):
    rng = np.random.default_rng(0)
    return [space.largest, space.smallest, space.cheapest, *(space.sample_spread(rng) for _ in range(n))]


def attention(decoder, n_tokens):
    """Return 2 x (query, key) pairs x (scores and mixing) of every head, half of them masked."""
    layers = [layer.attention for layer in decoder.layers if layer.attention is not None]
    return sum(2 * n_tokens**2 * block.q_proj.weight.shape[0] for block in layers)


def test_forward_flops_are_those_that_torch_counts(tiny_supernet, tokens):
    assert tokens.shape[1] == N
    for genome in genomes(tiny_supernet.space):
        decoder = extract(tiny_supernet, genome)
        mine = forward_flops(decoder, N)
        with torch.no_grad():
            theirs = counted(lambda decoder=decoder: decoder(tokens[:1]))
        assert mine == theirs + attention(decoder, N)
        assert mine == subnet_flops(tiny_supernet, tiny_supernet.space.decode(genome), N)


def test_training_takes_three_forward_passes(tiny_supernet, tokens):
    decoder = extract(tiny_supernet, tiny_supernet.space.largest)
    with torch.no_grad():
        once = counted(lambda: decoder(tokens))
    assert counted(lambda: decoder(tokens).sum().backward()) == TRAINING * once
    assert tuning_flops(2.0, teacher=5.0) == 11.0


def test_phases_add_up_the_subnets_of_every_step(tiny_supernet):
    space = tiny_supernet.space
    whole = forward_flops(extract(tiny_supernet, space.largest), N)
    kinds = [SCHEDULE.kind(step) for step in range(SCHEDULE.steps)]
    assert {"alone", "joint", "gates"} == set(kinds)
    joint = [a for step, kind in enumerate(kinds) if kind == "joint" for _, a in SCHEDULE.subnets(space, 5, step)]
    assert phase_flops(tiny_supernet, SCHEDULE, 5, N) == {
        "alone": 3 * whole * kinds.count("alone"),
        "joint": pytest.approx(3 * sum(forward_flops(extract(tiny_supernet, space.encode(a)), N) for a in joint)),
        "gates": 3 * whole * kinds.count("gates"),
    }
    plain, taught = (phase_flops(tiny_supernet, SCHEDULE, 5, N, teacher) for teacher in (0.0, 1e6))
    added = {kind: 1e6 * kinds.count(kind) if kind != "gates" else 0 for kind in plain}
    assert {kind: pytest.approx(taught[kind] - plain[kind]) for kind in plain} == added

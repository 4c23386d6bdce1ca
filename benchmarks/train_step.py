"""What a full sandwich step costs, against a plain training step of the largest net.

`python benchmarks/train_step.py` interleaves both in one process, on the shapes of `llama_like`: largest,
smallest and two sampled subnets, in-place distillation, every weight rounded to its format.
Writes docs/results/train_step.json: `ratio_to_plain` is step over plain step, `ratio_to_flops` is that
over the sum of the four passes' matmul FLOPs in units of the largest's.
"""

import argparse

import torch
from common import compose, interleaved, make_supernet, plain_llama, record, spread

from supernet.config import build
from supernet.flops import forward_flops, subnet_flops
from supernet.sandwich import Schedule
from supernet.subnet import extract
from supernet.training import joint_loss

VOCABULARY = 1024
SANDWICH = ("schedule.alone_steps=0", "schedule.largest_every=1", "schedule.smallest_every=1", "schedule.n_sampled=2")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = compose("train", "+experiment=llama_like", *SANDWICH)
    schedule = build(config.schedule, gate_every=0)
    assert isinstance(schedule, Schedule)
    supernet = make_supernet(config, VOCABULARY)
    space, length = supernet.space, config.sequence_length
    largest = extract(supernet, space.largest)
    plain = plain_llama(largest)
    batch = torch.randint(VOCABULARY, (config.batch_size, length + 1))
    optimizers = [build(config.optimizer)(list(m.parameters())) for m in (plain, supernet)]
    subnets = [schedule.subnets(space, 0, step) for step in range(arguments.repeats)]

    def plain_step(_: int) -> None:
        loss = plain(input_ids=batch[:, :-1], labels=batch[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad()

    def sandwich_step(repeat: int) -> None:
        loss, _ = joint_loss(supernet, batch, subnets[repeat], schedule)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), 1.0)
        optimizers[1].step()
        optimizers[1].zero_grad()

    seconds = interleaved({"plain": plain_step, "sandwich": sandwich_step}, arguments.repeats, warmup=3)
    whole = forward_flops(largest, length)
    shares = [sum(subnet_flops(supernet, a, length) for _, a in step) / whole for step in subnets]
    ratios = [s / p for s, p in zip(seconds["sandwich"], seconds["plain"], strict=True)]
    record(
        "train_step",
        {
            "parameters": sum(p.numel() for p in supernet.parameters()),
            "tokens_per_step": config.batch_size * length,
            "ratio_to_plain": spread(ratios),
            "ratio_to_flops": spread([r / share for r, share in zip(ratios, shares, strict=True)]),
            "flops_of_four_passes": spread(shares),
            "plain_ms": spread([1e3 * s for s in seconds["plain"]]),
            "sandwich_ms": spread([1e3 * s for s in seconds["sandwich"]]),
        },
    )


if __name__ == "__main__":
    main()

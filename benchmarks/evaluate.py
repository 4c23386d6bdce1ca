"""What scoring a candidate costs, against a plain forward pass of the largest net.

`python benchmarks/evaluate.py` scores 24 candidates drawn uniformly from the space of `llama_like` (fixed
seeds) with inherited weights in their formats, each beside a plain forward pass with loss on the same
tokens. Writes docs/results/evaluate.json: `ratio_to_plain` is the time of scoring over that of the plain
pass, `ratio_to_flops` is that over the candidate's share of the plain pass's matmul FLOPs.
"""

import argparse

import torch
from common import compose, forward_flops, interleaved, make_supernet, plain_llama, record, spread

from search.evaluation import Evaluator
from supernet.losses import evaluate
from supernet.randomness import generator
from supernet.subnet import extract

VOCABULARY = 1024
CANDIDATES = 24


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, search = compose("train", "+experiment=llama_like"), compose("search", "run=none")
    supernet = make_supernet(config, VOCABULARY)
    space, length, batch_size = supernet.space, config.sequence_length, search.eval_batch_size
    rows = torch.randint(VOCABULARY, (search.eval_sequences, length + 1))
    evaluator = Evaluator(supernet, rows, batch_size)
    largest = extract(supernet, space.largest)
    plain = plain_llama(largest).eval()
    genomes = [space.sample(generator(seed, "benchmark")) for seed in range(CANDIDATES)]

    def plain_pass(_: int) -> None:
        with torch.inference_mode():
            evaluate(lambda tokens: plain(input_ids=tokens).logits, rows, batch_size)

    def score(repeat: int) -> None:
        assert evaluator.evaluation(genomes[repeat % CANDIDATES]).quality

    seconds = interleaved({"plain": plain_pass, "score": score}, arguments.rounds * CANDIDATES, warmup=2)
    whole = forward_flops(largest, length)
    shares = [forward_flops(extract(supernet, genome), length) / whole for genome in genomes]
    ratios = [s / p for s, p in zip(seconds["score"], seconds["plain"], strict=True)]
    record(
        "evaluate",
        {
            "candidates": CANDIDATES,
            "tokens": rows[:, 1:].numel(),
            "ratio_to_plain": spread(ratios),
            "ratio_to_flops": spread([r / shares[i % CANDIDATES] for i, r in enumerate(ratios)]),
            "total_ratio_to_flops": sum(ratios) / sum(shares[i % CANDIDATES] for i in range(len(ratios))),
            "flops_share": spread(shares),
            "plain_ms": spread([1e3 * s for s in seconds["plain"]]),
            "score_ms": spread([1e3 * s for s in seconds["score"]]),
        },
    )


if __name__ == "__main__":
    main()

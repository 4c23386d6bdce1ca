"""What scoring a candidate costs: against a plain forward pass, and in the loop of a search.

`python benchmarks/evaluate.py` measures on `llama_like`, and writes docs/results/evaluate.json:

- 24 candidates drawn uniformly from the space (random weights, fixed seeds) with inherited weights in their
  formats, each beside a plain forward pass with loss of the largest net on the same tokens. `ratio_to_plain`
  is the time of scoring over that of the plain pass, `ratio_to_flops` is that over the candidate's share of
  the plain pass's matmul FLOPs.
- `loop`: the candidates that the default strategy asks for, on the trained net of `--run` where there is one
  (else on random weights). Each batch is scored three ways, in turn, so that a drift of the machine meets all
  alike: `naive` extracts each candidate, rounds its weights and evaluates it; `exact` rounds each weight once
  and reuses activations; `hurdles` does so behind the hurdles of conf/hurdles/default.yaml. The losses of the
  first two are held against each other, bit for bit, and so are those of the third where it has any. The
  strategy is told the exact scores. `speedup_..._with_ask` counts what the strategy thinks, too, in both.
  `top_found`: of the best 5 % of all candidates of a search (by excess over the budget, then non-dominated
  rank by loss and size, then loss), the share that passed all hurdles when its turn came;
  `top_found_by_crowding` has the crowding distance in the last place, as the search does.
- `loop_NAME`, with `--evolution NAME`: the same for the candidates of another strategy. `earlier` then says when and
  how the rest was measured.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, compose, interleaved, make_supernet, plain_llama, record, spread
from torch import Tensor

from search.candidate import Candidate
from search.evaluation import Evaluator
from search.evolution import ranks
from search.hurdles import Hurdles
from search.population import first_population
from supernet.config import build
from supernet.files import read_json
from supernet.flops import forward_flops, subnet_flops
from supernet.formats import MB
from supernet.genes import Genome
from supernet.losses import evaluate
from supernet.model import Supernet
from supernet.randomness import generator
from supernet.run import SUMMARY, load_supernet
from supernet.subnet import extract

VOCABULARY = 1024
CANDIDATES = 24
TOP = 0.05  # share of the candidates that hurdles should not stop
NO_GATES: dict[str, list[Any]] = {"budgets_mb": [], "modes": [], "history": []}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, default=Path("runs/llama_like"))
    parser.add_argument("--budget", type=float, default=2.35, help="MB, of the search")
    parser.add_argument("--candidates", type=int, default=400, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evolution", help="measure the loop of this strategy beside what is there already")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    overrides = [f"run={arguments.run}", f"budget.size_mb={arguments.budget}"]
    beside = arguments.evolution is not None
    config = compose("search", *overrides, *([f"evolution={arguments.evolution}"] if beside else []))
    passes = {} if beside else against_plain(config, arguments.rounds)
    loops = [Loop(config, arguments.run, seed).measure(arguments.candidates) for seed in arguments.seeds]
    if beside:
        kept = read_json(RESULTS / "evaluate.json")
        about = {key: kept.pop(key) for key in ("command", "date", "device", "threads", "torch")}
        record("evaluate", {**kept, "earlier": about, f"loop_{arguments.evolution}": summary(loops)})
    else:
        record("evaluate", {**passes, "loop": summary(loops)})


def against_plain(search: Any, rounds: int) -> dict[str, Any]:
    """Return the cost of scoring single candidates, each beside a plain forward pass."""
    config = compose("train", "+experiment=llama_like")
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
        evaluator.forget()
        assert evaluator.evaluation(genomes[repeat % CANDIDATES]).quality

    seconds = interleaved({"plain": plain_pass, "score": score}, rounds * CANDIDATES, warmup=2)
    whole = forward_flops(largest, length)
    shares = [subnet_flops(supernet, space.decode(genome), length) / whole for genome in genomes]
    ratios = [s / p for s, p in zip(seconds["score"], seconds["plain"], strict=True)]
    return {
        "candidates": CANDIDATES,
        "tokens": rows[:, 1:].numel(),
        "ratio_to_plain": spread(ratios),
        "ratio_to_flops": spread([r / shares[i % CANDIDATES] for i, r in enumerate(ratios)]),
        "total_ratio_to_flops": sum(ratios) / sum(shares[i % CANDIDATES] for i in range(len(ratios))),
        "flops_share": spread(shares),
        "plain_ms": spread([1e3 * s for s in seconds["plain"]]),
        "score_ms": spread([1e3 * s for s in seconds["score"]]),
    }


class Loop:
    """A search whose candidates are scored three ways."""

    def __init__(self, config: Any, run: Path, seed: int) -> None:
        self.config, self.seed = config, seed
        self.trained = (run / "supernet" / SUMMARY).exists()
        self.supernet, self.rows, gates = self._load(run)
        space = self.supernet.space
        self.floors = {"size_mb": config.finalist_share * config.budget.size_mb}
        first = first_population(space, gates, self.fits, config.evaluations, seed, **config.first_population)
        self.strategy = build(config.evolution)(
            space, ["loss", "size_mb"], first, seed, fits=self.fits, known=self.known, floors=self.floors
        )
        self.hurdles = Hurdles(compose("search", "run=none", "hurdles=default").hurdles, config.eval_sequences)
        settings = (self.supernet, self.rows, config.eval_batch_size)
        self.exact = Evaluator(*settings, reuse_mb=config.reuse_mb)
        self.behind = Evaluator(*settings, reuse_mb=config.reuse_mb, hurdles=self.hurdles.sequences)
        self.candidates: list[Candidate] = []
        self.judged: list[dict[str, float]] = []

    def _load(self, run: Path) -> tuple[Supernet, Tensor, Any]:
        n = self.config.eval_sequences
        if self.trained:
            found = load_supernet(run)
            data = found.tokens()
            return found.supernet, data.evaluation_batch("valid", n, int(data.config["sequence_length"])), found.gates
        config = compose("train", "+experiment=llama_like")
        rows = torch.randint(VOCABULARY, (n, config.sequence_length + 1))
        return make_supernet(config, VOCABULARY), rows, NO_GATES

    def known(self, genome: Genome) -> dict[str, float]:
        """Return the scores that cost nothing."""
        return {"size_mb": float(self.supernet.n_bytes(self.supernet.space.decode(genome))) / MB}

    def violation(self, scores: Any) -> float:
        """Return the relative excess over the budget."""
        return max(0.0, float(scores["size_mb"]) / self.config.budget.size_mb - 1)

    def fits(self, genome: Genome) -> bool:
        """Return whether a genome meets the budget."""
        return self.violation(self.known(genome)) == 0

    def _naive(self, genomes: Sequence[Genome]) -> list[float | None]:
        batch_size = self.config.eval_batch_size
        return [evaluate(extract(self.supernet, g).freeze_formats(), self.rows, batch_size)[0] for g in genomes]

    def _exact(self, genomes: Sequence[Genome]) -> list[float | None]:
        return [self.exact.evaluation(genome).quality[0] for genome in genomes]

    def _behind_hurdles(self, genomes: Sequence[Genome]) -> list[float | None]:
        def diverge(positions: Sequence[int], level: int) -> list[float | str]:
            return [self.behind.divergence(genomes[i], level) for i in positions]

        scores = [self.known(genome) for genome in genomes]
        names = ["loss", "size_mb"]
        stopped = self.hurdles.run(scores, self.judged, diverge, names[1:], names, self.violation, self.floors)
        self.judged += scores
        return [None if i in stopped else self.behind.evaluation(g).quality[0] for i, g in enumerate(genomes)]

    def measure(self, n: int) -> dict[str, Any]:
        """Return what `n` candidates took each way, and whom the hurdles stopped."""
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        ways: dict[str, Callable[[Sequence[Genome]], list[float | None]]] = {
            "naive": self._naive,
            "exact": self._exact,
            "hurdles": self._behind_hurdles,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        passed: set[int] = set()
        asking = 0.0
        while len(self.candidates) < n:
            rng = generator(self.seed, "ask", self.strategy.generation)
            start = clock()
            batch = sorted(self.strategy.ask(self.config.batch, rng), key=lambda p: p.genome)
            asking += clock() - start
            losses = {}
            for name, score in ways.items():
                start = clock()
                losses[name] = score([p.genome for p in batch])
                seconds[name].append(clock() - start)
            assert losses["exact"] == losses["naive"], "reuse changed a score"
            told: list[Candidate] = []
            for proposal, loss, behind in zip(batch, losses["exact"], losses["hurdles"], strict=True):
                assert behind in (None, loss), "hurdles changed a score"
                number = len(self.candidates) + len(told)
                scores = {"loss": float(loss or 0), **self.known(proposal.genome)}
                told.append(Candidate(number, proposal.genome, scores, self.violation(scores), proposal.lineage))
                if behind is not None:
                    passed.add(number)
            self.strategy.tell(told)
            self.candidates += told
        best, crowded = self._best(by_loss=True), self._best(by_loss=False)
        total = {name: sum(values) for name, values in seconds.items()}
        return {
            "candidates": len(self.candidates),
            "naive_per_s": len(self.candidates) / total["naive"],
            "speedup_exact": total["naive"] / total["exact"],
            "speedup_hurdles": total["naive"] / total["hurdles"],
            "speedup_exact_with_ask": (total["naive"] + asking) / (total["exact"] + asking),
            "speedup_hurdles_with_ask": (total["naive"] + asking) / (total["hurdles"] + asking),
            "ask_ms": 1e3 * asking / len(self.candidates),
            "speedup_exact_last_half": _last_half(seconds["naive"]) / _last_half(seconds["exact"]),
            "speedup_hurdles_last_half": _last_half(seconds["naive"]) / _last_half(seconds["hurdles"]),
            "reused_exact": self.exact.cache.hits / self.exact.cache.lookups,
            "reused_hurdles": self.behind.cache.hits / self.behind.cache.lookups,
            "reuse_peak_mb": max(e.cache.peak_bytes for e in (self.exact, self.behind)) / MB,
            "passed": len(passed) / len(self.candidates),
            "top_found": len(passed & best) / len(best),
            "top_found_by_crowding": len(passed & crowded) / len(crowded),
            "trained": self.trained,
        }

    def _best(self, by_loss: bool) -> set[int]:
        order = ranks(self.candidates, ["loss", "size_mb"], self.floors)
        last = [c.scores["loss"] if by_loss else order[c.id][2] for c in self.candidates]
        best = sorted(range(len(order)), key=lambda i: (*order[i][:2], last[i], i))
        return set(best[: math.ceil(TOP * len(best))])


def _last_half(seconds: Sequence[float]) -> float:
    return sum(seconds[len(seconds) // 2 :])


def summary(loops: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the searches, and each search."""
    keys = [key for key, value in loops[0].items() if isinstance(value, float)]
    means = {key: statistics.fmean(loop[key] for loop in loops) for key in keys}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return {**means, "scores_equal": True, "process_peak_mb": peak_mb, "searches": list(loops)}


if __name__ == "__main__":
    main()

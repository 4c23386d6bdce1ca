"""How good a front does each strategy find, with the settings it ships with?

`python benchmarks/search_quality.py` searches NAS-Bench-Macro, a table of 6,561 architectures (8 genes of 3
choices; error in % and MFLOPs, each scaled to (x - min) / (hi - min), where hi is 20 % of error and the
largest FLOPs; Su et al., arXiv 2103.11922), from random draws on, with neither score known beforehand. Strategies are
asked for the batches of `conf/search.yaml`, and every genome asked for counts. A front is worth its hypervolume to
(1.1, 1.1), as a fraction of the exact front's. What the search of a supernet of ours finds is measured by
search_parts.py.

Writes docs/results/search_quality.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, compose, record

from search.candidate import Candidate, Proposal
from search.strategies import shipped
from supernet.cli import progress
from supernet.genes import Gene, Genome, SearchSpace
from supernet.randomness import generator

NAME, PYMOO = "search_quality", "pymoo_nsga2"
STRATEGIES = ("aging", "level_switch", "nsga2", "random", "surrogate", PYMOO)  # those that know nothing of formats
TABLE = ROOT.parent / "shared" / "data" / "nasbench_macro" / "nas-bench-macro_cifar10.json"
REFERENCE = 1.1
Scores = Callable[[Genome], Mapping[str, float]]
Points = list[tuple[float, float]]


def main() -> None:
    """Search, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="NAS-Bench-Macro's file")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=400)
    arguments = parser.parse_args()
    if not arguments.table.exists():
        raise SystemExit(f"error: {arguments.table} is not there; --table=FILE names NAS-Bench-Macro's file")
    record(NAME, search_table(arguments))


def search_table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what each strategy finds."""
    table = json.loads(arguments.table.read_text(encoding="utf-8"))
    space = SearchSpace([Gene(f"layers.{i}.block", (0, 1, 2), "width") for i in range(8)])
    scores = {
        tuple(int(digit) for digit in key): {"error": 100 - entry["mean_acc"], "mflops": entry["flops"] / 1e6}
        for key, entry in table.items()
    }
    low = {name: min(s[name] for s in scores.values()) for name in ("error", "mflops")}
    high = {"error": 20.0, "mflops": max(s["mflops"] for s in scores.values())}

    def scaled(genomes: Sequence[Genome]) -> Points:
        return [tuple((scores[g][n] - low[n]) / (high[n] - low[n]) for n in low) for g in genomes]

    exact = hypervolume(scaled(list(scores)))
    names, seeds, evaluations = arguments.strategies, arguments.seeds, arguments.evaluations
    at = [n for n in (100, 200, 400) if n <= evaluations]
    rows = {}
    with progress(total=len(names) * seeds, unit="search", desc="table") as bar:
        for name in names:
            values: dict[str, list[float]] = {f"hv_{n}": [] for n in at}
            for seed in range(seeds):
                asked = play(name, space, scores.__getitem__, ["error", "mflops"], evaluations, seed)
                for n in at:
                    values[f"hv_{n}"].append(hypervolume(scaled(asked[:n])) / exact)
                bar.update()
            rows[name] = {key: summary(column) for key, column in values.items()}
    return {
        "goal": "default: hv_200 at least 0.970, hv_400 at least 0.993",
        "seeds": seeds,
        "default": {"strategy": default(), **rows.get(default(), {})},
        "strategies": rows,
    }


def default() -> str:
    """Return the name of the strategy that `conf/search.yaml` names."""
    target = str(compose("search", "run=none").evolution["_target_"])
    return target.split(".")[-2]


def play(
    name: str,
    space: SearchSpace,
    scores: Scores,
    objectives: Sequence[str],
    evaluations: int,
    seed: int,
) -> list[Genome]:
    """Return what a strategy asks for, in order."""
    if name == PYMOO:
        return play_pymoo(space, scores, objectives, evaluations, seed, ())
    batch = int(compose("search", "run=none").batch)
    strategy = shipped(name)(space, objectives, (), seed)
    asked: list[Genome] = []
    while len(asked) < evaluations:
        rng = generator(seed, "ask", strategy.generation)
        proposals = strategy.ask(min(batch, evaluations - len(asked)), rng)
        if not proposals:
            break
        candidates = [
            Candidate(len(asked) + i, p.genome, dict(scores(p.genome)), 0.0, p.lineage) for i, p in enumerate(proposals)
        ]
        strategy.tell(candidates)
        asked += [p.genome for p in proposals]
    return asked


def play_pymoo(
    space: SearchSpace,
    scores: Scores,
    objectives: Sequence[str],
    evaluations: int,
    seed: int,
    first: Sequence[Proposal],
) -> list[Genome]:
    """Return what pymoo's NSGA-II asks for with integer genes and its own operators, 40 parents, 20 children."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    asked: list[Genome] = []

    class Table(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=len(space), n_obj=len(objectives), xl=0, xu=np.array(space.largest), vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            asked.append(space.canonical([int(i) for i in x]))
            out["F"] = [scores(asked[-1])[name] for name in objectives]

    algorithm = NSGA2(
        pop_size=max(40, len(first)),
        n_offsprings=20,
        sampling=np.array([p.genome for p in first]) if first else IntegerRandomSampling(),
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
    )
    minimize(Table(), algorithm, ("n_eval", evaluations), seed=seed)
    return asked[:evaluations]


def front(points: Points) -> Points:
    """Return the non-dominated points of a plane, by the first coordinate."""
    result: Points = []
    for x, y in sorted(points):
        if not result or y < result[-1][1]:
            result.append((x, y))
    return result


def hypervolume(points: Points) -> float:
    """Return the area between the front and the reference point (exact in the plane)."""
    area, height = 0.0, REFERENCE
    for x, y in front(points):
        if x < REFERENCE and y < height:
            area += (REFERENCE - x) * (height - y)
            height = y
    return area


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation, ends and count."""
    mean, deviation = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean, "std": deviation, "min": min(values), "max": max(values), "n": len(values)}


if __name__ == "__main__":
    main()

"""How good a front does each strategy find, with the settings it ships with?

`python benchmarks/search_quality.py` searches NAS-Bench-Macro, a table of 6,561 architectures (8 genes of 3
choices; error in % and MFLOPs, each scaled to (x - min) / (hi - min), where hi is 20 % of error and the
largest FLOPs; Su et al., arXiv 2103.11922), from random draws on, with neither score known beforehand.
`... --run runs/llama_like` searches a supernet of ours for loss and size_mb, from the first population of
`search.py` and with sizes known beforehand, as there. Both ask in the batches of `conf/search.yaml`, and every
genome asked for counts.

A front is worth its hypervolume to (1.1, 1.1), as a fraction of the exact front's. On the supernet, where none
is known, the fraction is that of the union of all fronts; there min is the union's, hi the loss of the smallest
net that keeps its layers, and the bytes of the largest net.

Writes docs/results/search_quality.json; a call replaces its own section and keeps the other's. Losses are
kept in cache/search_quality/, so a call that was interrupted goes on where it was.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, compose, record

from search.candidate import Candidate, Proposal
from search.population import first_population
from search.strategies import shipped
from supernet.cli import progress, typed_command
from supernet.files import read_json
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
    parser.add_argument("--run", type=Path, help="search this supernet instead of the table")
    parser.add_argument("--strategies", nargs="+", help="default: all with the table, some with a supernet")
    parser.add_argument("--seeds", type=int, help="default: 20 with the table, 5 with a supernet")
    parser.add_argument("--evaluations", type=int, help="default: 400 with the table, 500 with a supernet")
    parser.add_argument("--sequences", type=int, default=16, help="of the search split, per loss")
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.run is None:
        if not arguments.table.exists():
            raise SystemExit(f"error: {arguments.table} is not there; --table=FILE names NAS-Bench-Macro's file")
        section = {"nasbench_macro": search_table(arguments)}
    else:
        section = {"supernet": search_supernet(arguments)}
    path = RESULTS / f"{NAME}.json"
    kept = read_json(path) if path.exists() else {}
    record(NAME, {key: kept[key] for key in ("nasbench_macro", "supernet") if key in kept} | section)


def search_table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the section of NAS-Bench-Macro."""
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
    names = arguments.strategies or STRATEGIES
    seeds, evaluations = arguments.seeds or 20, arguments.evaluations or 400
    at = [n for n in (100, 200, 400) if n <= evaluations]
    rows = {}
    with progress(total=len(names) * seeds, unit="search", desc="table") as bar:
        for name in names:
            values: dict[str, list[float]] = {f"hv_{n}": [] for n in at}
            for seed in range(seeds):
                asked = play(name, space, scores.__getitem__, ["error", "mflops"], evaluations, seed, ())
                for n in at:
                    values[f"hv_{n}"].append(hypervolume(scaled(asked[:n])) / exact)
                bar.update()
            rows[name] = {key: summary(column) for key, column in values.items()}
    return {
        "command": typed_command(),
        "goal": "default: hv_200 at least 0.970, hv_400 at least 0.993",
        "seeds": seeds,
        "default": {"strategy": default(), **rows.get(default(), {})},
        "strategies": rows,
    }


def search_supernet(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the section of a supernet."""
    from supernet.run import load_supernet

    trained = load_supernet(arguments.run)
    space = trained.supernet.space
    names = arguments.strategies or list(dict.fromkeys(["random", PYMOO, "nsga2", default()]))
    seeds, evaluations = arguments.seeds or 5, arguments.evaluations or 500
    settings = compose("search", "run=none").first_population
    objectives = ["loss", "size_mb"]
    asked: dict[str, list[list[Genome]]] = {name: [] for name in names}
    with cached_losses(trained, arguments) as scores:
        for seed in range(seeds):
            first = first_population(space, trained.gates, lambda genome: True, evaluations, seed, **settings)
            for name in names:
                asked[name].append(play(name, space, scores, objectives, evaluations, seed, first, scores.known_size))
                print(f"{name}, seed {seed}: {len(set(asked[name][-1]))} genomes", flush=True)
        points = {g: tuple(scores(g)[n] for n in objectives) for runs in asked.values() for run in runs for g in run}
        high = np.array([scores(space.smallest)["loss"], scores(space.largest)["size_mb"]])
    low = np.min(list(points.values()), 0)

    def value(genomes: Sequence[Genome]) -> float:
        return hypervolume([tuple((np.array(points[g]) - low) / (high - low)) for g in genomes])

    whole = value(list(points))
    at = [n for n in (100, 200, 500) if n <= evaluations] or [evaluations]
    rows = {
        name: {f"hv_{n}": summary([value(run[:n]) / whole for run in runs]) for n in at} for name, runs in asked.items()
    }
    return {
        "command": typed_command(),
        "run": arguments.run.name,
        "sequences": arguments.sequences,
        "seeds": seeds,
        "reference": dict(zip(objectives, (low + REFERENCE * (high - low)).tolist(), strict=True)),
        "union_members": len(front(list(points.values()))),  # type: ignore[arg-type]
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
    first: Sequence[Proposal],
    known: Scores | None = None,
) -> list[Genome]:
    """Return what a strategy asks for, in order."""
    if name == PYMOO:
        return play_pymoo(space, scores, objectives, evaluations, seed, first)
    batch = int(compose("search", "run=none").batch)
    strategy = shipped(name)(space, objectives, first, seed, known=known)
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


class Losses:
    """Loss and size of genomes; losses are kept in a file, a line each."""

    def __init__(self, path: Path, evaluator: Any) -> None:
        self.evaluator = evaluator
        path.parent.mkdir(parents=True, exist_ok=True)
        self.losses = {tuple(genome): loss for genome, loss in _whole_lines(path)}
        self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Losses":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __call__(self, genome: Genome) -> dict[str, float]:
        """Return the scores of a genome, by evaluation if they are not known."""
        if genome not in self.losses:
            self.losses[genome] = float(self.evaluator.evaluation(genome).quality[0])
            self.file.write(json.dumps([genome, self.losses[genome]]) + "\n")
            self.file.flush()
        return {"loss": self.losses[genome], **self.known_size(genome)}

    def known_size(self, genome: Genome) -> dict[str, float]:
        """Return the score that is known without evaluation, as it is in `search.py`."""
        return {"size_mb": float(self.evaluator.evaluation(genome).size_mb)}


def cached_losses(trained: Any, arguments: argparse.Namespace) -> Losses:
    """Return the scores of a supernet's genomes, with what earlier calls with the same weights and tokens found."""
    from search.evaluation import Evaluator

    data = trained.tokens()
    rows = data.evaluation_batch("valid", arguments.sequences, int(data.config["sequence_length"]))
    weights = (trained.folder / "supernet" / "model.safetensors").read_bytes()
    key = hashlib.sha256(weights + rows.numpy().tobytes()).hexdigest()[:16]
    evaluator = Evaluator(trained.supernet, rows, arguments.batch_size)
    return Losses(ROOT / "cache" / NAME / f"{key}.jsonl", evaluator)


def _whole_lines(path: Path) -> Iterator[tuple[list[int], float]]:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # a kill tore off the last line
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        genome, loss = json.loads(line)
        yield genome, loss


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

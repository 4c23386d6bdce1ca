"""What is each part of the search worth, on a trained supernet?

`python benchmarks/search_parts.py --run runs/llama_like` makes the searches of VARIANTS, several seeds of each, for
divergence and size, with the settings that search.py ships with but for the number of sequences that candidates are
scored on: every genome asked for counts, the first population included. Beside them stands pymoo's NSGA-II from the
same first population. A front is worth its hypervolume as a fraction of that of all fronts together, where 0
is the least and 1 the smallest net's divergence and the largest net's bytes, to (1.1, 1.1). Beside it is the least
divergence within some sizes, in nats.

What was found is kept in runs/NAME/search/parts_*, so a call that was interrupted, or has more seeds, goes on.
Writes docs/results/search_parts.json and .md.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, compose, record, recorded
from search_quality import PYMOO, Points, front, hypervolume, play_pymoo, summary

from search.loop import evolve, first_proposals
from search.profile import SENSITIVITY
from search.session import Search, opened
from supernet.files import read_json, write_json, write_text
from supernet.formats import MB

NAME = "search_parts"
OBJECTIVES = ["divergence", "size_mb"]
GATES = "first_population.gate_samples=6"
VARIANTS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "gates as seeds, too": (GATES,),
    "gates as seeds, mutations follow sensitivity": (GATES, "evolution.bias=1"),
    "gates as seeds, no sensitivities": (GATES, "first_population.sensitivity=0"),
    "neither gates nor sensitivities as seeds": ("first_population.sensitivity=0",),
    "nsga2, all seeds": (GATES, "evolution=nsga2"),
    "random, all seeds": (GATES, "evolution=random"),
}


def main() -> None:
    """Search, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "llama_like")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--eval-sequences", type=int, default=16)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.14, 0.17, 0.2, 0.237, 0.285])
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "seeds"}
    settings |= {"run": arguments.run.name, "variants": {name: list(changes) for name, changes in VARIANTS.items()}}
    recorded(NAME, settings)  # what may not be written had better not be run
    fronts: dict[str, list[Points]] = {name: [] for name in (*VARIANTS, PYMOO)}
    for seed in range(arguments.seeds):
        for name in fronts:
            fronts[name].append(points(arguments, name, seed))
    with opened(search_config(arguments, "as shipped", 0)) as search:
        space, supernet = search.scorer.trained.supernet.space, search.scorer.trained.supernet
        high = np.array([search.scorer.score((space.smallest, None))["divergence"], _size(search, space.largest)])
        f16 = float(supernet.n_bytes(space.decode(space.with_format(space.largest, "F16")))) / MB
    rows = compare(fronts, high, [share * f16 for share in arguments.shares], arguments.evaluations)
    record(NAME, {"settings": settings, "seeds": arguments.seeds, "largest_f16_mb": f16, "variants": rows})
    write_text(RESULTS / f"{NAME}.md", markdown(rows, arguments.shares))


def search_config(arguments: argparse.Namespace, name: str, seed: int) -> Any:
    """Return the configuration of a search."""
    kept = f"parts_{''.join(c if c.isalnum() else '_' for c in name)}_{seed}"
    fixed = [f"run={arguments.run}", f"search={kept}", f"seed={seed}", "n_threads=1", "objective=[divergence,size_mb]"]
    sizes = [f"evaluations={arguments.evaluations}", f"eval_sequences={arguments.eval_sequences}"]
    return compose("search", *fixed, *sizes, *VARIANTS.get(name, (GATES,)))


def points(arguments: argparse.Namespace, name: str, seed: int) -> Points:
    """Return divergence and size of what a search asks for, in order."""
    print(f"{name}, seed {seed}", flush=True)
    with opened(search_config(arguments, name, seed)) as search:
        _profile(search, arguments.run / "search" / f"parts_{SENSITIVITY}")
        if name != PYMOO:
            return [(c.scores["divergence"], c.scores["size_mb"]) for c in evolve(search) if c.whole]
        return _pymoo(search, search.folder / "points.json")


def _pymoo(search: Search, kept: Path) -> Points:
    """Return what pymoo's NSGA-II asks for from the first population on, kept in a file."""
    if not kept.exists():
        config, scorer = search.config, search.scorer
        space, found = scorer.trained.supernet.space, []

        def scores(genome: tuple[int, ...]) -> dict[str, float]:
            found.append(scorer.score((genome, None)))
            return found[-1]

        play_pymoo(space, scores, OBJECTIVES, config.evaluations, config.seed, first_proposals(search))
        write_json(kept, {"asked": found[: config.evaluations]})
    return [(scored["divergence"], scored["size_mb"]) for scored in read_json(kept)["asked"]]


def _profile(search: Search, shared: Path) -> None:
    """Measure the sensitivities once: they are those of the run, whatever is searched for."""
    own = search.folder / SENSITIVITY
    if shared.exists() and not own.exists():
        shutil.copy(shared, own)
    search.profile_sensitivity()
    if not shared.exists():
        shutil.copy(own, shared)


def _size(search: Search, genome: tuple[int, ...]) -> float:
    return search.scorer.known(genome)["size_mb"]


def compare(
    fronts: dict[str, list[Points]], high: np.ndarray, sizes_mb: Sequence[float], evaluations: int
) -> dict[str, Any]:
    """Return by variant the hypervolumes after some evaluations, and the least divergence within each size.

    Args:
        fronts: by variant and seed the points asked for, (divergence, MB), in order.
        high: the point that counts as (1, 1).
        sizes_mb: for the least divergence; None where a seed found no net as small.
        evaluations: how many there were.
    """
    low = np.min([p for found in fronts.values() for run in found for p in run], 0)

    def value(found: Points) -> float:
        return hypervolume([tuple((np.array(p) - low) / (high - low)) for p in front(found)])

    whole = value([p for found in fronts.values() for run in found for p in run])
    at = sorted({n for n in (100, 200, evaluations) if n <= evaluations})
    rows: dict[str, Any] = {}
    for name, found in fronts.items():
        least = [[min((d for d, mb in run if mb <= size), default=None) for run in found] for size in sizes_mb]
        best = [summary([d for d in column if d is not None]) if None not in column else None for column in least]
        rows[name] = {f"hv_{n}": summary([value(run[:n]) / whole for run in found]) for n in at} | {"best": best}
    return rows


def markdown(rows: dict[str, Any], shares: Sequence[float]) -> str:
    """Return the table of docs/results/search_parts.md."""
    at = [key for key in next(iter(rows.values())) if key.startswith("hv_")]
    heads = ["search", *(f"hypervolume at {key[3:]}" for key in at), *(f"{100 * share:g} %" for share in shares)]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, row in rows.items():
        cells = [f"{row[key]['mean']:.4f} ± {row[key]['std']:.4f}" for key in at]
        cells += [f"{b['mean']:.4f} ± {b['std']:.4f}" if b else "not reached" for b in row["best"]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

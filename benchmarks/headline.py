"""Is choosing structure and formats together worth it? Every simpler way, at equal training FLOPs and bytes.

`python benchmarks/headline.py --seeds 0` trains, searches, fine-tunes and ships in all ways that METHODS names, and
writes what came of it at each budget to docs/results/headline.json (and .md, .png). Budgets are shares of the largest
net's bytes in F16. Everything goes through `train.py` and `search.py`, which go on where they stopped, and so does
this: what is finished is read, not run, and other seeds that were recorded stay (with other settings: --name another).

Equal FLOPs: all methods go on from the same run of the largest net alone, at a constant learning rate. From there the
rate falls: for the joint supernet over `--alone-steps` and `--joint-steps`; for the largest net trained alone, which
all methods without a supernet begin with, over the steps that cost the same; for the supernet for structure alone over
as many as the joint one's. Gates are off: ablation.py finds nothing that they give the search beside sensitivities.
Each net that ships is fine-tuned with the same FLOPs, smaller nets for more steps. All searches minimize the same
objectives. So both shares are equal: the first is paid once for all budgets (`costs[].shared`), the second for each
(`costs[].each`); `costs[].divided` is one net's part of both.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headline_table
from common import ROOT, compose, record, recorded
from headline_rivals import KINDS, rivals

from supernet.files import read_json
from supernet.formats import MB
from supernet.run import load_supernet

BUDGETS = (14.0, 17.0, 20.0, 23.7, 28.5, 35.0, 55.0)  # per cent of the largest net's bytes in F16


@dataclass(frozen=True)
class Method:
    """One way to a net of a given size: which run it starts from, and the settings of its search."""

    run: str
    settings: tuple[str, ...] = ()


METHODS = {
    "joint": Method("joint"),
    "formats only": Method("alone", ("evolution=formats", "first_population=sensitivity")),
    "sequential": Method(
        "structure",
        (
            "evolution=sequential",
            "evolution.structures=12",
            "first_population.gate_samples=0",
            "first_population.sensitivity=0",
        ),
    ),
    "structure only": Method("structure", ("evolution=structure",)),
}
NO_GATES = "gates.budgets_mb=[]"
RIVALS = ("uniform QAT", "uniform PTQ", "llama.cpp")  # of the largest net trained alone, see headline_rivals.py


def main() -> None:
    """Run what is missing, collect, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_settings(parser)
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *RIVALS], choices=[*METHODS, *RIVALS])
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of train.py")
    parser.add_argument("--name", default="headline", help="of the runs and of docs/results/NAME.json")
    parser.set_defaults(trunk=None)
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key not in ("seeds", "workers")}
    settings["searches"] = {name: list(method.settings) for name, method in METHODS.items()}
    recorded(arguments.name, settings)  # what may not be written had better not be run
    done = [Grid(arguments, seed) for seed in sorted(set(arguments.seeds))]
    for grid in done:
        grid.run()
    before, again = recorded(arguments.name, settings), {grid.seed for grid in done}
    rows, costs = ([each for each in before.get(key, []) if each["seed"] not in again] for key in ("rows", "costs"))
    rows += [row for grid in done for row in grid.rows()]
    costs += [grid.costs() for grid in done if "joint" in grid.methods]
    content = headline_table.summary(rows, costs, arguments.budgets)
    times = before.get("times", {})  # of headline_times.py; a seed that runs again has others
    kept = {"times": times} if times and not again & {*times["seeds"]} else {}
    record(arguments.name, {"settings": settings, "seeds": sorted({row["seed"] for row in rows}), **kept, **content})
    headline_table.write(arguments.name, content)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add what a grid's training and searches depend on."""
    parser.add_argument("--experiment", default="llama_like")
    parser.add_argument("--trunk-steps", type=int, default=1600, help="of the largest net, before methods part")
    parser.add_argument("--alone-steps", type=int, default=614, help="from there, before the space opens")
    parser.add_argument("--joint-steps", type=int, default=12)
    parser.add_argument("--tune-steps", type=int, default=150, help="of the largest net; smaller nets take more")
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--objective", default="divergence", help="of all searches, beside size_mb")
    parser.add_argument("--eval-sequences", type=int, default=16, help="that each candidate is scored on")
    parser.add_argument(
        "--workers", type=int, default=2, help="of a search, a thread each; 1, with OMP_NUM_THREADS=1, for two at once"
    )


class Grid:
    """All cells of one seed.

    Args:
        arguments: of `main`; `trunk` is the name of the grid whose trunk to go on from, None: its own.
        seed: of everything.
    """

    def __init__(self, arguments: argparse.Namespace, seed: int) -> None:
        self.arguments, self.seed = arguments, seed
        self.trunk = ROOT / "runs" / f"{arguments.trunk or arguments.name}_trunk_s{seed}"

    def folder(self, run: str) -> Path:
        """Return the directory of a run."""
        return ROOT / "runs" / f"{self.arguments.name}_{run}_s{self.seed}"

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that are searched for."""
        return {name: method for name, method in METHODS.items() if name in self.arguments.methods}

    def run(self) -> None:
        """Run what is missing."""
        self.train_trunk()
        self.train_supernet()
        self._train_alone("alone", 1.0)
        self._search("joint", "alone")
        self.rivals()
        if any(method.run == "structure" for method in self.methods.values()):
            self._branch("structure", *self._steps, "schedule.vary=[width,switch]")
            self._search("structure")
        self._train_alone("shorter", 0.5)  # a second point of loss against FLOPs, for the cost of the whole

    def _search(self, *runs: str) -> None:
        for name, method in self.methods.items():
            if method.run in runs:
                run_script("search.py", *self.search_settings(name, method))

    @property
    def _steps(self) -> tuple[str, ...]:
        a = self.arguments
        return f"schedule.alone_steps={a.alone_steps}", f"schedule.joint_steps={a.joint_steps}", NO_GATES

    def train_trunk(self) -> None:
        """Train the run that all others go on from, unless it is another grid's."""
        if self.arguments.trunk is None:
            self._train(self.trunk, *_alone(self.arguments.trunk_steps), "schedule.decay=0")

    def train_supernet(self) -> None:
        """Train the joint supernet, from the trunk on."""
        self._branch("joint", *self._steps)

    def _train(self, folder: Path, *settings: str) -> None:
        a = self.arguments
        run_script(
            "train.py", f"+experiment={a.experiment}", f"name={folder.name}", f"seed={self.seed}", *settings, *a.train
        )

    def _branch(self, run: str, *settings: str) -> None:
        trunk = self.trunk.relative_to(ROOT)
        self._train(self.folder(run), f"model.init={trunk}", "schedule.warmup_steps=20", "schedule.decay=1", *settings)

    def _train_alone(self, run: str, share: float) -> None:
        self._branch(run, *_alone(round(share * self.alone_steps)))

    @property
    def alone_steps(self) -> float:
        """Steps of the largest net alone that take the FLOPs of the supernet, from the trunk on."""
        trunk, joint = (read_json(run / "supernet" / "summary.json") for run in (self.trunk, self.folder("joint")))
        return float(joint["flops"] / trunk["flops"] * trunk["steps"])

    @property
    def sizes_mb(self) -> list[float]:
        """The budgets in MB."""
        supernet = load_supernet(self.folder("joint")).supernet
        whole = supernet.n_bytes(supernet.space.decode(supernet.space.largest)) / MB
        return [round(whole * share / 100, 6) for share in self.arguments.budgets]

    def search_settings(self, name: str, method: Method) -> list[str]:
        """Return the settings of a method's search."""
        a = self.arguments
        return [
            f"run={self.folder(method.run).relative_to(ROOT)}",
            f"search={_slug(name)}",
            f"seed={self.seed}",
            f"evaluations={a.evaluations}",
            f"finalist_sizes_mb={self.sizes_mb}".replace(" ", ""),
            f"finetune.steps={a.tune_steps}",
            "finetune.equal_flops=true",
            f"budget.size_mb={max(self.sizes_mb)}",
            "finalist_share=0.9",  # of the smallest size: what is smaller is of no use
            f"objective=[{a.objective},size_mb]",
            f"eval_sequences={a.eval_sequences}",
            "baselines=false",
            "n_measured=1",
            f"workers={a.workers}",
            "n_threads=1",
            *method.settings,
        ]

    def rivals(self) -> list[dict[str, Any]]:
        """Return the nets that nothing is searched for, in all sizes they come in, and the one in F16."""
        wanted = [name for name in RIVALS if name in self.arguments.methods]
        quantizer = f"targets.llama_cpp.quantizer=[{','.join(KINDS)}]"
        settings = self.search_settings("uniform", Method("alone", ("evolution=uniform", quantizer)))
        return rivals(compose("search", *settings), self.folder("alone") / "search" / "uniform", wanted)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each method and budget; its net is the best, on `valid`, that is no larger."""
        entries = {name: self._finalists(name, method) for name, method in self.methods.items()}
        for entry in self.rivals():
            entries.setdefault(entry["method"], []).append(entry)
        (reference,) = entries.pop("F16")
        rows = []
        for method, nets in entries.items():
            for share, size in zip(self.arguments.budgets, self.sizes_mb, strict=True):
                within = [net for net in nets if net["bytes"] <= size * MB + 0.5]
                best = min(within, key=lambda net: net["selected_by"], default=None)
                cell = headline_table.cell(best, reference)
                rows.append({"method": method, "budget": share, "seed": self.seed, **cell})
        whole = headline_table.cell(reference, reference)
        return [*rows, {"method": "F16", "budget": 100.0, "seed": self.seed, **whole}]

    def _finalists(self, name: str, method: Method) -> list[dict[str, Any]]:
        path = self.folder(method.run) / "search" / _slug(name) / "finalists.json"
        return [headline_table.net(name, e) for e in read_json(path)["targets"]["llama_cpp"]["finalists"]]

    def costs(self) -> dict[str, Any]:
        """Return the training FLOPs of the shared part and of each net, and what the search cost beside."""
        alone = [self.folder(run) for run in ("alone", "shorter")]
        return headline_table.costs(self.folder("joint"), alone, self.folder("structure"), _slug("joint"), self.seed)


def _alone(steps: int) -> tuple[str, ...]:
    return f"schedule.alone_steps={steps}", "schedule.joint_steps=0", NO_GATES


def _slug(name: str) -> str:
    return name.replace(" ", "_")


def run_script(script: str, *settings: str) -> None:
    """Run a script; what is finished says so and ends."""
    subprocess.run([sys.executable, script, *settings], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()

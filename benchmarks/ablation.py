"""What is each part of the joint method worth? Each is removed in turn, at one budget of headline.py.

`python benchmarks/ablation.py --seeds 0` goes on from headline.py's trunk (or trains it), with gates and a joint phase
long enough for its parts to matter, and trains again for the parts that training has, searches again for those that
the search has. Same FLOPs, same evaluations, one net fine-tuned for the budget; writes docs/results/ablation.json, .md
and .png. Goes on where it stopped; what was recorded with other settings is not overwritten (`--name another`).
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headline_table
from common import RESULTS, ROOT, record, recorded
from headline import NO_GATES, Grid, Method, add_settings, run_script

from supernet.files import read_json, replacing


@dataclass(frozen=True)
class Change:
    """What is different: settings of train.py, which need a run of their own, and of search.py."""

    train: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


SANDWICH = (
    "schedule.largest_every=1",
    "schedule.smallest_every=4",
    "schedule.student_weight=0.5",
    "schedule.joint_steps=97",
)
HALF = ("schedule.alone_steps=524", "schedule.joint_steps=105")
HARDLY_ANY = ("schedule.alone_steps=614", "schedule.joint_steps=12", NO_GATES)
PHASE = {"alone_steps": 450, "joint_steps": 210, "gates_mb": [1.4, 2.2]}
# As many FLOPs as that phase.
COSTED = ("sandwich rule with distillation", "half of the joint phase", "hardly any joint phase")
GATE_SEEDS = "first_population.gate_samples=6"
LOW_BITS = ("Q2_K", "Q3_K", "Q4_0")
WHOLE, TRUNK = "all parts", "headline"
COMPARED = {  # how each is shown, and its unit
    "test_loss": (".4f", 1),
    "accuracy": (".2f", 100),
    "inherited_test_loss": (".4f", 1),
    "largest_valid_loss": (".4f", 1),
}
CHANGES = {
    WHOLE: Change(),
    "no gates as seeds": Change(search=("first_population.gate_samples=0",)),
    "no sensitivity seeds": Change(search=("first_population.sensitivity=0",)),
    "no gate training": Change(train=(NO_GATES,)),
    "sandwich rule with distillation": Change(train=SANDWICH),
    "no distillation in fine-tuning": Change(search=("finetune.distillation=0",)),
    "sampled nets drop blocks": Change(train=("schedule.floor.switch=0.75",)),
    "sampled nets of all widths": Change(train=("schedule.floor.width=0",)),
    "half of the joint phase": Change(train=HALF),
    "hardly any joint phase": Change(train=HARDLY_ANY),
    "no mean level first": Change(train=("schedule.spread=false",)),
    "formats opened high to low": Change(train=("schedule.inherit=0.5",)),
    "activations emulated": Change(train=("model.emulate_activations=true", "model.kv_format=F16")),
    "no order of importance": Change(train=("schedule.order=false",)),
    "scales by least squares": Change(train=tuple(f"model.scales.{name}=mse" for name in LOW_BITS)),
    "scales of 2 bits clipped": Change(train=("model.scales.Q2_K=clip",)),
    "scales learned": Change(train=tuple(f"model.scales.{name}=learned" for name in LOW_BITS)),
}


def main() -> None:
    """Run what is missing, collect, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=float, default=23.7, help="per cent of the largest net's bytes in F16")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--name", default="ablation", help="of docs/results/NAME.json")
    parser.add_argument("--gates-mb", type=float, nargs="*", help="budgets of the gates; none: no gates")
    add_settings(parser)
    parser.set_defaults(**PHASE)
    arguments = parser.parse_args()
    if _phase(arguments) != PHASE and set(COSTED) & set(arguments.changes):
        costed = ", ".join(COSTED)
        parser.error(f"{costed} are at equal FLOPs for the default steps and gates only: leave them out of --changes")
    settings = {k: v for k, v in vars(arguments).items() if k not in ("seeds", "changes", "workers", "name")}
    recorded(arguments.name, settings)  # what may not be written had better not be run
    rows = [_one(arguments, name, seed) for seed in arguments.seeds for name in arguments.changes]
    again = {(row["seed"], row["change"]) for row in rows}
    before = recorded(arguments.name, settings).get("rows", [])
    rows = [*(row for row in before if (row["seed"], row["change"]) not in again), *rows]
    effects = _effects(rows)
    record(arguments.name, {"settings": settings, "rows": rows, "effects": effects})
    with replacing(RESULTS / f"{arguments.name}.md") as temporary:
        temporary.write_text(_markdown(effects), encoding="utf-8")
    draw(effects, RESULTS / f"{arguments.name}.png")


def _one(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Return the net at the budget with one change."""
    change, slug = CHANGES[name], name.replace(" ", "_").replace("-", "_")
    options = {**vars(arguments), "methods": ["joint"], "budgets": [arguments.budget]}
    Grid(argparse.Namespace(**{**options, "name": TRUNK}, trunk=None, train=[]), seed).train_trunk()
    phase = [] if _phase(arguments) == PHASE else [arguments.alone_steps, arguments.joint_steps, *arguments.gates_mb]
    options["name"] = "_".join(map(str, ["ablation", *phase, slug if change.train else WHOLE.replace(" ", "_")]))
    whole = ["schedule.gate_every=6", f"gates.budgets_mb={arguments.gates_mb}".replace(" ", "")]
    grid = Grid(argparse.Namespace(**options, trunk=TRUNK, train=[*whole, *change.train]), seed)
    grid.train_supernet()
    search = f"ablation {slug} at {arguments.budget:g}"
    settings = grid.search_settings(search, Method("joint", (GATE_SEEDS, *change.search)))
    run_script("search.py", *settings)
    folder = ROOT / next(s for s in settings if s.startswith("run=")).removeprefix("run=")
    finalists = read_json(folder / "search" / search.replace(" ", "_") / "finalists.json")
    (entry,) = finalists["targets"]["llama_cpp"]["finalists"]
    table = read_json(folder / "supernet" / "summary.json")["table"]
    shown = headline_table.net(name, entry)
    inherited = {f"inherited_{key}": entry["inherited"][key] for key in ("valid_loss", "test_loss")}
    largest = next(line["valid_loss"] for line in table if line["name"].startswith("largest"))
    return {**shown, **inherited, "largest_valid_loss": largest, "seed": seed, "change": name}


def _phase(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(arguments, key) for key in PHASE}


def _effects(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each change, all parts first, its means over the seeds, and less those of all parts, seed by seed."""
    base = {row["seed"]: row for row in rows if row["change"] == WHOLE}
    found = []
    for change in sorted(dict.fromkeys(row["change"] for row in rows), key=lambda change: change != WHOLE):
        own = [row for row in rows if row["change"] == change]
        paired = [(row, base[row["seed"]]) for row in own if row["seed"] in base]
        means = {key: statistics.fmean(row[key] for row in own) for key in COMPARED}
        rises = {key: [row[key] - shipped[key] for row, shipped in paired] for key in COMPARED}
        found.append({"change": change, **means, "rises": rises, "seeds": len(own)})
    return found


def draw(effects: list[dict[str, Any]], path: Path) -> None:
    """Draw the rise of the test loss with each change, a bar for the mean and a dot for each seed."""
    from matplotlib.figure import Figure

    shown = [(e["change"], e["rises"]["test_loss"]) for e in effects if e["change"] != WHOLE]
    shown = [(change, rises) for change, rises in shown[::-1] if rises]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh([change for change, _ in shown], [statistics.fmean(rises) for _, rises in shown], color="C0", alpha=0.5)
    for row, (_, rises) in enumerate(shown):
        axes.scatter(rises, [row] * len(rises), s=14, color="C0")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("rise of the test loss over that with all parts, nats (right: the part helps)")
    axes.grid(axis="x", alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _markdown(effects: list[dict[str, Any]]) -> str:
    heads = ["change", "seeds", "test loss", "accuracy", "inherited test loss", "largest net, valid loss"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for e in effects:
        cells = [e["change"], str(e["seeds"])]
        for key, (shape, unit) in COMPARED.items():
            rises, shown = e["rises"][key], f"{{:{shape}}}"
            if e["change"] == WHOLE:
                cells.append(shown.format(unit * e[key]))
                continue
            cell = f"{unit * statistics.fmean(rises):+{shape}}" if rises else ""
            if len(rises) > 1:
                cell += f" ({unit * min(rises):+{shape}} to {unit * max(rises):+{shape}})"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nBut for the first line: differences to it, of the same seeds. Accuracy in %.\n"


if __name__ == "__main__":
    main()

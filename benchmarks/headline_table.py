"""What headline.py makes of the nets: cells, costs, the comparison, a table and a picture."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

from search.entries import shipped
from search.report.nets import hardest_hit
from supernet.files import read_json, replacing
from supernet.flops import subnet_flops, tuning_flops
from supernet.formats import MB
from supernet.run import load_supernet

COLUMNS = ("bytes", "test_loss", "rise", "late_loss", "hardest_hit_rise", "accuracy", "kept", "decode_ms", "ttft_ms")


def net(method: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared of an entry of finalists.json, or of one like it.

    Its quality is the better on `valid` of before and after fine-tuning, for all methods alike.
    """
    scores = shipped(entry)
    measured = entry["measured"] or {}
    runtime = entry.get("runtime_test")
    return {
        "method": method,
        "name": entry["name"],
        "bytes": round(entry["scores"]["size_mb"] * MB),
        "selected_by": scores["valid_loss"],
        "test_loss": scores["test_loss"],
        "late_loss": scores.get("late_loss"),
        "slice_losses": scores["slice_losses"],
        "accuracy": scores["test_accuracy"],
        "decode_ms": measured.get("decode_ms"),
        "ttft_ms": measured.get("ttft_ms"),
        "runtime_over_ours": math.exp(runtime["loss"] - runtime["our_loss"]) if runtime else None,
        "architecture": entry.get("architecture"),
    }


def cell(found: dict[str, Any] | None, reference: dict[str, Any]) -> dict[str, Any]:
    """Return a net's part of a row; a budget that a method cannot meet leaves it empty.

    `rise` is the test loss over the reference's, the largest net in F16 of the same seed: seeds differ by more than
    methods do. `hardest_hit` is the slice of the corpus on which it is most.
    """
    if found is None:
        return dict.fromkeys(cell(reference, reference))
    shown = {key: value for key, value in found.items() if key not in ("method", "selected_by", "slice_losses")}
    slice_name, slice_rise = hardest_hit(found["slice_losses"], reference["slice_losses"])
    return {
        **shown,
        "rise": found["test_loss"] - reference["test_loss"],
        "hardest_hit": slice_name,
        "hardest_hit_rise": slice_rise,
        "kept": found["accuracy"] / reference["accuracy"],
    }


def costs(joint: Path, alone: Sequence[Path], structure: Path, search: str, seed: int) -> dict[str, Any]:
    """Return the FLOPs of a joint run and its search, and of the largest net trained alone to the same loss.

    `shared` is the supernet, `structure` that for structure alone, where there is one, `each` the tuning of a net,
    `divided` what a net costs when all of them share the supernet; `whole` is everything, the search with it.
    `largest_over_alone` is the loss of the supernet's largest net over that of the same net trained alone for as
    many FLOPs.

    Args:
        joint: the run.
        alone: runs of the largest net alone, that of as many FLOPs first; from two of them the FLOPs to a loss are
            interpolated (or extrapolated), the logarithm of FLOPs linear in the loss.
        structure: the run of the supernet for structure alone.
        search: its name.
        seed: of both.
    """
    trained, summary = load_supernet(joint), read_json(joint / "supernet" / "summary.json")
    supernet, config = trained.supernet, trained.data["config"]
    length, folder = int(config["sequence_length"]), joint / "search" / search
    finalists = read_json(folder / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    largest = subnet_flops(supernet, supernet.space.decode(supernet.space.largest), length)
    settings = _settings(folder)
    tuning = settings["finetune"]["steps"] * settings["finetune"]["batch_size"] * tuning_flops(largest, largest)
    evaluated = sum(
        subnet_flops(supernet, supernet.space.decode(tuple(line["genome"])), length) * settings["eval_sequences"]
        for line in _journal(folder)
    )
    n_choices = sum(len(gene.choices) - 1 for gene in supernet.space)
    profiled = n_choices * settings["sensitivity"]["sequences"] * largest
    shared = _flops(joint)
    found: dict[str, Any] = {
        "seed": seed,
        "shared": shared,
        "search": evaluated + profiled,
        "each": tuning,
        "nets": len(finalists),
        "whole": shared + evaluated + profiled + len(finalists) * tuning,
        "divided": shared / max(1, len(finalists)) + tuning,
        "largest_valid_loss": summary["table"][0]["valid_loss"],
    }
    found["largest_over_alone"] = found["largest_valid_loss"] / _loss(alone[0])
    if _finished(structure):
        found["structure"] = _flops(structure)
    points = sorted((_loss(run), _flops(run)) for run in alone if _finished(run))
    if len(points) > 1:
        (low, dear), (high, cheap) = points[0], points[-1]
        slope = (math.log(cheap) - math.log(dear)) / (high - low)
        same = math.exp(math.log(dear) + slope * (found["largest_valid_loss"] - low))
        found |= {"alone_to_the_same_loss": same, "cost_ratio": found["whole"] / same, "alone": points}
    return found


def _finished(run: Path) -> bool:
    return (run / "supernet" / "summary.json").exists()


def _loss(run: Path) -> float:
    return float(read_json(run / "supernet" / "summary.json")["table"][0]["valid_loss"])


def _flops(run: Path) -> float:
    summary = read_json(run / "supernet" / "summary.json")
    return float(summary["flops"] + summary["flops_before"])


def _settings(folder: Path) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


def _journal(folder: Path) -> Iterable[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(rows: list[dict[str, Any]], costs: list[dict[str, Any]], budgets: Sequence[float]) -> dict[str, Any]:
    """Return rows, costs, and of each budget how joint compares with the others, by test loss and by accuracy kept."""
    compared = [
        {
            "budget": budget,
            "kept": statistics.fmean(kept.values()),
            **_against(rows, budget, "test_loss", -1),
            "by_accuracy": _against(rows, budget, "kept", 1),
            "seeds": len(kept),
        }
        for budget in budgets
        if (kept := _column(rows, "joint", budget, "kept"))
    ]
    ratios = [c["cost_ratio"] for c in costs if "cost_ratio" in c]
    parity = [abs(row["runtime_over_ours"] - 1) for row in rows if row.get("runtime_over_ours")]
    return {
        "rows": rows,
        "compared": compared,
        "costs": costs,
        "cost_ratio": statistics.fmean(ratios) if ratios else None,
        "largest_over_alone": statistics.fmean(c["largest_over_alone"] for c in costs) if costs else None,
        "largest_perplexity_gap": max(parity, default=None),
        "goal": "joint no worse everywhere, clear at 28.5 % and below; 98.5 % kept at 23.7 %; cost_ratio at most 3;"
        " largest_over_alone at most 1.02; perplexity gap at most 0.005",
    }


def _against(rows: list[dict[str, Any]], budget: float, key: str, sign: int) -> dict[str, Any]:
    """Return how joint compares at a budget with the method that is the best of the others in the mean.

    `gain` is by how much joint is better, paired by seed, `gains` that of each seed; `clear` says that the mean exceeds
    two standard errors over the seeds (unknown with one). Of three seeds that is little: Student's t asks for 4.3
    where chance is to be 1 in 20.

    Args:
        rows: of all methods and seeds.
        budget: the cells'.
        key: what is compared.
        sign: 1 where more is better, -1 where less is.
    """
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] not in ("F16", "joint"))
    reached = {method: cells for method in methods if (cells := _column(rows, method, budget, key))}
    rival = max(reached, key=lambda method: sign * statistics.fmean(reached[method].values()), default=None)
    joint, others = _column(rows, "joint", budget, key), reached[rival] if rival else {}
    values = [sign * (joint[seed] - others[seed]) for seed in joint if seed in others]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {
        "rival": rival,
        "gain": statistics.fmean(values) if values else None,
        "gains": values,
        "standard_error": error,
        "clear": statistics.fmean(values) > 2 * error if error is not None else None,
    }


def _column(rows: list[dict[str, Any]], method: str, budget: float, key: str) -> dict[int, float]:
    """Return seed -> value of the reachable cells."""
    chosen = [r for r in rows if r["method"] == method and r["budget"] == budget and r[key] is not None]
    return {r["seed"]: r[key] for r in chosen}


def write(name: str, content: dict[str, Any]) -> None:
    """Write docs/results/NAME.md and .png."""
    with replacing(RESULTS / f"{name}.md") as temporary:
        temporary.write_text(markdown(content), encoding="utf-8")
    draw(content, RESULTS / f"{name}.png")


def markdown(content: dict[str, Any]) -> str:
    """Return a line for each method and budget, means over the seeds, and a table of what joint cost in each."""
    rows = content["rows"]
    heads = [
        "budget",
        "method",
        "MB",
        "test loss",
        "over F16",
        "late",
        "hardest hit slice",
        "accuracy",
        "kept",
        "decode ms",
        "TTFT ms",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows if row["budget"] == budget):
            columns = {key: list(_column(rows, method, budget, key).values()) for key in COLUMNS}
            if not columns["test_loss"]:
                lines.append(f"| {budget:g} % | {method} | not reached |" + " |" * (len(heads) - 3))
                continue
            shown = [f"{budget:g} %", method, _cell([v / MB for v in columns["bytes"]], "{:.3f}")]
            shown += [_cell(columns[key], "{:.4f}") for key in COLUMNS[1:5]]
            shown += [_cell([100 * v for v in columns[key]], "{:.2f} %") for key in ("accuracy", "kept")]
            shown += [_cell(columns[key], "{:.3f}") for key in ("decode_ms", "ttft_ms")]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join([*lines, "", *_cost_lines(content["costs"])]) + "\n"


def _cost_lines(costs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each seed and, of several, one for their mean."""
    petaflops = {
        "supernet, PFLOPs": "shared",
        "structure's": "structure",
        "search": "search",
        "each net's tuning": "each",
        "a net's part of both": "divided",
        "all": "whole",
    }
    heads = ["seed", *petaflops, "all / alone to the same loss", "largest net's loss / alone"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    groups = {str(cost["seed"]): [cost] for cost in costs} | ({"mean": [*costs]} if len(costs) > 1 else {})
    for name, group in groups.items():
        parts = [_cell([c[key] / 1e15 for c in group if key in c], "{:.3f}") for key in petaflops.values()]
        parts.append(_cell([c["cost_ratio"] for c in group if "cost_ratio" in c], "{:.2f}"))
        parts.append(_cell([c["largest_over_alone"] for c in group], "{:.4f}"))
        lines.append(f"| {' | '.join([name, *parts])} |")
    return lines


def _cell(values: Sequence[float], shape: str) -> str:
    if not values:
        return ""
    spread = f" ± {shape.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return shape.format(statistics.fmean(values)) + spread


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the rise of the test loss and the accuracy lost over bytes, a line for each method, a dot for each seed.

    Losses span three decades and may be below F16's: axes are logarithmic but for a linear part about 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    rows = [row for row in content["rows"] if row["test_loss"] is not None and row["method"] != "F16"]
    rows = [{**row, "lost": 100 * (1 - row["kept"])} for row in rows]
    panels = (("rise", "test loss over F16, nats", 0.002), ("lost", "accuracy lost, % of that of F16", 0.2))
    for axes, (key, label, linear) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = [row for row in rows if row["method"] == method]
            color = f"C{number}"
            axes.scatter([r["budget"] for r in own], [r[key] for r in own], s=12, color=color)
            budgets = sorted({r["budget"] for r in own})
            means = [statistics.fmean(_column(own, method, b, key).values()) for b in budgets]
            axes.plot(budgets, means, color=color, label=method, linewidth=2.2 if method == "joint" else 1.2)
        axes.set_xscale("log")
        axes.set_xticks(sorted({r["budget"] for r in rows}), [f"{b:g}" for b in sorted({r["budget"] for r in rows})])
        axes.minorticks_off()
        axes.set_xlabel("bytes, % of the largest net in F16")
        axes.set_yscale("symlog", linthresh=linear)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=min(-linear / 2, 1.3 * min(row[key] for row in rows)))
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)

"""Rank correlations of predictors of a loss with the loss, within bins of equal size: numbers, tables, picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PREDICTORS = {
    "within_bins": "inherited loss",
    "tuned": "inherited, briefly fine-tuned",
    "params_only": "number of weights",
    "bytes_only": "number of bytes",
}
LOSSES = {"within_bins": "inherited", "tuned": "tuned"}  # predictors that know a supernet: the rows' key


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation, ends and count."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values), "n": len(values)}


def correlate(predicted: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Return the rank correlations of a predictor of the loss with the loss."""
    from scipy.stats import kendalltau, spearmanr

    return {
        "spearman": float(spearmanr(predicted, alone).statistic),
        "kendall": float(kendalltau(predicted, alone).statistic),
    }


def _correlations(
    predictor: str, chosen: Sequence[dict[str, Any]], pairs: Sequence[tuple[int, int | None]]
) -> list[dict[str, float]]:
    """Return the rank correlations for each (run, seed), None: with the mean of a net's losses over the seeds."""

    def predictions(run: int) -> list[float]:
        if predictor in LOSSES:
            return [r[LOSSES[predictor]][run] for r in chosen]
        return [-r["weights" if predictor == "params_only" else "size_mb"] for r in chosen]

    def alone(seed: int | None) -> list[float]:
        return [statistics.fmean(r["alone"]) if seed is None else r["alone"][seed] for r in chosen]

    return [correlate(predictions(run), alone(seed)) for run, seed in pairs]


def compare(rows: Sequence[dict[str, Any]], n_runs: int, n_seeds: int) -> dict[str, Any]:
    """Return the rank correlations within bins and over all, of each predictor.

    Args:
        rows: of each net its `bin`, `size_mb`, `weights`, `inherited` (and perhaps `tuned`) loss by run and loss
            `alone` by seed.
        n_runs: trained supernets.
        n_seeds: trainings of each net alone.
    """
    bins = [[r for r in rows if r["bin"] == name] for name in dict.fromkeys(r["bin"] for r in rows)]
    result: dict[str, Any] = {}
    over_all: dict[str, Any] = {}
    by_bin: list[dict[str, float]] = [{} for _ in bins]
    for predictor in _predictors(rows[0]):
        # Sizes know no supernet: they are compared once with each seed.
        runs = n_runs if predictor in LOSSES else 1
        pairs: list[tuple[int, int | None]] = [(run, seed) for run in range(runs) for seed in range(n_seeds)]
        inside = [_correlations(predictor, chosen, pairs) for chosen in bins]
        everywhere = _correlations(predictor, rows, pairs)
        result[predictor], over_all[predictor] = {}, {}
        for kind in ("spearman", "kendall"):
            by_pair = [statistics.fmean(of_bin[i][kind] for of_bin in inside) for i in range(len(pairs))]
            every = spread([c[kind] for of_bin in inside for c in of_bin])
            result[predictor][kind] = {**every, "by_pair": by_pair}
            over_all[predictor][kind] = spread([c[kind] for c in everywhere])
        if n_seeds > 1:
            of_means = [
                c for chosen in bins for c in _correlations(predictor, chosen, [(r, None) for r in range(runs)])
            ]
            result[predictor]["of_mean_loss"] = {k: spread([c[k] for c in of_means]) for k in ("spearman", "kendall")}
        for entry, of_bin in zip(by_bin, inside, strict=True):
            entry[predictor] = statistics.fmean(c["spearman"] for c in of_bin)
    result["within_bins"]["goal"] = "mean Spearman at least 0.80, far above params_only"
    result["over_all"] = over_all
    if n_seeds > 1:  # what the best predictor could reach: how well one training tells the ranks in another
        two = [(a, b) for a in range(n_seeds) for b in range(a)]
        again = [correlate([x["alone"][a] for x in c], [x["alone"][b] for x in c]) for c in bins for a, b in two]
        result["between_seeds"] = {k: spread([c[k] for c in again]) for k in ("spearman", "kendall")}
        result["ceiling"] = _ceiling(result["between_seeds"]["spearman"]["mean"], n_seeds)
    result["bins"] = [
        {
            "bin": chosen[0]["bin"],
            "size_mb": spread([r["size_mb"] for r in chosen]),
            "weights": spread([r["weights"] for r in chosen]),
            "alone": spread([statistics.fmean(r["alone"]) for r in chosen]),
            "spearman": entry,
        }
        for chosen, entry in zip(bins, by_bin, strict=True)
    ]
    return result


def _predictors(row: Mapping[str, Any]) -> list[str]:
    return [name for name in PREDICTORS if LOSSES.get(name, "alone") in row]


def _ceiling(agreement: float, n_seeds: int) -> dict[str, float]:
    """Return what one who knew the nets' expected losses would reach, from how two trainings of them agree.

    Spearman's correction for attenuation, √r, against one training; against the mean of n, by the Spearman-Brown
    formula, the root of n r / (1 + (n - 1) r).
    """
    r = max(0.0, agreement)
    return {"one": r**0.5, "mean": (n_seeds * r / (1 + (n_seeds - 1) * r)) ** 0.5}


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of docs/results/ranking.md."""

    def cell(s: dict[str, Any]) -> str:
        return f"{s['mean']:.2f}" + (f" ± {s['std']:.2f}" if s["std"] is not None else "")

    several = "between_seeds" in result
    heads = ["predictor", "Spearman, within bins", "Kendall τ, within bins", "Spearman, over all"]
    heads += ["Spearman with the mean over seeds, within bins"] if several else []
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    names = {key: name for key, name in PREDICTORS.items() if key in result}
    for key, name in names.items():
        shown = [*(result[key][kind] for kind in ("spearman", "kendall")), result["over_all"][key]["spearman"]]
        shown += [result[key]["of_mean_loss"]["spearman"]] if several else []
        lines.append(f"| {name} | {' | '.join(map(cell, shown))} |")
    if several:
        again = result["between_seeds"]
        lines.append(f"| the same nets, another seed | {cell(again['spearman'])} | {cell(again['kendall'])} | | |")
        best = result["ceiling"]
        lines.append(f"| most to be expected | {best['one']:.2f} | | | {best['mean']:.2f} |")
    heads = ["bin, MB", "nets", "weights, M", "loss alone", *(f"Spearman, {name}" for name in names.values())]
    lines += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for b in result["bins"]:
        millions, loss = f"{b['weights']['min'] / 1e6:.2f} to {b['weights']['max'] / 1e6:.2f}", b["alone"]
        ranks = " | ".join(f"{b['spearman'][key]:.2f}" for key in names)
        line = f"| {b['bin']:.3f} | {loss['n']} | {millions} | {loss['min']:.3f} to {loss['max']:.3f} | {ranks} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw inherited against stand-alone loss, and the rank correlations of each bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for b in result["bins"]:
        rows = [r for r in result["rows"] if r["bin"] == b["bin"]]
        points = [(statistics.fmean(r["alone"]), statistics.fmean(r["inherited"])) for r in rows]
        left.scatter(*zip(*points, strict=True), label=f"{b['bin']:.2f} MB", s=22)
    left.set(xlabel="valid loss, trained alone", ylabel="valid loss, inherited weights")
    left.legend(frameon=False)
    places = range(len(result["bins"]))
    names = {key: name for key, name in PREDICTORS.items() if key in result}
    step = 0.8 / len(names)
    for i, (key, name) in enumerate(names.items()):
        heights = [b["spearman"][key] for b in result["bins"]]
        right.bar([p + (i - (len(names) - 1) / 2) * step for p in places], heights, 0.92 * step, label=name)
    right.set(ylabel="Spearman with the loss alone", ylim=(-1, 1.35))
    right.set_xticks(places, [f"{b['bin']:.2f} MB" for b in result["bins"]])
    right.axhline(0, color="gray", linewidth=0.8)
    right.legend(frameon=False, ncols=2, fontsize=8, loc="upper center")
    figure.savefig(path, dpi=130)

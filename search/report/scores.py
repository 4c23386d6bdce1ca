"""What the scores are: names, units, which of them a target's pictures show, budgets and weights."""

import math
from collections.abc import Iterable, Mapping

from search.report.data import Entry, ReportData, lookup, number

NAMES = {
    "size_mb": "size (MB)",
    "file_mb": "file (MB)",
    "ttft_ms": "TTFT (ms)",
    "decode_ms": "decode p50 (ms/token)",
    "decode_p95_ms": "decode p95 (ms/token)",
    "peak_memory_mb": "peak memory (MB)",
    "kv_bytes_per_token": "KV cache (bytes/token)",
    "loss": "valid loss (nats/token)",
    "divergence": "divergence (nats/token)",
    "error": "valid error",
}
UNITS = {"_mb": "MB", "_ms": "ms", "_bytes": "bytes", "_tokens": "tokens", "_loss": "nats/token", "_gap": "nats/token"}
QUALITY = ("loss", "error", "divergence", "gap", "failure")  # how names of scores end that are no cost
DECADES = range(-4, 2)  # of the axis of a divergence; what is less, as the largest net's, counts as the first
DIGITS = {"kv_bytes_per_token": 0, "peak_memory_mb": 1, "ttft_ms": 1}


def base(score: str) -> str:
    """Return the name of a score without its target."""
    return score.split("@", 1)[0]


def label(score: str) -> str:
    """Return a score's name with its unit, for an axis or a column."""
    name = base(score)
    if name in NAMES:
        return NAMES[name]
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    plain = (name.removesuffix("_mb").removesuffix("_ms") if unit else name).replace("_", " ")
    return f"{plain} ({unit})" if unit else plain


def digits(score: str) -> int:
    """Return how many decimals of a score are worth reading."""
    return DIGITS.get(base(score), 3)


def words(score: str) -> tuple[str, str]:
    """Return a score's name and its unit apart, as `("decode p50", "ms/token")`."""
    name, _, unit = label(score).partition(" (")
    return name, unit.rstrip(")")


def is_quality(score: str) -> bool:
    """Say whether a score tells how good a net is; the others tell what it costs."""
    return base(score).endswith(QUALITY)


def scores_on(data: ReportData, target: str) -> list[str]:
    """Return the scores that concern a target: its own and those that are the same on all."""
    return [name for name in data.score_names if name.partition("@")[2] in ("", target)]


def on_target(data: ReportData, name: str, target: str) -> str:
    """Return the full name of a score on a target."""
    return f"{name}@{target}" if f"{name}@{target}" in scores_on(data, target) else name


def objectives(data: ReportData, target: str) -> list[str]:
    """Return the scores that the front on a target is made of."""
    known = scores_on(data, target)
    keys = list(dict.fromkeys(key.split(".")[0] for key in data.under("objectives")))
    named = [name for key in keys if (name := on_target(data, key, target)) in known]
    return named if named and len(named) == len(keys) else known or ["size_mb", "loss"]


def axes(data: ReportData, target: str) -> tuple[str, str]:
    """Return the scores of the front's picture: cost along x, quality along y."""
    names = objectives(data, target)
    # A search for one thing only has no front; another score still spreads its picture out.
    every = list(dict.fromkeys([*names, *scores_on(data, target)]))
    y = _first(["loss", *filter(is_quality, names)], names) or _first(filter(is_quality, every), every) or names[0]
    others = [name for name in names if name != y] or [name for name in every if name != y] or [y]
    return _first(["size_mb", *(n for n in others if not is_quality(n))], others) or others[0], y


def _first(wanted: Iterable[str], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def budgets(data: ReportData) -> dict[str, float]:
    """Return the hard bounds that were set, by score without target."""
    return {name: bound for name, value in data.under("budget").items() if (bound := number(value)) is not None}


def bounds(data: ReportData, target: str) -> dict[str, float]:
    """Return the hard bounds by the name of the score on a target."""
    return {on_target(data, name, target): bound for name, bound in budgets(data).items()}


def weights(data: ReportData) -> dict[str, float]:
    """Return the weights of the fitness by score without target; empty when the front decided."""
    found = {name: number(value) for name, value in data.under("evolution.fitness").items()}
    return {name: weight for name, weight in found.items() if weight is not None}


def fitness(terms: Mapping[str, float], candidate: Entry) -> float | None:
    """Return the weighted sum of a candidate's scores, None where one is missing.

    A score that each target has counts with its mean over the targets.
    """
    total = 0.0
    for name, weight in terms.items():
        values = [lookup(candidate, "scores", key) for key in candidate["scores"] if name in (key, base(key))]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        total += weight * sum(known) / len(known)
    return total


def feasible(data: ReportData, target: str) -> set[int]:
    """Return the ids of the candidates that were scored to the end and meet every budget on a target."""
    # A candidate's own mark says only that it fits some target.
    limits = bounds(data, target).items()
    fits = [c for c in data.whole if c["feasible"]]
    return {c["id"] for c in fits if all((lookup(c, "scores", name) or 0.0) <= bound for name, bound in limits)}


def position(data: ReportData, axes: tuple[str, str], entry: Entry) -> tuple[float | None, float | None]:
    """Return an entry's place in a picture over two scores."""
    x, y = (value_of(data, entry, score) for score in axes)
    return x if x is None else on_axis(axes[0], x), y if y is None else on_axis(axes[1], y)


def logarithmic(score: str) -> bool:
    """Return whether the axis of a score shows decades: the divergences of useful nets and of broken ones span many."""
    return base(score) == "divergence"


def on_axis(score: str, value: float) -> float:
    """Return where a value lies on the axis of its score: the value, or its decimal logarithm."""
    return math.log10(max(value, 10.0 ** DECADES[0])) if logarithmic(score) else value


def value_of(data: ReportData, entry: Entry, score: str) -> float | None:
    """Return an entry's score as the search saw it; of a baseline that it never met, the nearest there is."""
    # The journal's score, where there is one: finalists are judged again on more rows than the search used.
    known = lookup(data.scores_of.get(tuple(entry.get("genome") or ()), {}), score)
    known = lookup(entry, "scores", score) if known is None else known
    if known is not None:
        return known
    accuracy = lookup(entry, "inherited", "valid_accuracy")
    if base(score) == "error" and accuracy is not None:
        return 1 - accuracy
    nearest = (("inherited", f"valid_{base(score)}"), ("predicted", base(score)), ("measured", base(score)))
    return next((value for path in nearest if (value := lookup(entry, *path)) is not None), None)

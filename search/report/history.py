"""How a search went: its progress, how far its candidates came, what each operator found."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from search.report.data import Entry, ReportData
from search.report.scores import axes, feasible, fitness, position, weights


@dataclass(frozen=True)
class Progress:
    """Running results after each evaluation; None before the first feasible candidate.

    Attributes:
        best: lowest quality score of a feasible candidate so far, as it lies on its axis.
        hypervolume: dominated share of the box between the best and the worst feasible scores, on their axes.
        fitness: lowest weighted sum of a feasible candidate so far; always None without weights.
    """

    best: list[float | None]
    hypervolume: list[float | None]
    fitness: list[float | None]


def progress(data: ReportData, target: str) -> Progress:
    """Return how the best score, the hypervolume and the fitness grew over the evaluations."""
    x_name, y_name = axes(data, target)
    fits, terms = feasible(data, target), weights(data)
    points = [position(data, (x_name, y_name), c) if c["id"] in fits else (None, None) for c in data.candidates]
    sums = [fitness(terms, c) if terms and c["id"] in fits else None for c in data.candidates]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if not known:
        nothing: list[float | None] = [None] * len(points)
        return Progress(nothing, nothing, nothing)
    low, high = [tuple(extreme(p[i] for p in known) for i in (0, 1)) for extreme in (min, max)]
    box = (high[0] - low[0]) * (high[1] - low[1])
    front: list[tuple[float, float]] = []
    best: list[float | None] = []
    volume: list[float | None] = []
    for x, y in points:
        if x is not None and y is not None:
            front = _with_point(front, (x, y))
        best.append(min((p[1] for p in front), default=None))
        volume.append(_dominated_area(front, high) / box if front and box > 0 else None)
    return Progress(best, volume, _running_minimum(sums))


def _running_minimum(values: Sequence[float | None]) -> list[float | None]:
    lowest: float | None = None
    result: list[float | None] = []
    for value in values:
        if value is not None and (lowest is None or value < lowest):
            lowest = value
        result.append(lowest)
    return result


def _with_point(front: list[tuple[float, float]], point: tuple[float, float]) -> list[tuple[float, float]]:
    """Add a point to a two-dimensional front, sorted by x with falling y."""
    i = bisect_left(front, point)
    if i > 0 and front[i - 1][1] <= point[1]:
        return front
    return [*front[:i], point, *(p for p in front[i:] if p[1] < point[1])]


def _dominated_area(front: Sequence[tuple[float, float]], reference: Sequence[float]) -> float:
    ends = [x for x, _ in front[1:]] + [reference[0]]
    return sum((end - x) * (reference[1] - y) for (x, y), end in zip(front, ends, strict=True))


def end_of(candidate: Entry) -> str:
    """Return how far a candidate came: `scored`, `failed`, or the hurdle that stopped it."""
    stopped = candidate["stopped"]
    if stopped is None:
        return "scored"
    return "failed" if str(stopped).startswith("failed") else str(stopped)


def ends(candidates: Sequence[Entry]) -> list[str]:
    """Return the ways in which candidates were stopped: the hurdles in order, then `failed`."""
    found = {end_of(c) for c in candidates} - {"scored"}
    return sorted(found, key=lambda end: (end == "failed", len(end), end))


def failures(candidates: Sequence[Entry]) -> list[tuple[str, int]]:
    """Return the reasons of failed candidates, the most frequent first."""
    return Counter(str(c["stopped"]) for c in candidates if end_of(c) == "failed").most_common()


def operator_counts(data: ReportData) -> list[tuple[str, Counter[str]]]:
    """Return per operator how many candidates were `evaluated`, are `feasible`, on the `front`, and each end.

    Those that brought most to the front come first.
    """
    on_front = {entry["id"] for members in data.front.values() for entry in members}
    counts: dict[str, Counter[str]] = {}
    for c in data.candidates:
        counts.setdefault(str(c["lineage"]["operator"]), Counter()).update(
            {"evaluated": 1, end_of(c): 1, "feasible": int(c["feasible"]), "front": int(c["id"] in on_front)}
        )
    return sorted(counts.items(), key=lambda item: (-item[1]["front"], -item[1]["evaluated"], item[0]))

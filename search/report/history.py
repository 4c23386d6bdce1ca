"""How a search went: its progress, what each operator found, where a finalist comes from."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from search.report.data import Entry, ReportData, lookup


def lineage(data: ReportData, entry: Entry) -> list[Entry]:
    """Return the main line of ancestors, from the first population to `entry`.

    A child of two parents continues with the one that differs in fewer genes.
    """
    by_id = {c["id"]: c for c in data.candidates}
    line: list[Entry] = []
    current = by_id.get(entry.get("id"))
    while current is not None and current not in line:
        line.append(current)
        parents = [by_id[i] for i in current.get("lineage", {}).get("parents") or [] if i in by_id]
        genome = current["genome"]
        current = min(
            parents, key=lambda p: sum(a != b for a, b in zip(p["genome"], genome, strict=True)), default=None
        )
    return line[::-1]


def changed_genes(candidate: Entry) -> list[str]:
    """Return the genes that a candidate's operator changed."""
    return list(candidate.get("lineage", {}).get("changed") or [])


@dataclass(frozen=True)
class Progress:
    """Running results after each evaluation; None before the first feasible candidate.

    Attributes:
        best: lowest quality score of a feasible candidate so far.
        hypervolume: share of the box between the best and the worst feasible scores that is dominated so far.
    """

    best: list[float | None]
    hypervolume: list[float | None]


def progress(data: ReportData) -> Progress:
    """Return how the best score and the hypervolume grew over the evaluations."""
    x_name, y_name = data.axes
    points = [
        (lookup(c, "scores", x_name), lookup(c, "scores", y_name)) if c.get("feasible", True) else (None, None)
        for c in data.candidates
    ]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if not known:
        return Progress([None] * len(points), [None] * len(points))
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
    return Progress(best, volume)


def _with_point(front: list[tuple[float, float]], point: tuple[float, float]) -> list[tuple[float, float]]:
    """Add a point to a two-dimensional front, sorted by x with falling y."""
    i = bisect_left(front, point)
    if i > 0 and front[i - 1][1] <= point[1]:
        return front
    return [*front[:i], point, *(p for p in front[i:] if p[1] < point[1])]


def _dominated_area(front: Sequence[tuple[float, float]], reference: Sequence[float]) -> float:
    ends = [x for x, _ in front[1:]] + [reference[0]]
    return sum((end - x) * (reference[1] - y) for (x, y), end in zip(front, ends, strict=True))


def operator_counts(candidates: Iterable[Entry], front_ids: set[Any]) -> list[tuple[str, int, int, int]]:
    """Return (operator, evaluated, feasible, on a front) per operator, the most used first."""
    counts: dict[str, list[int]] = {}
    for c in candidates:
        row = counts.setdefault(str(c.get("lineage", {}).get("operator", "?")), [0, 0, 0])
        for i, hit in enumerate((True, bool(c.get("feasible", True)), c["id"] in front_ids)):
            row[i] += hit
    return sorted(((name, *row) for name, row in counts.items()), key=lambda r: (-r[3], -r[1], r[0]))  # type: ignore[misc]

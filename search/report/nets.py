"""What is known of a finalist or baseline, and which of them to compare."""

import math
from collections.abc import Mapping

from search.entries import shipped
from search.report.data import Entry, ReportData, lookup
from search.report.scores import fitness, weights


def size_of(entry: Entry) -> float | None:
    """Return a net's size in MB: as scored, else as measured."""
    scored = lookup(entry, "scores", "size_mb")
    return lookup(entry, "measured", "size_mb") if scored is None else scored


def short_name(entry: Entry) -> str:
    """Return a name that fits beside a point."""
    return str(entry.get("name", entry.get("id"))).removeprefix("finalist ").removeprefix("uniform ")


def is_original(entry: Entry) -> bool:
    """Say whether a baseline is the pretrained model that the run began with."""
    return str(entry.get("name")).startswith("original")


def uncut(data: ReportData, target: str) -> list[Entry]:
    """Return the baselines of which nothing was taken: the original first, where there is one, then the largest net."""
    baselines = data.baselines.get(target, [])
    return [*filter(is_original, baselines), *(e for e in baselines if str(e["name"]).startswith("largest"))]


def begun_with_original(entry: Entry) -> bool:
    """Say whether the fine-tuning of a net began with the original's weights, not the supernet's."""
    trial: dict[str, float] = entry.get("trial") or {}
    return bool(trial) and min(trial, key=lambda name: trial[name]) == "original"


def hardest_hit(losses: Mapping[str, float], reference: Mapping[str, float]) -> tuple[str | None, float | None]:
    """Return the slice of the corpus on which a net lost most against another, and by how much its loss rose there.

    Args:
        losses: of the net, by the slice's name.
        reference: of the other; slices that are unknown there do not count.
    """
    rises = {name: loss - reference[name] for name, loss in losses.items() if name in reference}
    return max(rises.items(), key=lambda item: item[1], default=(None, None))


def measured(entry: Entry, cost: str) -> float | None:
    """Return what the target's runtime measured."""
    return lookup(entry, "measured", cost)


def predicted(entry: Entry, cost: str) -> float | None:
    """Return what the target's hardware model predicts."""
    return lookup(entry, "predicted", cost)


def is_measured(entry: Entry) -> bool:
    """Say whether the target's runtime timed this entry."""
    return measured(entry, "decode_ms") is not None


def perplexity(loss: float | None) -> float | None:
    """Return exp(loss)."""
    return None if loss is None else math.exp(min(loss, 700))  # exp(710) is no float


def nets_of(data: ReportData, target: str) -> list[tuple[Entry, str]]:
    """Return finalists and baselines with their kind, by size."""
    both = [(e, "finalist") for e in data.finalists.get(target, [])]
    both += [(e, "baseline") for e in data.baselines.get(target, [])]
    return sorted(both, key=lambda item: size_of(item[0]) or 0)


def best_finalist(data: ReportData, target: str) -> Entry | None:
    """Return the finalist of the lowest fitness, without weights of the lowest valid loss; never by test loss."""
    terms = weights(data)
    values = [
        (fitness(terms, entry) if terms else lookup(shipped(entry), "valid_loss"), entry)
        for entry in data.finalists.get(target, [])
    ]
    known = [(value, entry) for value, entry in values if value is not None]
    return min(known, key=lambda item: item[0])[1] if known else None


def rival(data: ReportData, target: str, finalist: Entry) -> Entry | None:
    """Return the baseline nearest in size of those one would ship without a search, else of all.

    These are the uniform formats, and those without a genome: what the runtime's own quantizer makes, and the original.
    """
    size = size_of(finalist)
    sized = [e for e in data.baselines.get(target, []) if size_of(e) is not None]
    usual = [e for e in sized if str(e["name"]).startswith("uniform") or e.get("genome") is None] or sized
    return min(usual, key=lambda e: abs((size_of(e) or 0) - size), default=None) if size is not None else None

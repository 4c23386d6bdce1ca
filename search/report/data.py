"""What the report shows, read from the files of a run, and the numbers derived from it. No drawing."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search.journal import Journal
from supernet.errors import UserError
from supernet.files import read_json
from supernet.genes import SearchSpace

Entry = Mapping[str, Any]  # one candidate, front member, finalist or baseline, as its file holds it

UNITS = {"_mb": "MB", "_ms": "ms", "_bytes": "bytes", "_tokens": "tokens"}


@dataclass(frozen=True)
class ReportData:
    """Everything the report is made of.

    Attributes:
        candidates: the journal's lines, in the order of evaluation.
        front: target name -> its non-dominated candidates.
        finalists: target name -> its finalists.
        baselines: target name -> its baselines.
        gates: content of `gates.json`, empty when there were no gates.
        summary: content of the supernet's `summary.json`, empty when absent.
        metrics: column name -> values of `metrics.csv` (None where nothing was logged).
        phases: the phase of every row of `metrics.csv`.
        settings: the search's configuration, flat: dotted key -> value.
    """

    search_dir: Path
    space: SearchSpace
    candidates: tuple[Entry, ...]
    front: dict[str, list[Entry]]
    finalists: dict[str, list[Entry]]
    baselines: dict[str, list[Entry]]
    gates: Entry
    summary: Entry
    metrics: dict[str, list[float | None]]
    phases: list[str]
    settings: dict[str, Any]

    @cached_property
    def scores_of(self) -> dict[tuple[int, ...], Entry]:
        """Genome -> its scores in the journal."""
        return {tuple(c["genome"]): c["scores"] for c in self.candidates}

    @property
    def targets(self) -> list[str]:
        """Names of the targets, in the files' order."""
        return list(dict.fromkeys([*self.finalists, *self.front]))

    @property
    def axes(self) -> tuple[str, str]:
        """The objectives of the front's picture: cost along x, quality along y."""
        names = list(dict.fromkeys(name for c in self.candidates for name in c["scores"])) or [
            "size_mb",
            "loss",
        ]
        y = "loss" if "loss" in names else names[0]
        others = [name for name in names if name != y]
        x = "size_mb" if "size_mb" in others else (others or names)[0]
        return x, y

    @property
    def budget(self) -> float | None:
        """The upper bound of the cost axis, where the settings name one."""
        return number(self.settings.get(f"budget.{self.axes[0]}"))


def read_report_data(search_dir: Path) -> ReportData:
    """Read the files of a finished search and of the supernet under it.

    Raises:
        UserError: the search space, journal, front or finalists are missing, or a file is damaged.
    """
    supernet_dir = search_dir.parent.parent / "supernet"
    space = SearchSpace.from_json(read_json(supernet_dir / "space.json")["genes"])
    targets = read_json(search_dir / "finalists.json")["targets"]
    metrics, phases = _read_metrics(supernet_dir / "metrics.csv")
    return ReportData(
        search_dir=search_dir,
        space=space,
        candidates=_read_journal(search_dir / "journal.jsonl", space),
        front={name: list(members) for name, members in read_json(search_dir / "front.json")["targets"].items()},
        finalists={name: list(lists["finalists"]) for name, lists in targets.items()},
        baselines={name: list(lists.get("baselines") or []) for name, lists in targets.items()},
        gates=_read_optional(supernet_dir / "gates.json"),
        summary=_read_optional(supernet_dir / "summary.json"),
        metrics=metrics,
        phases=phases,
        settings=_read_settings(search_dir / "config.yaml"),
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_journal(path: Path, space: SearchSpace) -> tuple[Entry, ...]:
    candidates = Journal(path, space).candidates
    if not candidates:
        raise UserError(f"{path} is missing or empty: the search has not evaluated anything")
    return tuple(candidate.to_json() for candidate in candidates)


def _read_metrics(path: Path) -> tuple[dict[str, list[float | None]], list[str]]:
    if not path.exists():
        return {}, []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if _parse(row.get("step")) is not None]
    columns = [name for name in (rows[0] if rows else {}) if name and name != "phase"]
    return {name: [_parse(row[name]) for row in rows] for name in columns}, [row.get("phase") or "" for row in rows]


def _parse(text: str | None) -> float | None:
    try:
        return number(float(text or ""))
    except ValueError:
        return None


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    from omegaconf import OmegaConf

    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    return flat


def number(value: Any) -> float | None:
    """Return a finite number as it is, anything else (absent, NaN, text) as None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def lookup(entry: Entry, *path: str) -> float | None:
    """Return the number at `path` in nested mappings, None where a part of the path is absent or null."""
    value: Any = entry
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return number(value)


def label(objective: str) -> str:
    """Return an objective's name with its unit, for an axis or a column."""
    if objective.endswith("loss"):
        return f"{objective.replace('_', ' ')} (nats/token)"
    for suffix, unit in UNITS.items():
        if objective.endswith(suffix):
            return f"{objective.removesuffix(suffix).replace('_', ' ')} ({unit})"
    return objective.replace("_", " ")


def position(data: ReportData, entry: Entry) -> tuple[float | None, float | None]:
    """Return an entry's place in the front's picture; its quality is the search's score if it has one."""
    x, y = data.axes
    # The journal's score, where there is one: finalists are judged again on more rows than the search used.
    searched = data.scores_of.get(tuple(entry.get("genome") or ()), {})
    quality = lookup({**searched, **entry["scores"]}, y)
    return lookup(entry, "scores", x), lookup(entry, "inherited", f"valid_{y}") if quality is None else quality


def shipped(entry: Entry) -> Entry:
    """Return the scores of the weights that are shipped: fine-tuned if they exist, else inherited."""
    return entry.get("fine_tuned") or entry.get("inherited") or {}


def measured(entry: Entry, cost: str) -> float | None:
    """Return what the target's runtime measured, under whichever name the target gives it."""
    return lookup(entry, "measured", cost)


def is_measured(entry: Entry) -> bool:
    """Say whether the target's runtime timed this entry."""
    return measured(entry, "decode_ms") is not None


def perplexity(loss: float | None) -> float | None:
    """Return exp(loss)."""
    return None if loss is None else math.exp(min(loss, 700))  # exp(710) is no float


def best_finalist(data: ReportData, target: str) -> Entry | None:
    """Return the finalist with the lowest valid loss: choosing by test loss would overfit to test."""
    scored = [e for e in data.finalists.get(target, []) if lookup(shipped(e), "valid_loss") is not None]
    return min(scored, key=lambda e: shipped(e)["valid_loss"], default=None)


def rival(data: ReportData, target: str, finalist: Entry) -> Entry | None:
    """Return the baseline nearest in size, uniform formats first: the net one would ship without a search."""
    size = lookup(finalist, "scores", "size_mb")
    sized = [e for e in data.baselines.get(target, []) if lookup(e, "scores", "size_mb") is not None]
    uniform = [e for e in sized if str(e["name"]).startswith("uniform")] or sized
    return min(uniform, key=lambda e: abs(e["scores"]["size_mb"] - size), default=None) if size is not None else None


def thin(n_items: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices, the first and the last among them."""
    if n_items <= limit:
        return list(range(n_items))
    return sorted({round(i * (n_items - 1) / (limit - 1)) for i in range(limit)})

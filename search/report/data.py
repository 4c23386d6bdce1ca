"""What the report shows, read from the files of a run, and the numbers derived from it. No drawing."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search.journal import Journal
from search.profile import read_profile
from supernet.errors import UserError
from supernet.files import read_json
from supernet.genes import SearchSpace

Entry = Mapping[str, Any]  # one candidate, front member, finalist or baseline, as its file holds it


@dataclass(frozen=True)
class GateSet:
    """A set of gates: its budget, and what was expected of it at each recorded step.

    Attributes:
        budget: in `unit`.
        unit: MB of the net, or ms of a token.
        expected: size or time in that unit.
    """

    budget: float
    unit: str
    expected: list[float]

    @property
    def name(self) -> str:
        """The budget with its unit."""
        return f"{self.budget:g} {self.unit}"


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
        hardware: content of `hardware.json`, empty when no score needed it.
        sensitivity: content of `sensitivity.json`, empty when no profile was asked for.
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
    hardware: Entry
    sensitivity: Entry

    @cached_property
    def by_id(self) -> dict[int, Entry]:
        """Candidates by id."""
        return {c["id"]: c for c in self.candidates}

    @cached_property
    def scores_of(self) -> dict[tuple[int, ...], Entry]:
        """Genome -> its scores in the journal."""
        return {tuple(c["genome"]): c["scores"] for c in self.candidates}

    @cached_property
    def whole(self) -> list[Entry]:
        """Candidates that were scored to the end."""
        return [c for c in self.candidates if c["stopped"] is None]

    @cached_property
    def score_names(self) -> list[str]:
        """Every score that some candidate has, those of hurdles aside."""
        names = dict.fromkeys(name for c in self.whole or self.candidates for name in c["scores"])
        return [name for name in names if not name.startswith("divergence_")]

    @cached_property
    def targets(self) -> list[str]:
        """Names of the targets, in the files' order."""
        return list(dict.fromkeys([*self.finalists, *self.front]))

    @cached_property
    def gate_sets(self) -> list[GateSet]:
        """The sets of gates, in the order of their probabilities."""
        sizes, times = (self.gates.get(key) or [] for key in ("budgets_mb", "budgets_ms"))
        history = self.gates.get("history") or []
        if not history:
            return []
        sets = [GateSet(b, "MB", [record["expected_mb"][i] for record in history]) for i, b in enumerate(sizes)]
        return sets + [GateSet(b, "ms", [record["expected_ms"][i] for record in history]) for i, b in enumerate(times)]

    def under(self, prefix: str) -> dict[str, Any]:
        """Return the settings below a dotted key, by the rest of their keys."""
        start = prefix + "."
        return {key.removeprefix(start): value for key, value in self.settings.items() if key.startswith(start)}


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
        hardware=_read_optional(search_dir / "hardware.json"),
        sensitivity=_read_sensitivity(search_dir / "sensitivity.json", space),
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_sensitivity(path: Path, space: SearchSpace) -> Entry:
    return read_profile(path, space).content if path.exists() else {}


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


def thin(n_items: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices, the first and the last among them."""
    if n_items <= limit:
        return list(range(n_items))
    return sorted({round(i * (n_items - 1) / (limit - 1)) for i in range(limit)})

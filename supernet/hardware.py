"""What a subnet costs on a device: a linear model for each metric, fitted to measured subnets (probes).

A cost is a sum over what `Supernet.inventory` counts, with coefficients that are not negative: so much time
for each weight of a format, each row of its matrices, each block, each head. On nets of a few layers the
last are no detail. As costs are linear in counts whose expectation under soft choices is exact, the same
model serves the search (hard choices) and the gates (differentiable).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.formats import FORMATS, Q4_0
from supernet.genes import Genome, SearchSpace
from supernet.randomness import generator

METRICS = ("ttft_ms", "decode_ms", "decode_p95_ms", "peak_memory_mb")
MIN_PROBES = 5  # to fit at all; a few dozen give errors of a few percent
FOLDS = 10
ATTEMPTS = 20  # draws for each probe wanted; a small space may not have as many subnets


def features(metric: str, inventory: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a metric is linear in, from an inventory of hard or soft choices."""

    def count(name: str) -> Any:
        return inventory.get(name, 0.0)

    stored = [name for name in FORMATS if f"{name}.weights" in inventory]
    if metric == "peak_memory_mb":
        names = [*(f"{name}.weights" for name in stored), "kv_values", "d_model", "intermediate"]
        return {"1": 1.0, **{name: count(name) for name in names}}
    found = {"1": 1.0, **{k: count(k) for k in ("norm.weights", "attention", "mlp", "heads", "kv_values")}}
    for name in stored:
        for what in ("weights", "rows"):
            found[f"{name}.{what}"] = count(f"{name}.{what}") - count(f"lookup.{name}.{what}")
            if metric == "ttft_ms":  # what the last token alone meets is next to nothing in a prompt
                found[f"{name}.{what}"] -= count(f"once.{name}.{what}")
    if metric == "ttft_ms":
        found["once.bytes"] = sum(FORMATS[name].n_bytes(count(f"once.{name}.weights")) for name in stored)
    return found


@dataclass(frozen=True)
class Probe:
    """A subnet that was measured.

    Attributes:
        genome: of the subnet.
        inventory: what it holds.
        measured: metric -> value; None when it could not be built or run.
        reason: why not.
    """

    genome: Genome
    inventory: Mapping[str, float]
    measured: Mapping[str, float] | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "genome": list(self.genome)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Probe":
        """Rebuild a probe; raises KeyError, TypeError, ValueError or AttributeError when it is none."""
        inventory = {str(k): float(v) for k, v in content["inventory"].items()}
        measured = content["measured"]
        if measured is not None:
            measured = {metric: float(measured[metric]) for metric in METRICS if measured.get(metric) is not None}
        return cls(tuple(content["genome"]), inventory, measured, content.get("reason"))


@dataclass(frozen=True)
class HardwareModel:
    """Predicts what subnets cost on one device under the settings of one target.

    Attributes:
        coefficients: metric -> feature -> cost of one; times in ms, memory in MB.
        errors: metric -> mean absolute relative error on probes left out of the fit.
        probes: what was measured.
        settings: of the target, under which it was measured.
        device: its name.
        kv_bytes_per_value: what an entry of the key-value cache takes.
    """

    coefficients: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float]
    probes: Sequence[Probe] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    kv_bytes_per_value: float = 2.0

    @classmethod
    def fit(cls, probes: Sequence[Probe], **about: Any) -> "HardwareModel":
        """Fit every metric that all built probes have.

        Args:
            probes: measured subnets; those that were not built are left out.
            about: `settings`, `device`, `kv_bytes_per_value`.

        Raises:
            UserError: fewer than MIN_PROBES were built.
        """
        built = [probe for probe in probes if probe.measured]
        if len(built) < MIN_PROBES:
            reason = next((f": {probe.reason}" for probe in probes if probe.reason), "")
            raise UserError(f"{len(built)} of {len(probes)} probes could be measured, {MIN_PROBES} are needed{reason}")
        coefficients, errors = {}, {}
        for metric in METRICS:
            values = np.array([(probe.measured or {}).get(metric, 0.0) for probe in built])
            if (values > 0).all():
                found = [features(metric, probe.inventory) for probe in built]
                names = sorted({name for one in found for name in one})
                counts = np.array([[one.get(name, 0.0) for name in names] for one in found])
                coefficients[metric] = dict(zip(names, _solve(counts, values).tolist(), strict=True))
                errors[metric] = _error_left_out(counts, values)
        return cls(coefficients, errors, tuple(probes), **about)

    def predict(self, inventory: Mapping[str, Any]) -> dict[str, Any]:
        """Return metric -> predicted value: floats, or tensors where the inventory is of soft choices."""
        predicted = {}
        for metric, coefficients in self.coefficients.items():
            found = features(metric, inventory)
            predicted[metric] = sum(coefficients.get(name, 0.0) * value for name, value in found.items())
        return predicted

    def check(self, space: SearchSpace, where: str) -> None:
        """Raise UserError, naming the file `where`, when the space has a format in which no probe had weights."""
        wanted = {str(name) for gene in space if gene.kind == "format" for name in gene.choices}
        if any(gene.kind == "switch" and len(gene.choices) > 1 for gene in space):
            wanted.add(Q4_0.name)  # of stand-ins
        known = {name for name in FORMATS for p in self.probes if p.measured and p.inventory.get(f"{name}.weights")}
        if wanted - known:
            unknown = ", ".join(name for name in FORMATS if name in wanted - known)
            raise UserError(f"{where}: none of its probes had weights in {unknown}; measure a folder made for this run")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "device": self.device,
            "settings": dict(self.settings),
            "kv_bytes_per_value": self.kv_bytes_per_value,
            "planned": len(self.probes),
            "errors": dict(self.errors),
            "coefficients": {metric: dict(one) for metric, one in self.coefficients.items()},
            "probes": [probe.to_json() for probe in self.probes],
        }


def _solve(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the coefficients (features,), none negative, with the least sum of squared relative errors."""
    from scipy.optimize import nnls

    scale = np.maximum(counts.max(0), 1e-12)
    solution, _ = nnls(counts / scale / values[:, None], np.ones(len(values)))
    return solution / scale


def _error_left_out(counts: np.ndarray, values: np.ndarray) -> float:
    """Return the mean absolute relative error on each tenth of the rows, fitted to the others."""
    fold = np.arange(len(values)) % min(FOLDS, len(values))
    errors = np.empty(len(values))
    for k in range(fold.max() + 1):
        out = fold == k
        errors[out] = np.abs(counts[out] @ _solve(counts[~out], values[~out]) / values[out] - 1)
    return float(errors.mean())


def in_every_format(space: SearchSpace, genome: Genome) -> list[Genome]:
    """Return the genome once for each format of the space, in it wherever a gene offers it."""
    names = dict.fromkeys(name for gene in space if gene.kind == "format" for name in gene.choices)

    def stored_as(name: object) -> Genome:
        offered = [g.choices.index(name) if g.kind == "format" and name in g.choices else None for g in space]
        return space.canonical([i if j is None else j for i, j in zip(genome, offered, strict=True)])

    return [stored_as(name) for name in names]


def probe_genomes(space: SearchSpace, n: int, seed: int) -> list[Genome]:
    """Return up to `n` different genomes to measure: both ends, every format everywhere, and spread draws."""
    first = [space.largest, space.smallest, space.cheapest, *in_every_format(space, space.largest)]
    rng = generator(seed, "probes")
    genomes = dict.fromkeys(first[:n])
    for _ in range(ATTEMPTS * n):
        if len(genomes) >= n:
            break
        genomes[space.sample_spread(rng)] = None
    return list(genomes)


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a hardware.json holds by target, finished or not.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    targets = read_json(path).get("targets")
    if not isinstance(targets, dict) or not all(isinstance(entry, dict) for entry in targets.values()):
        raise UserError(f"{path} is damaged: it holds no targets")
    return targets


def write_entries(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a hardware.json, atomically."""
    write_json(path, {"targets": dict(entries)})


def model_of(entry: Mapping[str, Any], where: str) -> HardwareModel:
    """Return the model of one target's entry, fitted now where the file holds probes only.

    Raises:
        UserError: it is damaged, or its measuring has not finished.
    """
    try:
        probes = tuple(Probe.from_json(probe) for probe in entry["probes"])
        if len(probes) < entry["planned"]:
            raise UserError(f"{where}: {len(probes)} of {entry['planned']} probes are measured; what began it goes on")
        about = {k: entry[k] for k in ("settings", "device", "kv_bytes_per_value")}
        if "coefficients" not in entry:
            return HardwareModel.fit(probes, **about)
        coefficients = {m: {k: float(c) for k, c in one.items()} for m, one in entry["coefficients"].items()}
        return HardwareModel(coefficients, dict(entry["errors"]), probes, **about)
    except UserError:  # a ValueError too, but no damage
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is damaged: {error!r}") from None


def read_hardware(path: Path) -> dict[str, HardwareModel]:
    """Return the models of a hardware.json by target.

    Raises:
        UserError: it is missing, damaged, or not finished.
    """
    return {name: model_of(entry, f"{path} ({name})") for name, entry in read_entries(path).items()}


def read_model(path: Path, target: str | None = None) -> HardwareModel:
    """Return the one model of a hardware.json, or where it holds several that of `target`.

    Raises:
        UserError: it is missing, damaged or not finished, or does not say which model is meant.
    """
    entries = read_entries(path)
    name = next(iter(entries)) if len(entries) == 1 else target
    if name not in entries:
        wanted = "say which" if target is None else f"{target} is not among them"
        raise UserError(f"{path} holds the targets {', '.join(entries) or '(none)'}: {wanted}")
    return model_of(entries[name], f"{path} ({name})")

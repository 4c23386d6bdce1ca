"""The hardware model of a target: measure spread-out subnets where they will run, then fit."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.targets import Runtime
from supernet.errors import UserError
from supernet.genes import Genome
from supernet.hardware import (
    METRICS,
    HardwareModel,
    Probe,
    model_of,
    probe_genomes,
    read_entries,
    read_model,
    write_entries,
)
from supernet.run import TrainedSupernet
from supernet.subnet import extract

COEFFICIENTS = "coefficients"  # an entry that has them is finished


def measure_hardware(
    trained: TrainedSupernet, runtime: Runtime, path: Path, n_probes: int, seed: int = 0
) -> HardwareModel:
    """Return the hardware model of `runtime`, measured now unless `path` holds it.

    The file is written after every probe, so that the same call goes on after a kill. Where
    `runtime.hardware` names a file measured elsewhere, that model is checked and copied.

    Args:
        trained: the supernet and its tokenizer.
        runtime: measures the probes; its `name` is the entry's in the file.
        path: of hardware.json, which may hold other targets too.
        n_probes: subnets to measure.
        seed: of the draws among them.

    Raises:
        UserError: the runtime is not available, too few probes could be built, or the file was begun under
            other settings, is damaged, or does not know a format of the space.
    """
    entries = read_entries(path) if path.exists() else {}
    entry, where = entries.get(runtime.name), f"{path} ({runtime.name})"
    if entry is not None and COEFFICIENTS in entry:
        model = model_of(entry, where)
        model.check(trained.supernet.space, where)
        return model
    if runtime.hardware is not None:
        model = measured_elsewhere(trained, runtime)
    else:
        missing = runtime.available()
        if missing:
            raise UserError(missing)
        genomes = probe_genomes(trained.supernet.space, n_probes, seed)
        begun = {
            "settings": dict(runtime.settings),
            "kv_bytes_per_value": runtime.kv_bytes_per_value,
            "planned": len(genomes),
        }
        entry = entry or {**begun, "device": "", "probes": []}
        done = [tuple(probe["genome"]) for probe in entry["probes"]]
        if any(entry.get(key) != value for key, value in begun.items()) or done != genomes[: len(done)]:
            raise UserError(
                f"{where} was begun with other settings or another supernet; delete the file to measure anew"
            )
        entries[runtime.name] = entry
        _measure(trained, runtime, path, entries, genomes)
        model = model_of(entry, where)
        model.check(trained.supernet.space, where)
    entries[runtime.name] = model.to_json()
    write_entries(path, entries)
    print(f"{runtime.name}: {summary(model)}")
    return model


def _measure(
    trained: TrainedSupernet, runtime: Runtime, path: Path, entries: Mapping[str, Any], genomes: list[Genome]
) -> None:
    """Measure the genomes that the runtime's entry does not have yet."""
    from supernet.cli import progress

    entry = entries[runtime.name]
    n_done = len(entry["probes"])
    with progress(total=len(genomes), initial=n_done, desc=f"measure {runtime.name}", unit="net") as bar:
        for genome in genomes[n_done:]:
            measured = _run(trained, runtime, genome)
            inventory = trained.supernet.inventory(trained.supernet.space.decode(genome))
            found = {metric: measured[metric] for metric in METRICS if metric in measured}
            probe = Probe(genome, inventory, found if measured["built"] else None, measured.get("reason"))
            entry["probes"].append(probe.to_json())
            entry["device"] = measured.get("device") or entry["device"]
            write_entries(path, entries)
            bar.update()


def _run(trained: TrainedSupernet, runtime: Runtime, genome: Genome) -> dict[str, Any]:
    """Return what the runtime measures; a net that cannot be exported has a reason too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            decoder = extract(trained.supernet, genome)
            artifact = runtime.export(decoder, trained.tokenizer_json, Path(folder), trained.tokenizer_files)
        except UserError as error:
            return {"built": False, "reason": str(error)}
        return runtime.measure(artifact)


def measured_elsewhere(trained: TrainedSupernet, runtime: Runtime) -> HardwareModel:
    """Return the model that was measured on another device, checked against the space and the target.

    Raises:
        UserError: there is no such file, or it was measured under other settings or lacks a format of the space.
    """
    path = Path(str(runtime.hardware))
    if not path.exists():
        raise UserError(f"targets.{runtime.name}.hardware: {path} does not exist")
    model = read_model(path, runtime.name)
    model.check(trained.supernet.space, str(path))
    ours = {**runtime.settings, "kv_bytes_per_value": runtime.kv_bytes_per_value}
    theirs = {**model.settings, "kv_bytes_per_value": model.kv_bytes_per_value}
    for key in sorted(ours.keys() & theirs.keys() - {"repeats"}):
        if ours[key] != theirs[key]:
            raise UserError(
                f"{path} was measured with {key}={theirs[key]}, target {runtime.name} has {ours[key]}"
                f" (targets.{runtime.name}.{key})"
            )
    return model


def summary(model: HardwareModel) -> str:
    """Return one line: how far off predictions are on probes that were left out of the fit."""
    errors = ", ".join(f"{metric} {error:.1%}" for metric, error in model.errors.items())
    built = sum(probe.measured is not None for probe in model.probes)
    failed = len(model.probes) - built
    left_out = f", {failed} could not be built" if failed else ""
    device = f" on {model.device}" if model.device else ""
    return f"costs predicted from {built} nets measured{device}{left_out}; mean error on held-out nets: {errors}"

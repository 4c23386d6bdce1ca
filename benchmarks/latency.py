"""How well the hardware model predicts subnets it was not fitted to.

`python benchmarks/latency.py` measures the default number of probes of `--run` on llama.cpp with one thread
(process CPU time), fits, and measures 20 other subnets: half drawn uniformly, gene by gene, half from the later
part of the run's search, if there is one. Writes docs/results/latency.json: mean and worst absolute relative
error by metric over those 20, and beside them the error that the model itself states.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import ROOT, compose, record

from search.hardware import measure_hardware
from search.targets.remote import preset
from supernet.genes import Genome, SearchSpace
from supernet.hardware import METRICS
from supernet.randomness import generator
from supernet.run import load_supernet
from supernet.subnet import extract

HELD_OUT = 20


def held_out(space: SearchSpace, journal: Path, probes: set[Genome]) -> dict[Genome, str]:
    """Return genome -> where it is from, for subnets that are no probes."""
    rng, found = generator(0, "held out"), {}
    if journal.exists():
        lines = journal.read_text(encoding="utf-8").splitlines()
        later = [space.check(json.loads(line)["genome"]) for line in lines[len(lines) // 2 :]]
        fresh = [genome for genome in dict.fromkeys(later) if genome not in probes]
        for i in rng.permutation(len(fresh))[: HELD_OUT // 2]:
            found[fresh[i]] = "search"
    while len(found) < HELD_OUT:
        genome = space.sample(rng)
        if genome not in probes:
            found[genome] = "uniform"
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "llama_like")
    parser.add_argument("--search", default="main", help="whose journal half of the subnets are from")
    parser.add_argument("--target", default="llama_cpp")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained, runtime = load_supernet(arguments.run), preset(arguments.target)
    supernet, n_probes = trained.supernet, compose("search", "run=none").n_probes
    nets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = measure_hardware(trained, runtime, Path(folder) / "hardware.json", n_probes)
        journal = arguments.run / "search" / arguments.search / "journal.jsonl"
        for genome, source in held_out(supernet.space, journal, {probe.genome for probe in model.probes}).items():
            path = runtime.export(extract(supernet, genome), trained.tokenizer_json, Path(folder))
            measured = runtime.measure(path)
            predicted = model.predict(supernet.inventory(supernet.space.decode(genome)))
            both = {m: {"measured": measured[m], "predicted": predicted[m]} for m in METRICS}
            nets.append({"from": source, "genome": list(genome), **both})

    def errors(metric: str, sources: list[str]) -> list[float]:
        return [abs(n[metric]["predicted"] / n[metric]["measured"] - 1) for n in nets if n["from"] in sources]

    sources = sorted({str(net["from"]) for net in nets})
    record(
        "latency",
        {
            "run": arguments.run.name,
            "target": runtime.name,
            "settings": runtime.settings,
            "probes": len(model.probes),
            "held_out": len(nets),
            "mape": {m: sum(errors(m, sources)) / len(nets) for m in METRICS},
            "worst": {m: max(errors(m, sources)) for m in METRICS},
            "mape_by_source": {
                source: {m: sum(errors(m, [source])) / len(errors(m, [source])) for m in METRICS} for source in sources
            },
            "cross_validated": dict(model.errors),
            "nets": nets,
        },
    )


if __name__ == "__main__":
    main()

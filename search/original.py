"""The pretrained model that a run began with, beside what was made of it: a baseline that nothing was trained on."""

import tempfile
from pathlib import Path
from typing import Any

from search.shipping import ENTRY, Shipyard
from supernet.files import read_json, write_json
from supernet.formats import MB
from supernet.original import original_supernet
from supernet.subnet import extract_architecture

NAME = "original F16"


def original_baseline(yard: Shipyard) -> list[dict[str, Any]]:
    """Judge and measure the original in F16; return its entry of finalists.json.

    Empty for a run that keeps none.
    """
    done = yard.work(NAME) / ENTRY
    if done.exists():
        return [read_json(done)]
    supernet = original_supernet(yard.trained)
    if supernet is None:
        return []
    formats = {gene.name: "F16" for gene in supernet.space if gene.kind == "format"}
    architecture = {**supernet.space.decode(supernet.space.largest), **formats}
    decoder = extract_architecture(supernet, architecture)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: yard.run_on(target, decoder, Path(folder)) for name, target in yard.targets.items()}
    entry = {
        "id": None,
        "name": NAME,
        "genome": None,  # the same choices mean other weights in this supernet
        "architecture": None,
        "scores": {"size_mb": float(supernet.n_bytes(architecture)) / MB},
        "inherited": yard.judge.scores(yard.as_run(decoder)),
        "fine_tuned": None,
        "export": None,
        "on": {name: {"predicted": None, **run} for name, run in runs.items()},
    }
    write_json(done, entry)
    return [entry]

"""How long does a token take in the nets of headline.py? All of them again, in turn, on a machine that is idle.

`python benchmarks/headline_times.py --run runs/headline_alone_s0` measures in llama.cpp every net of
docs/results/headline.json and writes its times over those that the searches took, whatever ran beside them then. Times
follow from shapes and formats, not from what weights were trained to, so nets are cut from any run over the same space,
and what several methods or seeds found is measured once. Each time is the median of several rounds through all nets.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import headline_table
from common import RESULTS, described
from headline_rivals import REFERENCE

from search.targets.remote import preset
from supernet.cli import progress
from supernet.files import read_json, write_json
from supernet.genes import Genome, SearchSpace
from supernet.run import load_supernet
from supernet.subnet import extract

TIMES = ("decode_ms", "ttft_ms")


def main() -> None:
    """Write all nets, measure them in turn, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="any over the same space")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="headline", help="of docs/results/NAME.json")
    arguments = parser.parse_args()
    content, trained, target = (
        read_json(RESULTS / f"{arguments.name}.json"),
        load_supernet(arguments.run),
        preset("llama_cpp"),
    )
    supernet, space = trained.supernet, trained.supernet.space
    nets = [(row, _net(row, space)) for row in content["rows"] if row["name"] is not None]

    def written(net: Genome | str, folder: Path) -> Path:
        if isinstance(net, str):
            return target.quantized(files[largest], net, folder)[0]
        folder.mkdir()
        return target.export(extract(supernet, net), trained.tokenizer_json, folder, trained.tokenizer_files)

    with tempfile.TemporaryDirectory() as folder:
        largest = space.with_format(space.largest, REFERENCE.split()[-1])  # what llama.cpp quantizes
        files: dict[Genome | str, Path] = {}
        for i, net in enumerate(dict.fromkeys([largest, *(net for _, net in nets)])):
            files[net] = written(net, Path(folder) if isinstance(net, str) else Path(folder) / str(i))
        rounds: dict[Genome | str, list[dict[str, float]]] = {net: [] for net in files}
        for net in progress(iterable=[*files] * arguments.rounds, desc="measure", unit="net"):
            measured = target.measure(files[net])
            if not measured["built"]:
                raise SystemExit(f"{files[net]}: {measured['reason']}")
            rounds[net].append(measured)
    for row, net in nets:
        row |= {time: statistics.median(m[time] for m in rounds[net]) for time in TIMES}
    apart = [max(times) / min(times) - 1 for times in ([m["decode_ms"] for m in r] for r in rounds.values())]
    content["times"] = {
        **described(),
        "seeds": sorted({row["seed"] for row, _ in nets}),
        "rounds": arguments.rounds,
        "nets": len(files),
        "decode_ms_between_rounds": {"median": statistics.median(apart), "worst": max(apart)},
    }
    write_json(RESULTS / f"{arguments.name}.json", content)
    headline_table.write(arguments.name, content)
    print(content["times"])


def _net(row: dict[str, Any], space: SearchSpace) -> Genome | str:
    """Return a row's genome, or the kind that llama.cpp's quantizer made of the largest net."""
    if row["architecture"] is not None:
        return space.encode(row["architecture"])
    return space.with_format(space.largest, row["name"]) if row["method"] == "uniform PTQ" else str(row["name"])


if __name__ == "__main__":
    main()

"""How should the scales of few bits be found? The largest net of a run, fine-tuned in each format in all ways.

`python benchmarks/scales.py --run runs/headline_alone_s0` takes a net that was trained alone, rounds all its weights to
one format with scales by absolute maximum, a fixed fraction of that, by least squares, or with learned factors on them
(LSQ, arXiv 1902.08153), and fine-tunes it. Seeds are those of the fine-tuning's batches. Writes
docs/results/NAME.json and .md; what was tuned is kept in the run, so this goes on where it stopped.
"""

import argparse
import copy
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from common import RESULTS, compose, record, recorded
from torch import nn

from search.session import opened
from search.shipping import Shipyard
from supernet.files import write_text
from supernet.formats import Fitting, format_named
from supernet.subnet import Decoder


def main() -> None:
    """Tune what is missing, judge, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--formats", nargs="+", default=["Q2_K", "Q3_K"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--name", default="scales", help="of docs/results/NAME.json")
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "name"}
    recorded(arguments.name, settings)  # what may not be written had better not be run
    config = compose("search", f"run={arguments.run}", "search=scales", f"finetune.steps={arguments.steps}")
    with opened(config) as search:
        yard = search.shipyard()
        rows = [
            {"format": name, "scales": fitting, "seed": seed, **_judged(yard, name, fitting, seed)}
            for seed in arguments.seeds
            for name in arguments.formats
            for fitting in format_named(name).fittings()
        ]
    record(arguments.name, {"settings": settings, "rows": rows})
    write_text(RESULTS / f"{arguments.name}.md", markdown(rows))


def _judged(yard: Shipyard, name: str, fitting: Fitting, seed: int) -> dict[str, float]:
    """Return the test losses of the largest net in a format, before and after fine-tuning."""
    decoder = stored(yard.inherited(yard.space.largest), name, fitting)
    before = yard.judge.scores(yard.as_run(decoder))
    label = f"{name} {fitting} {seed}"
    tuned = yard.finetuning.tune(yard.work(label), label, decoder, yard.teacher, yard.data, seed)
    after = yard.judge.scores(yard.as_run(tuned))
    return {"rounded": before["test_loss"], "test_loss": after["test_loss"], "accuracy": after["test_accuracy"]}


def stored(decoder: Decoder, name: str, fitting: Fitting) -> Decoder:
    """Return a copy whose projections are all in one format, with scales fitted in one way."""
    decoder = copy.deepcopy(decoder)
    for linear in decoder.linears():
        linear.store_as(format_named(name, fitting))
        linear.activations = linear.format.activations
        if fitting == "learned":
            n_out, n_in = linear.weight.shape
            factors = torch.full((n_out, n_in // linear.format.part), math.log(linear.format.factor))
            linear.log_factors = nn.Parameter(factors)
    return decoder


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each format and way: means over the seeds, and the difference to the absolute maximum."""
    heads = ["format", "scales", "test loss, rounded", "fine-tuned", "over absolute maximum, paired"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, fitting in dict.fromkeys((row["format"], row["scales"]) for row in rows):
        own, base = (
            {row["seed"]: row for row in rows if (row["format"], row["scales"]) == (name, way)}
            for way in (fitting, "absmax")
        )
        rises = [own[seed]["test_loss"] - base[seed]["test_loss"] for seed in own if seed in base]
        error = statistics.stdev(rises) / math.sqrt(len(rises)) if len(rises) > 1 else math.nan
        means = [statistics.fmean(row[key] for row in own.values()) for key in ("rounded", "test_loss")]
        shown = "" if fitting == "absmax" else f"{statistics.fmean(rises):+.4f} ± {error:.4f}"
        lines.append(f"| {name} | {fitting} | {means[0]:.4f} | {means[1]:.4f} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

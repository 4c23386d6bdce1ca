"""Rivals of a search: the largest net in one format, and llama.cpp's own quantizer. Used by headline.py."""

import copy
from pathlib import Path
from typing import Any

from headline_table import net

from search.session import opened
from search.shipping import Shipyard
from supernet.files import read_json, write_json
from supernet.formats import format_named
from supernet.subnet import Decoder

# llama.cpp's mixes of formats, and those that give all matrices the same one.
KINDS = ("Q2_K pure", "Q2_K", "Q3_K_S pure", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
REFERENCE, TARGET = "largest F16", "llama_cpp"


def rivals(config: Any, folder: Path, wanted: list[str]) -> list[dict[str, Any]]:
    """Return the nets of the rivals that are wanted, and of the largest net in F16, tuned for as long as all others.

    Args:
        config: of a search of the net that was trained alone, with KINDS for llama.cpp's quantizer.
        folder: of that search; what was judged is kept there.
        wanted: names of the rivals.
    """
    with opened(config) as search:
        yard = search.shipyard()
        named = dict(yard.space.baselines())
        named.pop("smallest")
        found = [net("F16", _on(yard.baseline(REFERENCE, named.pop(REFERENCE))))]
        if "uniform QAT" in wanted:
            found += [net("uniform QAT", _on(yard.baseline(name, genome))) for name, genome in named.items()]
        if "uniform PTQ" in wanted:
            decoder, _ = yard.best_largest
            found += [_rounded(yard, folder, decoder, name.split()[-1]) for name in named]
        if "llama.cpp" in wanted:
            for entry in yard.quantizer_baselines(yard.targets[TARGET]):
                found.append(net("llama.cpp", {**_on(entry), "name": entry["name"].removeprefix("llama.cpp ")}))
        return found


def _on(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, **entry["on"][TARGET]}


def _rounded(yard: Shipyard, folder: Path, trained: Decoder, name: str) -> dict[str, Any]:
    """Return the net rounded to a format after training, its scales fitted in the way that is better on `valid`."""
    work = folder / "rounded" / name
    done = work / "entry.json"
    if not done.exists():
        size_mb = yard.scorer.known(yard.space.with_format(yard.space.largest, name))["size_mb"]
        entries = []
        for fitting in (way for way in format_named(name).fittings() if way != "learned"):
            decoder = copy.deepcopy(trained)
            for linear in decoder.linears():
                linear.store_as(format_named(name, fitting))
                linear.activations = linear.format.activations
            scores = {"inherited": yard.judge.scores(yard.as_run(decoder)), "fine_tuned": None}
            run = yard.run_on(yard.targets[TARGET], decoder, work / fitting)
            entries.append({"name": name, **scores, **run, "scores": {"size_mb": size_mb}})
        write_json(done, min(entries, key=lambda e: e["inherited"]["valid_loss"]))
    return net("uniform PTQ", read_json(done))

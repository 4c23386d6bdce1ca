"""Rivals of a search: the largest net in one format, and llama.cpp's own quantizer. Used by headline.py."""

import copy
from pathlib import Path
from typing import Any

from headline_table import net

from search.session import opened
from search.shipping import Shipyard
from search.targets.gguf_file import load_weights, tensor_bytes
from search.targets.llama_cpp import LlamaCpp
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.formats import F16, MB, format_named
from supernet.subnet import Decoder

# llama.cpp's mixes of formats, and those that give all matrices the same one.
KINDS = [("Q2_K", True), ("Q2_K", False), ("Q3_K_S", True), ("Q3_K_M", False), ("Q4_K_M", False), ("Q5_K_M", False)]
KINDS += [("Q6_K", False), ("Q8_0", False)]
REFERENCE, TARGET = "largest F16", "llama_cpp"


def rivals(config: Any, folder: Path, wanted: list[str]) -> list[dict[str, Any]]:
    """Return the nets of the rivals that are wanted, and of the largest net in F16, tuned for as long as all others.

    Args:
        config: of a search of the net that was trained alone.
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
        decoder = _load(yard, yard.baseline(REFERENCE, yard.space.largest), folder)
        if "uniform PTQ" in wanted:
            found += [_rounded(yard, folder, decoder, name.split()[-1]) for name in named]
        if "llama.cpp" in wanted:
            found += _requantized(yard, folder, decoder)
        return found


def _on(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, **entry["on"][TARGET]}


def _load(yard: Shipyard, entry: dict[str, Any], folder: Path) -> Decoder:
    """Return the largest net in F16: fine-tuned, unless that made it worse."""
    from safetensors.torch import load_file

    decoder = yard.inherited(yard.space.largest)
    if entry["fine_tuned"]["valid_loss"] < entry["inherited"]["valid_loss"]:
        decoder.load_state_dict(load_file(folder / "nets" / REFERENCE.replace(" ", "_") / "model.safetensors"))
    return decoder


def _entry(yard: Shipyard, name: str, decoder: Decoder, size_mb: float, measured: Any) -> dict[str, Any]:
    scores = yard.judge.scores(yard.as_run(decoder))
    return {"name": name, "inherited": scores, "fine_tuned": None, "measured": measured, "scores": {"size_mb": size_mb}}


def _rounded(yard: Shipyard, folder: Path, trained: Decoder, name: str) -> dict[str, Any]:
    """Return the net rounded to a format after training, its scales fitted in the way that is better on `valid`."""
    work = folder / "rounded" / name
    done = work / "entry.json"
    if not done.exists():
        size_mb = yard.scorer.known(yard.space.with_format(yard.space.largest, name))["size_mb"]
        entries = []
        for fitting in ("absmax", "mse") if format_named(name).part else ("absmax",):
            decoder = copy.deepcopy(trained)
            for linear in decoder.linears():
                linear.format = format_named(name, fitting)
                linear.activations = linear.format.activations
            measured = yard.measure(yard.targets[TARGET], decoder, work / fitting)
            entries.append(_entry(yard, name, decoder, size_mb, measured))
        write_json(done, min(entries, key=lambda e: e["inherited"]["valid_loss"]))
    return net("uniform PTQ", read_json(done))


def _requantized(yard: Shipyard, folder: Path, trained: Decoder) -> list[dict[str, Any]]:
    """Return what llama.cpp makes of the net in F16, judged as all others are."""
    target = yard.targets[TARGET]
    assert isinstance(target, LlamaCpp)
    if target.available() is not None:
        return []
    work, found = folder / "llama_cpp", []
    whole = work / target.file_name
    if not whole.exists():
        assert all(isinstance(linear.format, F16) for linear in trained.linears())
        target.export(trained, yard.trained.tokenizer_json, work)
    for kind, pure in KINDS:
        name = f"{kind}{' pure' if pure else ''}"
        done = work / f"{name.replace(' ', '-')}.json"
        if not done.exists():
            try:
                path = target.requantize(whole, kind, work, pure=pure)
            except UserError as error:
                print(f"llama.cpp, {name}: {error}")
                continue
            decoder = load_weights(copy.deepcopy(trained), path)
            write_json(done, _entry(yard, name, decoder, tensor_bytes(path) / MB, target.measure(path)))
        found.append(net("llama.cpp", read_json(done)))
    return found

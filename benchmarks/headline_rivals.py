"""Rivals of a search: the largest net in one format, and llama.cpp's own quantizer. Used by headline.py."""

import copy
from pathlib import Path
from typing import Any

from headline_table import net

from search.session import opened
from search.shipping import Shipyard
from search.targets.gguf_file import tensor_bytes
from search.targets.llama_cpp import LlamaCpp
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.formats import F16, MB, format_named
from supernet.subnet import Decoder

# llama.cpp's mixes of formats, and those that give all matrices the same one.
KINDS = [("Q2_K", True), ("Q2_K", False), ("Q3_K_S", True), ("Q3_K_M", False), ("Q4_K_M", False), ("Q5_K_M", False)]
KINDS += [("Q6_K", False), ("Q8_0", False)]
REFERENCE = "largest F16"


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
        decoder = _load(yard, folder)
        if "uniform PTQ" in wanted:
            found += [_rounded(yard, folder, decoder, name.split()[-1]) for name in named]
        if "llama.cpp" in wanted:
            found += _requantized(yard, folder, decoder)
        return found


def _on(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, **entry["on"]["llama_cpp"]}


def _load(yard: Shipyard, folder: Path) -> Decoder:
    """Return the largest net in F16, fine-tuned."""
    from safetensors.torch import load_file

    decoder = yard.inherited(yard.space.largest)
    decoder.load_state_dict(load_file(folder / "nets" / REFERENCE.replace(" ", "_") / "model.safetensors"))
    return decoder


def _rounded(yard: Shipyard, folder: Path, trained: Decoder, name: str) -> dict[str, Any]:
    """Return the net rounded to a format after training."""
    work = folder / "rounded" / name
    done = work / "entry.json"
    if not done.exists():
        decoder = copy.deepcopy(trained)
        for linear in decoder.linears():
            linear.format = format_named(name, "mse" if format_named(name).part else "absmax")
        scores = yard.judge.scores(copy.deepcopy(decoder).freeze_formats())
        target = yard.targets["llama_cpp"]
        measured = yard.measure(target, decoder, work)
        write_json(done, {"name": name, "inherited": scores, "fine_tuned": None, "measured": measured})
    return net("uniform PTQ", read_json(done))


def _requantized(yard: Shipyard, folder: Path, trained: Decoder) -> list[dict[str, Any]]:
    """Return what llama.cpp makes of the net in F16, judged in llama.cpp on the same rows."""
    target = yard.targets["llama_cpp"]
    assert isinstance(target, LlamaCpp)
    if target.available() is not None:
        return []
    work, found = folder / "llama_cpp", []
    whole = work / "model.gguf"
    if not whole.exists():
        assert all(isinstance(linear.format, F16) for linear in trained.linears())
        target.export(trained, yard.trained.tokenizer_json, work)
    for kind, pure in KINDS:
        name = f"{kind}{' pure' if pure else ''}"
        done = work / f"{name.replace(' ', '-')}.json"
        if not done.exists():
            write_json(done, _judged(target, yard, whole, kind, pure, name))
        entry = read_json(done)
        if entry["measured"] is not None:
            found.append(net("llama.cpp", entry))
    return found


def _judged(target: LlamaCpp, yard: Shipyard, whole: Path, kind: str, pure: bool, name: str) -> dict[str, Any]:
    try:
        path = target.requantize(whole, kind, whole.parent, pure=pure)
    except UserError as error:
        return {"name": name, "measured": None, "reason": str(error)}
    splits = {}
    for split, rows in (("valid", yard.judge.valid), ("test", yard.judge.test)):
        scores = target.evaluate(path, rows.cpu().numpy())
        splits |= {f"{split}_loss": scores["loss"], f"{split}_accuracy": scores["accuracy"]}
    measured = {**target.measure(path), "size_mb": tensor_bytes(path) / MB}
    return {"name": name, "inherited": splits, "fine_tuned": None, "measured": measured}

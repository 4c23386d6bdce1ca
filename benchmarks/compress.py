"""How much of a pretrained Llama is left at few bits? Compressed without any text of its own, judged on some.

`python benchmarks/compress.py --model stories260K.bin --tokenizer tok512.model --text niklas6.txt` makes the Llama the
largest subnet, samples text from it, and trains one supernet on that with the Llama as teacher. It searches for a net
of each of `--bits` and fine-tunes these, and beside them the largest net in every uniform format, for as many steps.
Judged on the first tokens of the text, which nothing was trained on, in windows that each begin as a text does.

Bits are those of all tensors that ship, norms and padding included, over the weights of the Llama. Everything goes
through `train.py` and `search.py`, which go on where they stopped. Writes docs/results/compress.json, .md and .png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, compose, record, recorded
from headline import run_script
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from search.entries import ships_tuned
from search.finetune import WEIGHTS
from search.session import opened
from search.shipping import Shipyard
from supernet.files import read_json, replacing, write_text
from supernet.formats import MB
from supernet.original import kept_original
from supernet.pretrained.decoder import decoder_of
from supernet.run import load_supernet
from supernet.subnet import Decoder
from supernet.tokenizer import Tokenization

GOALS = {4.5: 1.50, 3.5: 1.58, 2.7: 1.80}  # nats per token, of stories260K on niklas6.txt


def main() -> None:
    """Run what is missing, judge, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .bin of llama2.c, or a Hugging Face folder")
    parser.add_argument("--tokenizer", required=True, help="its tokenizer.json, sentencepiece .model, or folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=10_220, help="of the text, from its beginning")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window, the one that begins it included")
    parser.add_argument("--bits", type=float, nargs="+", default=list(GOALS), help="per weight of the Llama")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sampled", type=int, default=2_000_000, help="tokens of text that the Llama writes")
    parser.add_argument("--steps", type=int, default=3000, help="of the supernet")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens that nets are trained and searched on")
    parser.add_argument("--tune-steps", type=int, default=1500, help="of each net")
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--prompt", default="Once upon a time", help="of the texts in the search's report")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of train.py")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of search.py")
    parser.add_argument("--name", default="compress", help="of the runs and of docs/results/NAME.json")
    arguments = parser.parse_args()
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    del settings["seeds"]
    recorded(arguments.name, settings)  # what may not be written had better not be run
    again = [row for seed in arguments.seeds for row in _one(arguments, seed)]
    before = recorded(arguments.name, settings).get("rows", [])
    rows = [*(row for row in before if row["seed"] not in arguments.seeds), *again]
    rows.sort(key=lambda row: row["seed"])
    record(arguments.name, {"settings": settings, "goals": GOALS, "rows": rows})
    write_text(RESULTS / f"{arguments.name}.md", _markdown(rows))
    draw(rows, RESULTS / f"{arguments.name}.png")


def _one(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Return the rows of a seed."""
    run = ROOT / "runs" / f"{arguments.name}_s{seed}"
    sampling = ["data=teacher", f"data.sampling.n_tokens={arguments.sampled}"]
    of_model = [f"model.init={arguments.model}", f"data.tokenizer_file={arguments.tokenizer}"]
    schedule = [f"schedule.joint_steps={arguments.steps}", f"sequence_length={arguments.sequence_length}"]
    names = ["+experiment=compress", f"name={run.name}", f"seed={seed}"]
    run_script("train.py", *names, *of_model, *sampling, *schedule, *arguments.train)

    original = kept_original(run)
    assert original is not None, "the run keeps the Llama that taught it"
    llama = decoder_of(original)
    n_weights = sum(parameter.numel() for parameter in llama.parameters())
    sizes = [bits * n_weights / 8 / MB for bits in arguments.bits]
    settings = [
        f"run=runs/{run.name}",
        f"seed={seed}",
        f"evaluations={arguments.evaluations}",
        f"finetune.steps={arguments.tune_steps}",
        f"budget.size_mb={max(sizes)}",
        f"finalist_sizes_mb={sizes}".replace(" ", ""),
        f"prompt='{arguments.prompt}'",
        *arguments.search,
    ]
    run_script("search.py", *settings)
    windows = _windows(arguments, load_supernet(run).tokens().tokenization)
    nets = [("original", "full precision", 4 * n_weights, llama)]
    with opened(compose("search", *settings)) as search:
        yard, found = search.shipyard(), read_json(search.folder / "finalists.json")["targets"]["llama_cpp"]
        for method, entries in (("joint", found["finalists"]), ("uniform QAT", found["baselines"])):
            for entry in entries:
                if entry["genome"] is not None and entry["name"] != "smallest":
                    n_bytes = round(entry["scores"]["size_mb"] * MB)
                    nets.append((method, entry["name"], n_bytes, _shipped(yard, entry)))
    return [
        {
            "method": method,
            "name": name,
            "bits_per_weight": 8 * n_bytes / n_weights,
            "nll": nll(decoder, windows),
            "bytes": n_bytes,
            "seed": seed,
        }
        for method, name, n_bytes, decoder in nets
    ]


def _shipped(yard: Shipyard, entry: dict[str, Any]) -> Decoder:
    """Return the net with the weights that ship."""
    decoder = yard.inherited(tuple(entry["genome"]))
    if ships_tuned(entry):
        key = entry["name"] if entry["id"] is None else str(entry["id"])
        decoder.load_state_dict(load_file(yard.work(key) / WEIGHTS))
    return decoder.freeze_formats()


def _windows(arguments: argparse.Namespace, tokenization: Tokenization) -> list[Tensor]:
    """Return the token ids of each window, the one that begins a text in front."""
    ids = tokenization.tokenizer.encode(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    ids, length = ids[: arguments.tokens], arguments.window - 1
    first = tokenization.id_of(tokenization.bos)
    return [torch.tensor([first, *ids[i : i + length]]) for i in range(0, len(ids), length)]


@torch.inference_mode()
def nll(decoder: Decoder, windows: Sequence[Tensor]) -> float:
    """Return the mean loss in nats per token, all but the first of each window (tokens,) predicted."""
    losses = [F.cross_entropy(decoder(w[None, :-1])[0].float(), w[1:], reduction="none") for w in windows]
    return torch.cat(losses).double().mean().item()


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each net."""
    lines = ["| method | net | bits per weight | bytes | NLL, nats per token | seed |", "| --- " * 6 + "|"]
    for row in sorted(rows, key=lambda r: (r["seed"], r["method"], -r["bytes"])):
        numbers = f"{row['bits_per_weight']:.2f} | {row['bytes']:,} | {row['nll']:.4f} | {row['seed']}"
        lines.append(f"| {row['method']} | {row['name']} | {numbers} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss over the bits, a dot for each net, the goals and the original as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(("joint", "uniform QAT")):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["bytes"])
        axes.plot([r["bits_per_weight"] for r in own], [r["nll"] for r in own], ".", color=f"C{number}", label=method)
    axes.plot(list(GOALS), list(GOALS.values()), "x", color="black", label="goals")
    original = [r["nll"] for r in rows if r["method"] == "original"]
    axes.axhline(original[0], color="gray", linewidth=0.8, label="original, full precision")
    axes.set_xscale("log")
    ticks = [bits for bits in (2, 3, 4, 5, 6, 8, 12, 16) if axes.get_xlim()[0] <= bits <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{bits}" for bits in ticks])
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * (high - low), high)  # the original's line is apart from the frame
    axes.minorticks_off()
    axes.set_xlabel("bits per weight of the original")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


if __name__ == "__main__":
    main()

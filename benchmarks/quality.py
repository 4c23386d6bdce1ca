"""Is the supernet as good as nets trained for one purpose? The demo's run against its own parts.

`python benchmarks/quality.py` takes runs/llama_like (made by `make demo`, or made here), trains its largest
net alone for as many steps, and compares on the test split: the largest subnet with that net, and each
fine-tuned finalist with the uniform formats of the largest net, fine-tuned for as many steps, that take at
least as many bytes. Writes docs/results/quality.json.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import ROOT, record

from supernet.config import build
from supernet.files import read_json
from supernet.losses import evaluate
from supernet.run import load_supernet
from supernet.subnet import extract


def main() -> None:
    """Run what is missing, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=float, default=2.35, help="size_mb of the search, as in `make demo`")
    arguments = parser.parse_args()
    rows = [_one_seed(seed, arguments.budget) for seed in arguments.seeds]
    best = [max(r["finalists"], key=lambda f: f["gain_over_uniform"] or -1.0) for r in rows]
    record(
        "quality",
        {
            "largest_over_alone": {"values": [r["largest_over_alone"] for r in rows], "goal": "at most 1.02"},
            "best_gain_over_uniform": {"values": [b["gain_over_uniform"] for b in best], "goal": "above 0"},
            "rows": rows,
        },
    )


def _one_seed(seed: int, budget: float) -> dict[str, Any]:
    name = "llama_like" if seed == 0 else f"llama_like_seed{seed}"
    common = ["+experiment=llama_like", f"seed={seed}"]
    _run("train.py", *common, f"name={name}")
    config = read_json(ROOT / "runs" / name / "supernet" / "summary.json")
    alone = f"schedule.alone_steps={config['steps']}"
    _run("train.py", *common, f"name={name}_alone", alone, "schedule.joint_steps=0", "gates.budgets_mb=[]")
    _run("search.py", f"run=runs/{name}", f"budget.size_mb={budget}", f"seed={seed}")
    losses = {n: _largest_test_loss(ROOT / "runs" / n) for n in (name, f"{name}_alone")}
    judged = read_json(ROOT / "runs" / name / "search" / "main" / "finalists.json")["targets"]["llama_cpp"]
    uniform = [b for b in judged["baselines"] if b["name"].startswith("uniform")]
    return {
        "seed": seed,
        "steps": config["steps"],
        "largest_test_loss": losses[name],
        "alone_test_loss": losses[f"{name}_alone"],
        "largest_over_alone": losses[name] / losses[f"{name}_alone"],
        "finalists": [_against(finalist, uniform) for finalist in judged["finalists"]],
        "uniform": [_short(b) for b in uniform],
    }


def _run(script: str, *overrides: str) -> None:
    subprocess.run([sys.executable, script, *overrides], cwd=ROOT, check=True)


def _largest_test_loss(run: Path) -> float:
    """Return the loss of the largest subnet on the whole test split."""
    trained = load_supernet(run)
    data = build(trained.data["config"])
    decoder = extract(trained.supernet, trained.supernet.space.largest).freeze_formats()
    rows = torch.cat(list(data.all_batches("test", int(data.config["sequence_length"]), 64)))
    return evaluate(decoder, rows, 8)[0]


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    tuned = entry["fine_tuned"]
    return {
        "name": entry["name"],
        "size_mb": entry["scores"]["size_mb"],
        "test_loss": entry["inherited"]["test_loss"],
        "tuned_test_loss": tuned["test_loss"] if tuned else None,
    }


def _against(finalist: dict[str, Any], uniform: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the finalist and by how much it beats the smallest uniform net that is no smaller than it.

    A uniform net with more bytes than the finalist may only lose by being worse, never by being smaller.
    """
    mine = _short(finalist)
    no_smaller = [u for u in map(_short, uniform) if u["size_mb"] >= mine["size_mb"]]
    rival = min(no_smaller, key=lambda u: u["size_mb"], default=None)
    gain = rival["tuned_test_loss"] - mine["tuned_test_loss"] if rival else None
    return {**mine, "rival": rival["name"] if rival else None, "gain_over_uniform": gain}


if __name__ == "__main__":
    main()

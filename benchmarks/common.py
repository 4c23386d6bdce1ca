"""What the benchmarks share: the model of `llama_like`, its plain counterpart, timing, results."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.cli import typed_command
from supernet.files import read_json, write_json
from supernet.model import Supernet
from supernet.subnet import Decoder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def compose(name: str, *overrides: str) -> Any:
    """Return the composed configuration of train.py or search.py."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from supernet.config import register

    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


def make_supernet(config: Any, vocab_size: int) -> Supernet:
    """Return the supernet of a configuration with random weights."""
    from omegaconf import OmegaConf

    from supernet.run import build_supernet

    torch.manual_seed(0)
    return build_supernet(OmegaConf.to_container(config.model, resolve=True), vocab_size)  # type: ignore[arg-type]


def plain_llama(decoder: Decoder) -> nn.Module:
    """Return transformers' LlamaForCausalLM of a homogeneous decoder's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layer: Any = decoder.layers[0]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.d_model,
            intermediate_size=layer.mlp.width,
            num_hidden_layers=len(decoder.layers),
            num_attention_heads=layer.attention.heads,
            num_key_value_heads=layer.attention.kv_heads,
            head_dim=decoder.config.head_dim,
            tie_word_embeddings=True,
            max_position_embeddings=decoder.config.context_length,
        )
    )


def interleaved(variants: Mapping[str, Callable[[int], Any]], repeats: int, warmup: int) -> dict[str, list[float]]:
    """Return the seconds of each variant and repeat, taken in turn: a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(-warmup, repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            run(max(0, repeat))
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and count."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": quartiles[0], "high": quartiles[2], "n": len(values)}


def recorded(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what docs/results/NAME.json holds; nothing where there is no such file.

    Raises:
        SystemExit: it was recorded with other settings, and would be lost.
    """
    path = RESULTS / f"{name}.json"
    before: dict[str, Any] = read_json(path) if path.exists() else {}
    theirs = before.get("settings", settings)
    changed = sorted(key for key in {*theirs, *settings} if theirs.get(key) != settings.get(key))
    if changed:
        raise SystemExit(
            f"{path} was recorded with other settings ({', '.join(changed)}): --name another, or remove it"
        )
    return before


def described() -> dict[str, Any]:
    """Return by what command, when, of which commit and where something is measured."""
    return {
        "command": typed_command(),
        "date": date.today().isoformat(),
        "commit": COMMIT,
        "device": _device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def record(name: str, content: Mapping[str, Any]) -> None:
    """Write docs/results/NAME.json, how it was measured with it, and print it."""
    found = {**described(), **content}
    write_json(RESULTS / f"{name}.json", found)
    print(json.dumps(found, indent=1))


def _commit() -> str | None:
    """Return the commit of the checkout, with a + where files but for results differ; None outside of a repository."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = _commit()  # now: a benchmark runs for an hour, and the checkout may move on


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

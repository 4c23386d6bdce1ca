"""Does a training need the memory that `plan=true` says?

`python benchmarks/memory_plan.py` trains a few small supernets through all kinds of steps, a checkpoint and ordering
included, each in processes of its own, and holds their peaks against the plan: on a CPU how resident memory grows from
after the imports, on a GPU the most that PyTorch's allocator has handed out. On a CPU twice: with freed blocks given
back at once, and as it is by default. Beside it the parameters of known Llamas, built on the meta device, and what
loading a checkpoint of several shards takes. Writes docs/results/memory_plan.json.
"""

import argparse
import ctypes
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import compose, record, spread
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from supernet import stage
from supernet.formats import MB
from supernet.initial import initial_supernet
from supernet.original import make_teacher
from supernet.plan import plan
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.fill import filled
from supernet.pretrained.hf_config import read_config
from supernet.pretrained.hf_llama import NAMES
from supernet.run import build_supernet

M_MMAP_THRESHOLD, GIVEN_BACK = -3, 65536  # of glibc's mallopt; bytes
STEPS = (
    "data=text",
    "data.corpus.paths=[nowhere]",
    "schedule.alone_steps=1",
    "schedule.joint_steps=4",
    "schedule.warmup_steps=1",
    "schedule.gate_every=3",
    "schedule.gate_warmup=0",
    "trainer.checkpoint_every=3",
)
TOKENS = (*STEPS, "data.vocab_size=2048", "batch_size=4", "sequence_length=256", "gates.budgets_mb=[2.0]")
WEIGHTS = (
    *STEPS,
    "data.vocab_size=4096",
    "batch_size=4",
    "sequence_length=32",
    "model.n_layers=4",
    "model.d_model=[512]",
    "model.blocks.attention.kv_heads=[2,4]",
    "model.blocks.mlp.width=[768,1536]",
    "gates.budgets_mb=[10.0]",
)
SANDWICH = ("schedule.largest_every=1", "schedule.smallest_every=1", "schedule.n_sampled=2")
MIXED, WHOLE = "trainer.precision=bf16-mixed", "trainer.precision=32-true"
LLAMA = "LLAMA"  # stands for a checkpoint of the shape SHARDED
TAUGHT = ("+experiment=compress", f"model.init={LLAMA}", "data.tokenizer_file=unread", *STEPS)
COMPRESS = (*TAUGHT, "batch_size=4", "sequence_length=128")
SIZES = {
    "many tokens": (*TOKENS, WHOLE),
    "many tokens, bf16": (*TOKENS, MIXED),
    "many tokens, sandwich": (*TOKENS, WHOLE, *SANDWICH),
    "many weights": (*WEIGHTS, WHOLE),
    "many weights, bf16, 8-bit states": (*WEIGHTS, MIXED, "optimizer=adamw8bit"),
    "a Llama, taught by itself": (*COMPRESS, WHOLE),
}
# What their config.json files say.
ROPE = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LLAMA3 = dict(
    vocab_size=128256,
    num_key_value_heads=8,
    intermediate_size=8192,
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    rope_parameters={**ROPE, "rope_theta": 500000.0, "factor": 32.0},
    tie_word_embeddings=True,
)
LLAMAS: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-3.2-1B": (
        1_235_814_400,
        dict(LLAMA3, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    ),
    "Llama-3.2-3B": (
        3_212_749_824,
        dict(LLAMA3, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128),
    ),
    "Llama-2-7B": (
        6_738_415_616,
        dict(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            rms_norm_eps=1e-5,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
    ),
}
SHARDED = dict(  # about 200 MB
    vocab_size=16000,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)


class Shape(Checkpoint):
    """A checkpoint without weights."""

    kind = "shape"

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.path = folder
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        self.llama = read_config(folder / "config.json")

    def stored(self, name: str) -> Tensor:
        """Refuse: only the shape is asked for."""
        raise NotImplementedError


class NoText:
    """Random tokens in the place of a corpus."""

    hash = tokenizer_sha256 = "none"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def batch(self, split: str, seed: int, step: int, batch_size: int, sequence_length: int) -> Tensor:
        """Return token ids (batch_size, sequence_length + 1)."""
        generator = torch.Generator().manual_seed(step)
        return torch.randint(self.vocab_size, (batch_size, sequence_length + 1), generator=generator)


def shaped(config: dict[str, Any], *overrides: str) -> Any:
    """Return the settings of `compress` for a Llama of which only config.json is there."""
    settings = compose("train", "+experiment=compress", f"data.vocab_size={config['vocab_size']}", *overrides)
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(Path(folder), config)
        settings.model = filled(OmegaConf.to_container(settings.model, resolve=True), shape)  # type: ignore[arg-type]
    return settings


def parameters(config: dict[str, Any]) -> int:
    """Return the parameters of a supernet of a Llama's shape, built on the meta device."""
    model = OmegaConf.to_container(shaped(config).model)
    with torch.device("meta"):
        supernet = build_supernet(model, config["vocab_size"])  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in supernet.parameters())


def train(overrides: list[str]) -> None:
    """Train to the end of a short schedule, with everything that `train.py` keeps beside it."""
    with tempfile.TemporaryDirectory() as folder:
        config = stage.with_shape(compose("train", f"runs_dir={folder}", *overrides))
        data: Any = NoText(config.data.vocab_size or SHARDED["vocab_size"])
        supernet = stage.make_supernet(config, data)
        training = stage.make_training(config, supernet, make_teacher(config, supernet))
        run = stage.Run(Path(folder), finished=False, command="", origin={})
        stage.train(config, run, training, data)


def load(folder: list[str]) -> None:
    """Load a checkpoint folder as the initial weights."""
    config = stage.with_shape(
        compose("train", "+experiment=compress", f"model.init={folder[0]}", "data.tokenizer_file=x")
    )
    data: Any = NoText(1)
    initial_supernet(OmegaConf.to_container(config.model, resolve=True), data, 0, torch.device("cpu"))  # type: ignore[arg-type]


def save_shards(
    folder: Path, config: dict[str, Any], shard_bytes: float, dtype: torch.dtype = torch.float32
) -> tuple[int, int]:
    """Write a Llama of some shape, random, in shards; return the bytes of all weights and of the largest shard."""
    shape = Shape(folder, config)
    shards: list[dict[str, Tensor]] = [{}]
    for name, axes in shape.llama.tensors().items():
        parts = name.split(".", 2)
        theirs = NAMES[name] if parts[0] != "layers" else f"model.layers.{parts[1]}.{NAMES[parts[2]]}"
        if sum(tensor.nbytes for tensor in shards[-1].values()) > shard_bytes:
            shards.append({})
        weight = (
            torch.randn(shape.llama.shape(axes)).mul_(0.02) if len(axes) > 1 else torch.ones(shape.llama.shape(axes))
        )
        shards[-1][f"{theirs}.weight"] = weight.to(dtype)
    files = {f"model-{i}.safetensors": shard for i, shard in enumerate(shards)}
    for file, shard in files.items():
        save_file(shard, folder / file)
    index = {name: file for file, shard in files.items() for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    return sum(sizes), max(sizes)


def peak_of(task: str, arguments: list[str], threshold: int | None) -> int:
    """Return the bytes that a task takes at its peak, in this process, beyond what is there before.

    On a CPU that is anonymous memory, without what of libraries' code is first needed then.

    Args:
        task: `train` or `load`.
        arguments: its own.
        threshold: bytes from which on glibc gives a block back as soon as it is freed; None: as it sees fit.
    """
    if threshold is not None:
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, threshold)
    if torch.cuda.is_available():
        TASKS[task](arguments)
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("RssAnon")
    TASKS[task](arguments)
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def in_children(task: str, arguments: Sequence[str], thresholds: Sequence[int | None]) -> list[int]:
    """Return `peak_of` a task for each threshold, each in a process of its own forked from one with the imports."""
    calls = [(task, list(arguments), threshold) for threshold in thresholds]
    # On a GPU one after the other; main memory is many's.
    n_processes = 1 if torch.cuda.is_available() else len(calls)
    with multiprocessing.get_context("forkserver").Pool(n_processes, maxtasksperchild=1) as pool:
        return pool.starmap(peak_of, calls, chunksize=1)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        save_shards(Path(folder), SHARDED, 50 * MB)
        sizes = {
            name: _compared(name, [override.replace(LLAMA, folder) for override in overrides], repeats)
            for name, overrides in SIZES.items()
        }
    record(
        "memory_plan",
        {"sizes": sizes, "parameters": {name: counted(name) for name in LLAMAS}, "loading": _loaded(repeats)},
    )


def _compared(name: str, overrides: Sequence[str], repeats: int) -> dict[str, Any]:
    found = plan(stage.with_shape(compose("train", *overrides)))
    held = {key: size / MB for key, size in found.on(1).items()}
    row: dict[str, Any] = {
        "overrides": list(SIZES[name]),
        "parameters": found.n_parameters,
        "planned_mb": held,
        "steps_mb": {kind: size / MB for kind, size in found.beyond.items()},
    }
    # A GPU's allocator says what it has handed out, whatever it keeps.
    ways = {"measured": None} if torch.cuda.is_available() else {"measured": GIVEN_BACK, "measured_as_is": None}
    measured = iter(in_children("train", overrides, [way for way in ways.values() for _ in range(repeats)]))
    for way in ways:
        peaks = [next(measured) / MB for _ in range(repeats)]
        row[f"{way}_mb"] = spread(peaks)
        row[f"{way}_over_planned"] = spread([peak / held["total"] for peak in peaks])
    print(json.dumps({name: row}), file=sys.stderr, flush=True)
    return row


def counted(name: str) -> dict[str, int]:
    """Return the parameters of a known Llama, in a supernet of its shape and as they are known."""
    known, config = LLAMAS[name]
    return {"built": parameters(config), "known": known}


def _loaded(repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        weights, shard = save_shards(Path(folder), SHARDED, 50 * MB)
        peaks = in_children("load", [folder], [None] * repeats)
    sizes = {"weights_mb": weights / MB, "largest_shard_mb": shard / MB}
    return {**sizes, "measured_mb": spread([peak / MB for peak in peaks])}


TASKS = {"train": train, "load": load}

if __name__ == "__main__":
    main()

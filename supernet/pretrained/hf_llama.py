"""Reads, and writes, checkpoint folders of Hugging Face: config.json and safetensors, of `LlamaForCausalLM` alone.

Nothing else in the folder is opened, and no code of it is run; transformers is not needed.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supernet.errors import UserError
from supernet.files import replacing, write_text
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.hf_config import ARCHITECTURE, config_of, read_config

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
DTYPES = ("F32", "F16", "BF16")
SHARD_WEIGHTS = 250_000_000  # of a file that is written: a GB in float32
NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.norm": "input_layernorm",
    **{f"attention.{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    "mlp.norm": "post_attention_layernorm",
    **{f"mlp.{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
DERIVED = ".rotary_emb.inv_freq"  # in folders of before transformers 4.32: follows from config.json


class HuggingFaceLlama(Checkpoint):
    """A checkpoint folder.

    Args:
        folder: with config.json and model.safetensors, or its shards and their index.

    Raises:
        UserError: it is no whole `LlamaForCausalLM` in floats; the message names file, and key or tensor.
    """

    kind = ARCHITECTURE

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.llama = read_config(folder / CONFIG)
        self._file_of: dict[str, Path] = {}
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for path, wanted in _files(folder).items():
            held = _held(path)
            missing = sorted(set(wanted) - set(held))
            if missing:
                raise UserError(f"{path} lacks the tensor {missing[0]}, which {INDEX} says it holds")
            shapes |= held
            self._file_of |= dict.fromkeys(held, path)
        self._check(shapes)

    def named(self, name: str) -> str:
        """Return the tensor's name in the folder."""
        return _named(name)

    def stored(self, name: str) -> Tensor:
        """Return a weight, unchecked and in the type that it is stored in."""
        theirs = self.named(name)
        tensor = _tensor(self._file_of[theirs], theirs)
        copy = self.named("output")
        if name == "embedding" and self.llama.tied and copy in self._file_of:
            same = _tensor(self._file_of[copy], copy)
            if same.shape != tensor.shape or not same.equal(tensor):
                raise UserError(f"{self.path}: tie_word_embeddings is true, but {copy} is not the embedding")
        return tensor

    def _check(self, shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
        """Refuse tensors that are too many, too few, of another shape or type."""
        wanted = {self.named(name): self.llama.shape(axes) for name, axes in self.llama.tensors().items()}
        known = {*wanted, self.named("output")} if self.llama.tied else set(wanted)
        for name in sorted(shapes):
            where = self._file_of[name]
            if name in known or name.endswith(DERIVED):
                continue
            if "expert" in name or "moe" in name:
                raise UserError(f"{where} holds {name}; mixtures of experts are not supported")
            if name.endswith(".bias"):
                raise UserError(f"{where} holds {name}; biases are not supported")
            raise UserError(f"{where} holds {name}, which a {ARCHITECTURE} of this config.json does not have")
        for name, shape in wanted.items():
            if name not in shapes:
                raise UserError(f"{self.path} lacks the tensor {name}")
            found, dtype = shapes[name]
            if found != shape:
                raise UserError(f"{self._file_of[name]}: {name} is {found}, but config.json asks for {shape}")
            if dtype not in DTYPES:
                raise UserError(f"{self._file_of[name]}: {name} is stored as {dtype}; known are {', '.join(DTYPES)}")


def save(checkpoint: Checkpoint, folder: Path, shard_weights: int = SHARD_WEIGHTS) -> None:
    """Write any checkpoint as a folder that `HuggingFaceLlama` reads, each weight in the type that it is stored in.

    One shard is in memory at a time. config.json comes last.

    Args:
        checkpoint: opened.
        folder: to write to.
        shard_weights: how many weights a shard may hold, if it does not hold a single tensor.
    """
    llama = checkpoint.llama
    shards: list[list[str]] = []
    room = 0
    for name, axes in llama.tensors().items():
        size = math.prod(llama.shape(axes))
        if not shards or size > room:
            shards.append([])
            room = shard_weights
        shards[-1].append(name)
        room -= size
    many = len(shards)
    files = [SINGLE] if many == 1 else [f"model-{i:05}-of-{many:05}.safetensors" for i in range(1, many + 1)]
    for file, names in zip(files, shards, strict=True):
        with replacing(folder / file) as temporary:
            tensors = {_named(name): checkpoint.stored(name).contiguous() for name in names}
            save_file(tensors, temporary, metadata={"format": "pt"})
    if many > 1:
        weight_map = {_named(name): file for file, names in zip(files, shards, strict=True) for name in names}
        write_text(folder / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1) + "\n")
    write_text(folder / CONFIG, json.dumps(config_of(llama), indent=1) + "\n")


def _named(name: str) -> str:
    """Return what a folder calls one of `Llama.tensors()`."""
    parts = name.split(".", 2)
    if parts[0] != "layers":
        return f"{NAMES[name]}.weight"
    return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"


def _files(folder: Path) -> dict[Path, Iterable[str]]:
    """Return each file of weights and the tensors that the index, if there is one, says it holds."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: ()}
    index = folder / INDEX
    if not index.is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            said = f"only {pickles[0]}, a pickle, which could run code and is not opened; convert it to safetensors"
            raise UserError(f"{folder} holds {said}")
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(str(shard), []).append(str(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error!r}") from None
    for shard in sorted(shards):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{index} names {shard!r}, which is no safetensors file beside it")
        if not (folder / shard).is_file():
            raise UserError(f"{folder / shard} is missing; {INDEX} names it")
    return {folder / shard: names for shard, names in sorted(shards.items())}


def _held(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every tensor of a file, from its header."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from None

"""Reads `.bin` files of llama2.c (github.com/karpathy/llama2.c, export.py, version 0).

A header of seven little-endian int32, then float32 weights, each kind for all layers at a time. Rotary positions turn
neighboring channels there, ours turn channel i with i + head_dim / 2: the rows of q and k are put in that order.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.pretrained.checkpoint import Axes, Checkpoint, Llama
from supernet.rope import Rope

HEADER = np.dtype("<i4"), 7
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
THETA, EPS = 1e4, 1e-5  # the format has no place for them
ORDER = ("attention.norm", *(f"attention.{name}_proj" for name in "qkvo"), "mlp.norm")
ORDER += ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")  # w1, w2, w3
LARGEST = 1 << 24  # of a plausible field


class Llama2C(Checkpoint):
    """A file of llama2.c.

    Args:
        path: of the file.

    Raises:
        UserError: it is something else, or shorter or longer than its header says.
    """

    kind = "llama2.c"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.llama = _llama(path)
        self._starts, n_values = _starts(self.llama)
        n_bytes, wanted = path.stat().st_size, 4 * (HEADER[1] + n_values)
        if n_bytes != wanted:
            what = "truncated" if n_bytes < wanted else "too long"
            raise UserError(f"{path} is {what}: its header asks for {wanted} bytes, it has {n_bytes}")

    def stored(self, name: str) -> Tensor:
        """Return a weight, unchecked and in the type that it is stored in."""
        shape = self.llama.shape(self.llama.tensors()[name])
        count, start = math.prod(shape), 4 * (HEADER[1] + self._starts[name])
        values = np.fromfile(self.path, "<f4", count, offset=start)
        if values.size != count:
            raise UserError(f"{self.path} is truncated: {name} is missing")
        tensor = torch.from_numpy(values.astype(np.float32, copy=False)).view(shape)
        if not name.endswith(("q_proj", "k_proj")):
            return tensor
        pairs = tensor.view(-1, self.llama.head_dim // 2, 2, shape[1])
        return pairs.transpose(1, 2).reshape(shape)


def _llama(path: Path) -> Llama:
    with path.open("rb") as file:
        head = file.read(4 * HEADER[1])
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise UserError(f"{path} is a pickle, which could run code, and is not opened; convert it to safetensors")
    values = np.frombuffer(head, HEADER[0]).tolist() if len(head) == 4 * HEADER[1] else []
    fields = dict(zip(FIELDS, values, strict=False))
    sizes = {key: abs(value) if key == "vocab_size" else value for key, value in fields.items()}
    if not values or any(not 0 < size < LARGEST for size in sizes.values()) or sizes["dim"] % sizes["n_heads"]:
        raise UserError(f"{path} is no file of llama2.c, version 0: its header is {fields or 'too short'}")
    llama = Llama(
        vocab_size=sizes["vocab_size"],
        n_layers=sizes["n_layers"],
        d_model=sizes["dim"],
        heads=sizes["n_heads"],
        kv_heads=sizes["n_kv_heads"],
        mlp_width=sizes["hidden_dim"],
        rope=Rope(sizes["dim"] // sizes["n_heads"], THETA),
        norm_eps=EPS,
        context_length=sizes["max_seq_len"],
        tied=fields["vocab_size"] > 0,  # a negative one says that there is an output projection
    )
    llama.check(str(path))
    return llama


def _starts(llama: Llama) -> tuple[dict[str, int], int]:
    """Return the position of each weight behind the header, in values, and how many values there are."""
    axes: dict[str, tuple[Axes, Axes]] = llama.tensors()
    names = ["embedding"]
    names += [f"layers.{i}.{part}" for part in ORDER for i in range(llama.n_layers)]
    starts, position = {}, 0
    for name in [*names, "norm"]:
        starts[name] = position
        position += math.prod(llama.shape(axes[name]))
    position += llama.context_length * llama.head_dim  # cosines and sines, which we compute ourselves
    if not llama.tied:
        starts["output"] = position
        position += math.prod(llama.shape(axes["output"]))
    return starts, position

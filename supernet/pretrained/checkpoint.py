"""A pretrained Llama whatever file it lies in: its shape, and one tensor at a time."""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.rope import Rope

Axes = tuple[str, ...]  # names of attributes of `Llama`
ATTENTION: dict[str, tuple[Axes, Axes]] = {
    "norm": (("d_model",), ()),
    "q_proj": (("kv_heads", "heads_per_kv", "head_dim"), ("d_model",)),
    "k_proj": (("kv_heads", "head_dim"), ("d_model",)),
    "v_proj": (("kv_heads", "head_dim"), ("d_model",)),
    "o_proj": (("d_model",), ("kv_heads", "heads_per_kv", "head_dim")),
}
MLP: dict[str, tuple[Axes, Axes]] = {
    "norm": (("d_model",), ()),
    "gate_proj": (("mlp_width",), ("d_model",)),
    "up_proj": (("mlp_width",), ("d_model",)),
    "down_proj": (("d_model",), ("mlp_width",)),
}


@dataclass(frozen=True)
class Llama:
    """What a Llama is but for its weights.

    Attributes:
        vocab_size: rows of the embedding; a tokenizer may have fewer tokens.
        n_layers: layers, all alike.
        d_model: width of the residual stream.
        heads: query heads.
        kv_heads: key-value heads.
        mlp_width: hidden channels of the feed-forward network.
        rope: rotary positions, with the channels of a head.
        norm_eps: of the norms.
        context_length: tokens it was made for.
        tied: the output projection is the embedding.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    heads: int
    kv_heads: int
    mlp_width: int
    rope: Rope
    norm_eps: float
    context_length: int
    tied: bool

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.rope.head_dim

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    def check(self, where: str) -> None:
        """Raise UserError, naming `where` it stands, for sizes that no Llama has."""
        if self.heads % self.kv_heads:
            raise UserError(f"{where}: {self.kv_heads} key-value heads do not divide {self.heads} heads")
        if self.head_dim % 2:
            raise UserError(f"{where}: heads of {self.head_dim} channels; rotary positions need an even number")

    def tensors(self) -> dict[str, tuple[Axes, Axes]]:
        """Return the axes (out, in) of every weight, by its name in a supernet without `.weight`."""
        table: tuple[Axes, Axes] = (("vocab_size",), ("d_model",))
        found: dict[str, tuple[Axes, Axes]] = {"embedding": table, "norm": (("d_model",), ())}
        if not self.tied:
            found["output"] = table
        for i in range(self.n_layers):
            found |= {f"layers.{i}.attention.{name}": axes for name, axes in ATTENTION.items()}
            found |= {f"layers.{i}.mlp.{name}": axes for name, axes in MLP.items()}
        return found

    def sizes(self, axes: Axes) -> tuple[int, ...]:
        """Return the sizes of named axes."""
        return tuple(int(getattr(self, axis)) for axis in axes)

    def shape(self, axes: tuple[Axes, Axes]) -> tuple[int, ...]:
        """Return the shape (out, in) of a matrix, or (out,) of a norm."""
        return tuple(math.prod(self.sizes(side)) for side in axes if side)


class Checkpoint(ABC):
    """A file or folder that was opened and found to hold a whole Llama; weights are read when they are asked for.

    Attributes:
        path: of the file or folder.
        kind: what it is, for reports.
        llama: its shape.
    """

    path: Path
    kind: str
    llama: Llama

    def tensor(self, name: str) -> Tensor:
        """Return a weight in float32, (out, in) or (out,), rows of q and k in our order of rotary positions.

        Args:
            name: one of `llama.tensors()`.

        Raises:
            UserError: it holds numbers that are not finite, or the file is damaged.
        """
        tensor = self.stored(name)
        # Both ends tell (NaN is either); `isfinite` of all would take several times the memory of the tensor.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(f"{self.path}: {self.named(name)} holds numbers that are not finite")
        return tensor.float()

    def named(self, name: str) -> str:
        """Return how the file itself calls a weight, for messages."""
        return name

    def fingerprint(self) -> str:
        """Return a hash of shape and values, wherever they lie and in whatever type of float."""
        digest = hashlib.sha256(repr(self.llama).encode())
        for name in self.llama.tensors():
            digest.update(self.tensor(name).contiguous().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def stored(self, name: str) -> Tensor:
        """Return a weight as `tensor` does, unchecked and in the type that it is stored in."""

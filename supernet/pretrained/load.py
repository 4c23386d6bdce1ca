"""From a checkpoint to the weights of a supernet, tensor by tensor."""

import math
from pathlib import Path

import torch

from supernet.errors import UserError
from supernet.model import Supernet
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.hf_llama import CONFIG, HuggingFaceLlama
from supernet.pretrained.llama2c import Llama2C

PADDED = ("d_model", "kv_heads", "mlp_width")  # axes that may be longer in the supernet: zeros there change nothing


def open_checkpoint(path: Path) -> Checkpoint | None:
    """Return what lies at a path: a checkpoint folder, a `.bin` file; None where it must be a run of ours.

    Raises:
        UserError: a checkpoint that cannot be taken.
    """
    if path.is_file():
        return Llama2C(path)
    weights = [found for pattern in ("*.safetensors", "*.bin") for found in path.glob(pattern)]
    return HuggingFaceLlama(path) if weights or (path / CONFIG).exists() else None


@torch.no_grad()
def load_checkpoint(supernet: Supernet, checkpoint: Checkpoint) -> None:
    """Give the supernet's largest net the weights of a checkpoint, exactly; the rest of its weights is zeros.

    At any time one tensor is in memory twice. Channels and heads beyond the checkpoint's own have weights of zero: they
    add zero to what the net computes. Where the stream has D instead of d channels its mean square is d / D of what it
    was, which gains times sqrt(d / D) undo, with d / D of the epsilon (`fill.filled`).

    Raises:
        UserError: the shapes do not agree, or the file holds what is no weight.
    """
    llama = checkpoint.llama
    own = {n.removesuffix(".weight"): p for n, p in supernet.named_parameters() if n.endswith(".weight")}
    theirs, gain = llama.tensors(), math.sqrt(llama.d_model / supernet.d_model[-1])
    if own.keys() != theirs.keys():
        raise _another_shape(checkpoint)
    for name, axes in theirs.items():
        sizes, names = llama.sizes(axes[0] + axes[1]), axes[0] + axes[1]
        parameter = own[name]
        fits = len(sizes) == parameter.ndim and all(
            size == there or (size < there and axis in PADDED)
            for size, there, axis in zip(sizes, parameter.shape, names, strict=True)
        )
        if not fits:
            raise _another_shape(checkpoint)
        parameter.zero_()
        weight = checkpoint.tensor(name).view(sizes)
        parameter[tuple(slice(size) for size in sizes)] = weight if axes[1] else weight * gain


def _another_shape(checkpoint: Checkpoint) -> UserError:
    return UserError(f"the largest net and {checkpoint.path} differ in shape; null in model and its blocks takes that")

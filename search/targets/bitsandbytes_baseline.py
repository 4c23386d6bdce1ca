"""Uniform formats after training, by bitsandbytes itself: what a search has to beat on the Hugging Face target."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from search.targets.nf4 import missing
from search.targets.pytorch import PyTorch
from supernet.errors import UserError

METHODS = ("nf4", "int8")


def uniform(
    folder: Path, rows: np.ndarray, method: str, device: str = "auto", timeout_s: float = 600
) -> dict[str, float]:
    """Quantize every matrix but the embedding of a checkpoint while it is loaded, and evaluate it in a child process.

    Args:
        folder: a checkpoint of floats, as `search.targets.huggingface.export` writes it; all formats best F16.
        rows: token ids (n, T + 1).
        method: `nf4` (QLoRA, arXiv 2305.14314; no double quantization), or `int8` (LLM.int8, arXiv 2208.07339:
            weights and activations in 8 bits, but activations of 6 and more).
        device: auto, cuda or cpu.
        timeout_s: for all of it.

    Returns:
        loss (nats per token), accuracy, and bytes: of codes and scales, with other matrices in F16 and norms in F32.

    Raises:
        UserError: an unknown method, a package that is missing, or the folder could not be loaded or run.
    """
    if method not in METHODS:
        raise UserError(f"bitsandbytes quantizes to {' or '.join(METHODS)}, not to {method!r}")
    absent = missing()
    if absent:
        raise UserError(absent)
    runtime = PyTorch("bitsandbytes", device, "float32", 1, 1, 1, timeout_s, None)
    return runtime.need_on_rows("evaluate", folder, rows, quantize=method)

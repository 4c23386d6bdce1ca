"""The bytes of each weight format, as ggml lays them out (ggml-common.h). No torch.

Input are the codes and scales that `WeightFormat.encode` returns, so what is shipped is what was trained:
nothing is quantized here.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType

Packer = Callable[..., np.ndarray]

GROUP = 32

# Ours: llama.cpp has no call that returns the sum of key and value entries over layers.
KV_VALUES_KEY = "supernet.kv_values_per_token"


def _plain(codes: np.ndarray) -> np.ndarray:
    """Return the codes: floats are stored as they are."""
    return codes


def _blocks(scales: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """Return rows (out, bytes) of blocks that hold a float16 scale and then `parts` (out, groups, bytes)."""
    n_out, n_groups = scales.shape
    scale_bytes = np.ascontiguousarray(scales).view(np.uint8).reshape(n_out, n_groups, 2)
    return np.concatenate((scale_bytes, *parts), axis=-1).reshape(n_out, -1)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Return (out, groups, 16) bytes: code i of a group in byte i's low half, code i + 16 in its high."""
    low, high = np.split(codes & 15, 2, axis=-1)
    return low | high << 4


def _unsigned(codes: np.ndarray, offset: int) -> np.ndarray:
    """Return codes + offset as uint8, in groups (out, groups, 32)."""
    return (codes + np.int8(offset)).astype(np.uint8).reshape(len(codes), -1, GROUP)


def _q8_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _blocks(scales, np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1, GROUP))


def _q5_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    shifted = _unsigned(codes, 16)
    fifth_bits = np.packbits(shifted >> 4, axis=-1, bitorder="little")
    return _blocks(scales, fifth_bits, _nibbles(shifted))


def _q4_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _blocks(scales, _nibbles(_unsigned(codes, 8)))


# A format of supernet/formats.py ships to llama.cpp when it is listed here under its name.
PACKERS: dict[str, tuple[GGMLQuantizationType, Packer]] = {
    "F32": (GGMLQuantizationType.F32, _plain),
    "F16": (GGMLQuantizationType.F16, _plain),
    "Q8_0": (GGMLQuantizationType.Q8_0, _q8_0),
    "Q5_0": (GGMLQuantizationType.Q5_0, _q5_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, _q4_0),
}

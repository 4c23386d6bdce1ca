"""The bytes of each weight format, as ggml lays them out (ggml-common.h). No torch.

Input are the parts that `WeightFormat.encode` returns for a matrix (out, in), codes first, so what is shipped
is what was trained: nothing is quantized here.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import IQ4_NL

Packer = Callable[..., np.ndarray]

GROUP, K_GROUP = 32, 256

# Ours: llama.cpp has no call that returns the sum of key and value entries over layers.
KV_VALUES_KEY = "supernet.kv_values_per_token"


def _plain(codes: np.ndarray) -> np.ndarray:
    """Return the codes: floats are stored as they are."""
    return codes


def _blocks(*parts: np.ndarray) -> np.ndarray:
    """Return rows (out, bytes) of blocks that hold one after another the `parts` (out, groups, bytes)."""
    return np.concatenate(parts, axis=-1).reshape(len(parts[0]), -1)


def _bytes(values: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the memory of `values` (out, ...) as bytes (out, groups, bytes)."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), n_groups, -1)


def _grouped(codes: np.ndarray, offset: int, *shape: int) -> np.ndarray:
    """Return codes + offset as uint8, in groups (out, groups, *shape)."""
    return (codes + np.int8(offset)).astype(np.uint8).reshape(len(codes), -1, *shape)


def _stacked(digits: np.ndarray, bits: int) -> np.ndarray:
    """Return (..., n) bytes that hold (..., 8 / bits, n) digits of `bits` bits, the first in the lowest."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(digits << shifts, axis=-2)


def _q8_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    n = scales.shape[1]
    return _blocks(_bytes(scales, n), _bytes(codes, n))


def _q5_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    shifted = _grouped(codes, 16, GROUP)
    fifth_bits = np.packbits(shifted >> 4, axis=-1, bitorder="little")
    nibbles = _stacked((shifted & 15).reshape(*shifted.shape[:2], 2, -1), 4)
    return _blocks(_bytes(scales, scales.shape[1]), fifth_bits, nibbles)


def _q4_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _blocks(_bytes(scales, scales.shape[1]), _stacked(_grouped(codes, 8, 2, GROUP // 2), 4))


def _iq4_nl(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    places = np.searchsorted(IQ4_NL.kvalues, codes).astype(np.int8)
    return _blocks(_bytes(scales, scales.shape[1]), _stacked(_grouped(places, 0, 2, GROUP // 2), 4))


def _quarters(codes: np.ndarray) -> np.ndarray:
    """Return (out, groups, 64) bytes of 2-bit codes: each half of a group is four runs of 32."""
    n_out, n_groups = codes.shape[:2]
    return _stacked(codes.reshape(n_out, n_groups, 2, 4, 32), 2).reshape(n_out, n_groups, 64)


def _q6_k(codes: np.ndarray, scales: np.ndarray, sub_scales: np.ndarray) -> np.ndarray:
    n = scales.shape[1]
    shifted = _grouped(codes, 32, K_GROUP)
    # Each half of a group: the low four bits of its 128 codes as 64 bytes of nibbles.
    nibbles = _stacked((shifted & 15).reshape(*shifted.shape[:2], 2, 2, 64), 4)
    low = nibbles.reshape(*shifted.shape[:2], K_GROUP // 2)
    return _blocks(low, _quarters(shifted >> 4), _bytes(sub_scales, n), _bytes(scales, n))


def _q3_k(codes: np.ndarray, scales: np.ndarray, sub_scales: np.ndarray) -> np.ndarray:
    n_out, n = scales.shape
    shifted = _grouped(codes, 4, K_GROUP)
    high = _stacked((shifted >> 2).reshape(n_out, n, 8, 32), 1)
    # 16 scales of six bits in twelve bytes: eight bytes of low nibbles (i beside i + 8), four of the upper two bits.
    six_bits = _grouped(sub_scales, 32, 16)
    lower = _stacked((six_bits & 15).reshape(n_out, n, 2, 8), 4)
    upper = _stacked((six_bits >> 4).reshape(n_out, n, 4, 4), 2)
    return _blocks(high, _quarters(shifted & 3), lower, upper, _bytes(scales, n))


def _q2_k(codes: np.ndarray, scales: np.ndarray, sub_scales: np.ndarray) -> np.ndarray:
    n = scales.shape[1]
    nibbles = _stacked(_grouped(sub_scales, 0, 16, 2).swapaxes(-1, -2), 4)  # scale low, minimum high
    return _blocks(nibbles, _quarters(_grouped(codes, 0, K_GROUP)), _bytes(scales, n))


# A format of supernet/formats ships to llama.cpp when it is listed here under its name.
PACKERS: dict[str, tuple[GGMLQuantizationType, Packer]] = {
    "F32": (GGMLQuantizationType.F32, _plain),
    "F16": (GGMLQuantizationType.F16, _plain),
    "Q8_0": (GGMLQuantizationType.Q8_0, _q8_0),
    "Q6_K": (GGMLQuantizationType.Q6_K, _q6_k),
    "Q5_0": (GGMLQuantizationType.Q5_0, _q5_0),
    "IQ4_NL": (GGMLQuantizationType.IQ4_NL, _iq4_nl),
    "Q4_0": (GGMLQuantizationType.Q4_0, _q4_0),
    "Q3_K": (GGMLQuantizationType.Q3_K, _q3_k),
    "Q2_K": (GGMLQuantizationType.Q2_K, _q2_k),
}

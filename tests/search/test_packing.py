"""Whatever codes and scales training may reach, ggml's blocks hold them and give the same weights back."""

import gguf
import numpy as np
import pytest
import torch

from search.targets.packing import PACKERS
from supernet.formats import FORMATS, IQ4_NL, format_named
from supernet.randomness import generator

OUT, IN = 6, 1024
# How far codes reach below zero.
CODES = {"Q8_0": 128, "IQ4_NL": 127, "Q6_K": 32, "Q5_0": 16, "Q4_0": 8, "Q3_K": 4, "Q2_K": 0}
SUB_SCALES = {"Q6_K": (-128, 127), "Q3_K": (-32, 31), "Q2_K": (0, 15)}


def legal_parts(name: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return codes, scales and sub-scales anywhere in their ranges, both ends included."""
    zero = CODES[name]
    codes = rng.integers(-zero, zero or 4, (OUT, IN)).astype(np.int8)
    if name == "IQ4_NL":
        codes = rng.choice(np.array(IQ4_NL.levels, np.int8), (OUT, IN))
    exponents = rng.uniform(-24, 15, (OUT, IN // 256, 2) if name == "Q2_K" else (OUT, IN // 256))
    scales = (np.exp2(exponents) * rng.choice([-1, 0, 1], exponents.shape)).astype(np.float16)
    if name not in SUB_SCALES:
        return codes, np.repeat(scales, 8, axis=1)
    low, high = SUB_SCALES[name]
    shape = (OUT, IN // 16, 2) if name == "Q2_K" else (OUT, IN // 16)
    sub_scales = rng.integers(low, high, shape, endpoint=True).astype(np.int8)
    return codes, scales, sub_scales


def weights(name: str, codes: np.ndarray, scales: np.ndarray, *sub_scales: np.ndarray) -> np.ndarray:
    """Return codes times scales in float32, in the order in which llama.cpp multiplies."""
    wide = scales.astype(np.float32)
    if not sub_scales:
        return codes * np.repeat(wide, 32, axis=1)
    factors = np.repeat(wide, 16, axis=1) * sub_scales[0].astype(np.float32)
    spread = np.repeat(factors, 16, axis=1)
    return codes * spread[..., 0] - spread[..., 1] if name == "Q2_K" else codes * spread


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CODES)
def test_any_legal_codes_survive(name: str, seed: int) -> None:
    parts = legal_parts(name, generator(seed, name))
    kind, pack = PACKERS[name]
    rows = pack(*parts)
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert rows.dtype == np.uint8 and rows.shape == (OUT, IN // n_weights * n_bytes)
    assert np.array_equal(gguf.dequantize(rows, kind), weights(name, *parts))


@pytest.mark.parametrize("name", [name for name in FORMATS if name in CODES])
def test_packed_bytes_decode_to_the_trained_weights(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(OUT, IN, generator=rng)
    spread = normal * torch.logspace(-8, 5, IN)[torch.randperm(IN, generator=rng)]
    sparse = normal * (torch.rand(OUT, IN, generator=rng) < 0.02)
    kind, pack = PACKERS[name]
    for weight in (normal, normal.abs(), 1e-8 * normal, 1e7 * normal, spread, sparse, torch.zeros(OUT, IN)):
        parts = format_named(name).encode(weight)
        shipped = gguf.dequantize(pack(*(part.numpy() for part in parts)), kind)
        assert np.isfinite(shipped).all()
        assert np.array_equal(shipped, format_named(name).decode(*parts).numpy())

"""Derived randomness: every draw comes from a generator seeded by (seed, purpose, step).

Nothing reads an ambient generator, so step n draws the same numbers whether the process started at
step 0 or was resumed at step n.
"""

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every part of `purpose`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator for one purpose, for instance `generator(seed, "batch", step)`."""
    return np.random.default_rng(derive(seed, *purpose))

"""The folder of a token cache: written whole, found whole or built again.

It holds one file of tokens for each split, the places where its documents start, the tokenizer, and an index with the
checksum of all of these.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from supernet.errors import UserError
from supernet.files import read_json, sha256, temporary_beside, write_json
from supernet.tokenizer import Tokenization
from supernet.tokenizer.storing import write_tokenization

SPLITS = ("train", "gate", "valid", "test")
INDEX = "index.json"

Tokenized = Iterable[tuple[str, Sequence[int] | npt.NDArray[Any]]]  # (slice, ids) of each document


def read_index(directory: Path) -> dict[str, Any]:
    """Return the index of a cache, all of whose files are as they were written.

    Raises:
        UserError: the cache is missing, incomplete or damaged.
    """
    index = read_json(directory / INDEX)
    for key in ("hash", "dtype", "slices", "row", "config", "files"):
        if key not in index:
            raise UserError(f"{directory / INDEX} is damaged: delete {directory} to have it built again")
    for name, digest in index["files"].items():
        path = directory / name
        if not path.is_file() or sha256(path) != digest:
            raise UserError(f"{path} is damaged or missing: delete {directory} to have it built again")
    return index


def is_whole(directory: Path) -> bool:
    """Return whether a cache is there, undamaged."""
    try:
        read_index(directory)
    except UserError:
        return False
    return True


def write_cache(
    directory: Path,
    splits: Mapping[str, Tokenized],
    slices: Sequence[str],
    tokenization: Tokenization,
    config: Mapping[str, Any],
    row: int = 1,
) -> None:
    """Write a cache beside its final place, then rename it there.

    Args:
        directory: its place, whose name is its hash.
        splits: of each split, in the order of `SPLITS`, its documents; read once, one split after the other.
        slices: names of all slices that occur.
        tokenization: what the ids mean.
        config: plain configuration that rebuilds the cache.
        row: windows begin at multiples of this, in tokens; 1: anywhere.
    """
    temporary = temporary_beside(directory)
    temporary.mkdir(parents=True)
    try:
        dtype = token_type(tokenization)
        write_tokenization(temporary, tokenization)
        for split in SPLITS:
            _pack(temporary, split, splits[split], dtype, slices)
        index = {"hash": directory.name, "dtype": str(dtype), "slices": list(slices), "row": row, "config": config}
        files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / INDEX, {**index, "files": files})
        try:
            temporary.rename(directory)
        except OSError:  # it exists: damaged, or another process was faster and its bytes are the same
            if not is_whole(directory):
                shutil.rmtree(directory)
                temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def token_type(tokenization: Tokenization) -> "np.dtype[Any]":
    """Return the type that ids are stored in."""
    return np.dtype(np.uint16 if tokenization.vocab_size <= 1 << 16 else np.uint32)


def _pack(folder: Path, split: str, documents: Tokenized, dtype: "np.dtype[Any]", slices: Sequence[str]) -> None:
    """Write a split's tokens, and where its documents start."""
    slice_ids = {name: number for number, name in enumerate(slices)}
    table, position = [], 0  # of each document's first token, and its slice id
    with (folder / f"{split}.bin").open("wb") as file:
        for name, ids in documents:
            table.append((position, slice_ids[name]))
            position += len(ids)
            file.write(np.asarray(ids, dtype=dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / f"{split}.documents.npy", np.array(table, dtype=np.int64).T.copy())

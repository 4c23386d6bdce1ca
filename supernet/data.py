"""Tokens: packed once into memory-mapped files, handed out as batches that are pure functions.

The cache of a corpus is a directory named by the hash of everything that decides its bytes: the
documents, the tokenizer's settings, the split fractions and `CACHE_VERSION`. It appears whole, by a
rename, or not at all; one that does not match its own checksums is built again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from supernet.caching import SPLITS, Tokenized, is_whole, read_index, write_cache
from supernet.corpus import Corpus, Document
from supernet.errors import UserError
from supernet.randomness import generator
from supernet.splits import split_documents
from supernet.tokenizer import Tokenization, train_tokenizer
from supernet.tokenizer.reading import fingerprint, load_tokenizer
from supernet.tokenizer.storing import TOKENIZER, read_tokenization

CACHE_VERSION = 2  # raised whenever the same settings would give other bytes
OTHER_TOKENIZER = (
    "was built anew, and its tokenizer is not the one this run was trained with: the same text makes another under"
    " another version of `tokenizers`; install the one of the training (`versions` in a summary.json)"
)
ENCODE_DOCUMENTS = 64  # tokenized at a time; an encoding takes many times its text's memory

Integers = npt.NDArray[np.int64]


class TokenData:
    """A finished token cache, opened for reading.

    A window is `sequence_length + 1` tokens: inputs and, shifted by one, targets. It may begin anywhere and run over
    the end of a document: `end_of_text_id`, a beginning where the tokenizer places one, its own tokens. Where the cache
    holds rows instead, each window begins with one and stays within it.

    Args:
        directory: the cache, as `prepare` wrote it.
        config: plain configuration that rebuilds it, by default the one it was first built with.

    Attributes:
        vocab_size: tokens of the tokenizer; below the size asked for when the corpus is tiny.
        hash: name of the cache; equal hashes mean equal tokens, of sampled text equal weights and settings.
        row: tokens of a row; 1 where there are none.
        tokenizer_sha256: hash of tokenizer.json, which another version of `tokenizers` may train differently.
        slices: name of each slice; slice ids index it.

    Raises:
        UserError: the cache is missing, incomplete or damaged.
    """

    def __init__(self, directory: Path, config: dict[str, Any] | None = None) -> None:
        index = read_index(directory)
        self.directory = directory
        self.config: dict[str, Any] = index["config"] if config is None else config
        self.hash: str = index["hash"]
        self.slices: list[str] = index["slices"]
        self.row: int = index.get("row", 1)  # caches of before there were rows lack it
        self.tokenization = read_tokenization(directory)
        self.tokenizer_json = self.tokenization.json
        self.tokenizer = self.tokenization.tokenizer
        self.vocab_size = self.tokenization.vocab_size
        self.end_of_text_id = self.tokenization.starts_documents[0]
        self.tokenizer_sha256: str = index["files"][TOKENIZER]
        dtype = np.dtype(index["dtype"])
        self._tokens = {split: np.memmap(directory / f"{split}.bin", dtype, mode="r") for split in SPLITS}
        # (2, documents): position of each document's first token, and its slice id.
        self._documents = {split: np.load(directory / f"{split}.documents.npy") for split in SPLITS}

    def n_tokens(self, split: str) -> int:
        """Return the number of tokens of a split, ends of text included."""
        return len(self._tokens[split])

    def batch(self, split: str, seed: int, step: int, batch_size: int, sequence_length: int) -> torch.LongTensor:
        """Return random windows (batch_size, sequence_length + 1) that depend on the arguments alone."""
        self._require(split, sequence_length)
        rng = generator(seed, "batch", split, step)
        n_starts = (self.n_tokens(split) - sequence_length - 1) // self.row + 1
        return self._windows(split, self.row * rng.integers(0, n_starts, size=batch_size), sequence_length)

    def evaluation_starts(self, split: str, n_sequences: int, sequence_length: int) -> Integers:
        """Return the first token's position of each window of `evaluation_batch` (n_sequences,)."""
        self._require(split, sequence_length)
        if self.row > 1:
            n_rows = self.n_tokens(split) // self.row
            count = min(n_sequences, n_rows)
            return self.row * np.array([(2 * i + 1) * n_rows // (2 * count) for i in range(count)])
        usable = self.n_tokens(split) - 1
        count = min(n_sequences, usable // sequence_length)
        # One window in the middle of each of `count` equal stretches.
        return np.array([((2 * i + 1) * usable // count - sequence_length) // 2 for i in range(count)])

    def evaluation_batch(self, split: str, n_sequences: int, sequence_length: int) -> torch.LongTensor:
        """Return windows spread evenly over the whole split (n_sequences, sequence_length + 1).

        No token is a target twice: a split too short for so many windows gives fewer rows.
        """
        starts = self.evaluation_starts(split, n_sequences, sequence_length)
        return self._windows(split, starts, sequence_length)

    def evaluation_slices(self, split: str, n_sequences: int, sequence_length: int) -> Integers:
        """Return the slice id of each target token of `evaluation_batch` (n_sequences, sequence_length)."""
        starts = self.evaluation_starts(split, n_sequences, sequence_length)
        return self.slice_of(split, starts[:, None] + np.arange(1, sequence_length + 1))

    def slice_of(self, split: str, positions: npt.ArrayLike) -> Integers:
        """Return the slice id of the token at each position of a split, in the shape of `positions`."""
        starts, slice_ids = self._documents[split]
        ids: Integers = slice_ids[np.searchsorted(starts, np.asarray(positions), side="right") - 1]
        return ids

    def describe(self) -> dict[str, Any]:
        """Return plain values for `data.json`, among them the configuration that rebuilds the cache."""
        return {
            "cache": str(self.directory),
            "hash": self.hash,
            "tokens": {split: self.n_tokens(split) for split in SPLITS},
            "documents": {split: self._documents[split].shape[1] for split in SPLITS},
            "n_slices": len(self.slices),
            "dtype": str(self._tokens["train"].dtype),
            "vocab_size": self.vocab_size,
            "end_of_text_id": self.end_of_text_id,
            "tokenizer_sha256": self.tokenizer_sha256,
            "config": self.config,
        }

    def _require(self, split: str, sequence_length: int) -> None:
        if sequence_length < 1:
            raise UserError(f"sequence_length is {sequence_length}; expected 1 or more")
        if 1 < self.row < sequence_length + 1:
            raise UserError(
                f"{self.directory} holds rows of {self.row} tokens, too few for sequences of {sequence_length}"
            )
        if self.n_tokens(split) < sequence_length + 1:
            remedy = "use more text or shorter sequences"
            if split != "train":
                remedy += f", or a larger data.{split}_fraction"
            raise UserError(
                f"split {split} has {self.n_tokens(split)} tokens, but one sequence of {sequence_length} "
                f"needs {sequence_length + 1}: {remedy}"
            )

    def _windows(self, split: str, starts: Integers, sequence_length: int) -> torch.LongTensor:
        positions = starts[:, None] + np.arange(sequence_length + 1)
        return torch.from_numpy(self._tokens[split][positions].astype(np.int64))  # type: ignore[return-value]


def prepare(
    corpus: Corpus,
    cache_dir: str,
    vocab_size: int | None,
    tokenizer_file: str | None,
    gate_fraction: float,
    valid_fraction: float,
    test_fraction: float,
    sequence_length: int,
) -> TokenData:
    """Open the token cache of a corpus, building it first if it is missing or damaged.

    Args:
        corpus: where the documents come from; held in memory while the cache is built.
        cache_dir: folder of all caches.
        vocab_size: tokens of the tokenizer to train on the training split; unused with a file.
        tokenizer_file: a `tokenizer.json`, a folder with one, or a sentencepiece `.model` to use instead.
        gate_fraction: share of the text for the gates' own split.
        valid_fraction: share of the text that the search sees.
        test_fraction: share of the text that only finalists see.
        sequence_length: tokens; every split must hold at least one window of it.

    Raises:
        UserError: an unreadable corpus or tokenizer, a setting out of range, or too little text.
    """
    fractions = {"gate": gate_fraction, "valid": valid_fraction, "test": test_fraction}
    config = {
        "_target_": "supernet.data.prepare",
        "corpus": corpus.describe(),
        "cache_dir": cache_dir,
        "vocab_size": vocab_size,
        "tokenizer_file": tokenizer_file,
        **{f"{split}_fraction": fraction for split, fraction in fractions.items()},
        "sequence_length": sequence_length,
    }
    given = None if tokenizer_file is None else load_tokenizer(Path(tokenizer_file))
    if given is None and vocab_size is None:
        raise UserError("data.vocab_size is null: give a size, or a data.tokenizer_file")
    documents = None
    content = corpus.fingerprint()
    if content is None:
        content = _hash_of(documents := _read(corpus))
    identity = {
        "version": CACHE_VERSION,
        "content": content,
        "tokenizer": vocab_size if given is None else fingerprint(given),
        "fractions": fractions,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(cache_dir) / name
    if not is_whole(directory):
        splits = split_documents(documents or _read(corpus), fractions)
        if given is None:
            assert vocab_size is not None
            texts = (document.text for document in splits["train"])
            given = Tokenization(train_tokenizer(texts, vocab_size).to_str(pretty=True))
        slices = sorted({document.slice for chosen in splits.values() for document in chosen})
        tokens = {split: _tokenized(split, splits[split], given) for split in SPLITS}
        write_cache(directory, tokens, slices, given, config)
    data = TokenData(directory, config)
    for split in SPLITS:
        data._require(split, sequence_length)
    return data


def _read(corpus: Corpus) -> list[Document]:
    """Return the documents that hold text, each text once: a copy in two splits would be a leak."""
    distinct: dict[str, Document] = {}
    for document in tqdm(corpus.documents(), desc="reading text", unit=" documents", disable=None):
        if document.text.strip():
            distinct.setdefault(document.text, document)
    if not distinct:
        raise UserError("the corpus is empty: no document of data.corpus holds any text")
    return list(distinct.values())


def _hash_of(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.slice, document.text):
            encoded = part.encode("utf-8", "replace")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _tokenized(split: str, documents: Sequence[Document], tokenization: Tokenization) -> Tokenized:
    """Yield slice and ids of each document, behind what starts one."""
    start = tokenization.starts_documents
    with tqdm(documents, desc=f"tokenizing {split}", unit=" documents", disable=None) as progress:
        for first in range(0, len(documents), ENCODE_DOCUMENTS):
            chosen = documents[first : first + ENCODE_DOCUMENTS]
            texts = [document.text for document in chosen]
            encodings = tokenization.tokenizer.encode_batch(texts, add_special_tokens=False)
            for document, encoding in zip(chosen, encodings, strict=True):
                yield document.slice, [*start, *encoding.ids]
            progress.update(len(texts))

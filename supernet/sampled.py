"""Text that a pretrained Llama writes itself, in place of a corpus or mixed into one (LLM-QAT, arXiv 2305.17888).

Each row begins as a text does, so the teacher sees it in training as it wrote it. Row i follows from the teacher,
the settings and i; rows are written in shards, so that a sampling that was killed goes on where it stood.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet.caching import SPLITS, Tokenized, is_whole, token_type, write_cache
from supernet.cli import progress
from supernet.corpus import Corpus
from supernet.data import TokenData
from supernet.data import prepare as prepare_corpus
from supernet.errors import UserError
from supernet.files import replacing
from supernet.generation import Distribution, generate
from supernet.losses import best_device
from supernet.original import open_original
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.decoder import decoder_of
from supernet.randomness import derive, generator
from supernet.splits import check_fractions
from supernet.tokenizer import Tokenization
from supernet.tokenizer.reading import fingerprint, load_tokenizer

CACHE_VERSION = 1  # raised whenever the same settings would give other bytes
SLICE = "sampled"


@dataclass(frozen=True)
class Sampling(Distribution):
    """How text is sampled: from which distribution of which net.

    Attributes:
        checkpoint: path of the pretrained Llama, or of a run that keeps one.
        temperature: one, or several that rows take by turns; above 1 the text is more varied than what the net
            would write, so more of what the net computes is seen.
        n_tokens: in all, rounded up to whole rows.
        seed: root of the draws.
        batch_size: rows that are sampled together, and written as one file.
    """

    temperature: float | Sequence[float]
    checkpoint: str | None
    n_tokens: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tokens < 1 or self.batch_size < 1:
            raise UserError("data.sampling: n_tokens and batch_size must be 1 or more")
        if not self.temperatures or not all(isinstance(t, int | float) and t > 0 for t in self.temperatures):
            raise UserError(f"data.sampling: temperature must be one or more numbers above 0, got {self.temperature}")

    @property
    def temperatures(self) -> list[float]:
        """Temperatures that rows take by turns."""
        return [self.temperature] if isinstance(self.temperature, int | float) else list(self.temperature)

    def describe(self) -> dict[str, Any]:
        """Return the plain configuration that builds this again."""
        temperature = self.temperature if isinstance(self.temperature, int | float) else self.temperatures
        return {"_target_": "supernet.sampled.Sampling", **asdict(self), "temperature": temperature}


class MixedData(TokenData):
    """A corpus of which, in training batches, some windows give way to rows that were sampled.

    Args:
        directory: the cache of the corpus.
        config: plain configuration that rebuilds both.
        sampled: the rows.
        share: of windows that come from there, in the mean.
    """

    def __init__(self, directory: Path, config: dict[str, Any], sampled: TokenData, share: float) -> None:
        super().__init__(directory, config)
        self.sampled, self.share = sampled, share
        self.hash = hashlib.sha256(repr((self.hash, sampled.hash, share)).encode()).hexdigest()[:16]

    def batch(self, split: str, seed: int, step: int, batch_size: int, sequence_length: int) -> torch.LongTensor:
        """Return windows as `TokenData.batch` does; those of `train` may be sampled rows."""
        windows = super().batch(split, seed, step, batch_size, sequence_length)
        if split != "train":
            return windows
        taken = generator(seed, "share", step).random(batch_size) < self.share
        rows = self.sampled.batch(split, derive(seed, SLICE), step, batch_size, sequence_length)
        return torch.where(torch.from_numpy(taken).unsqueeze(1), rows, windows)  # type: ignore[return-value]

    def describe(self) -> dict[str, Any]:
        """Return plain values for `data.json`; under `sampled` those of the rows."""
        sampled = {key: value for key, value in self.sampled.describe().items() if key != "config"}
        return {**super().describe(), "sampled": sampled}


def prepare(
    sampling: Sampling,
    share: float,
    corpus: Corpus | None,
    cache_dir: str,
    vocab_size: int | None,
    tokenizer_file: str | None,
    gate_fraction: float,
    valid_fraction: float,
    test_fraction: float,
    sequence_length: int,
) -> TokenData:
    """Open the token cache of sampled text, sampling it first if it is missing or damaged.

    Args:
        sampling: how it is sampled.
        share: of training windows that are sampled, where there is a corpus; 1: all.
        corpus: the other windows, and all of the splits but `train`; None: everything is sampled.
        cache_dir: folder of all caches.
        vocab_size: unused, as everywhere with a `tokenizer_file`.
        tokenizer_file: of the checkpoint's vocabulary; see `supernet.data.prepare`.
        gate_fraction: share of the text for the gates' own split.
        valid_fraction: share of the text that the search sees.
        test_fraction: share of the text that only finalists see.
        sequence_length: tokens; a row has one more.

    Raises:
        UserError: as `supernet.data.prepare`; the checkpoint cannot be taken, or is of another vocabulary.
    """
    fractions = {"gate": gate_fraction, "valid": valid_fraction, "test": test_fraction}
    if not 0 < share <= 1:
        raise UserError(f"data.share must be above 0 (data=text samples nothing) and at most 1, got {share}")
    check_fractions(fractions)
    if tokenizer_file is None:
        raise UserError("data.tokenizer_file is null: sampled text needs the tokenizer of its checkpoint")
    shared = {
        "cache_dir": cache_dir,
        "vocab_size": vocab_size,
        "tokenizer_file": tokenizer_file,
        **{f"{split}_fraction": fraction for split, fraction in fractions.items()},
        "sequence_length": sequence_length,
    }
    config = {
        "_target_": "supernet.sampled.prepare",
        "sampling": sampling.describe(),
        "share": share,
        "corpus": None if corpus is None else corpus.describe(),
        **shared,
    }
    if corpus is None:
        return _sampled(sampling, config, fractions)
    sampled = _sampled(sampling, config, dict.fromkeys(fractions, 0.0))  # of these splits nothing would be read
    own = prepare_corpus(corpus, **shared)  # type: ignore[arg-type]
    return MixedData(own.directory, config, sampled, share)


def _sampled(sampling: Sampling, config: dict[str, Any], fractions: dict[str, float]) -> TokenData:
    """Return the rows, sampling them where they are not cached."""
    row, path = config["sequence_length"] + 1, Path(config["tokenizer_file"])
    tokenization, checkpoint = load_tokenizer(path), open_original("data.sampling.checkpoint", sampling.checkpoint)
    llama = checkpoint.llama
    if tokenization.vocab_size > llama.vocab_size:
        known = f"{checkpoint.path} has {llama.vocab_size} embeddings"
        raise UserError(f"data.tokenizer_file: it has {tokenization.vocab_size} tokens, but {known}")
    if row > llama.context_length + 1:
        raise UserError(
            f"sequence_length={row - 1} exceeds what {checkpoint.path} was made for, {llama.context_length}"
        )
    identity = {
        "version": CACHE_VERSION,
        "checkpoint": checkpoint.fingerprint(),
        "sampling": {key: value for key, value in sampling.describe().items() if key != "checkpoint"},
        "tokenizer": fingerprint(tokenization),
        "fractions": fractions,
        "row": row,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(config["cache_dir"]) / name
    if not is_whole(directory):
        shards = directory.with_name(f"{name}.shards")
        n_rows = -(-sampling.n_tokens // row)
        counts = {split: max(1, round(fraction * n_rows)) for split, fraction in fractions.items()}
        counts = {"train": max(1, n_rows - sum(counts.values())), **counts}
        _write(shards, sampling, checkpoint, tokenization, sum(counts.values()), row)
        rows = ((SLICE, ids) for path in sorted(shards.glob("*.npy")) for ids in np.load(path))
        splits: dict[str, Tokenized] = {split: islice(rows, counts[split]) for split in SPLITS}
        write_cache(directory, splits, [SLICE], tokenization, config, row)
        shutil.rmtree(shards, ignore_errors=True)
    return TokenData(directory, config)


def _write(
    shards: Path, sampling: Sampling, checkpoint: Checkpoint, tokenization: Tokenization, n_rows: int, row: int
) -> None:
    """Sample the rows of `row` tokens in order, and write them as files of `batch_size` rows; what is there stays."""
    first, dtype, decoder = tokenization.id_of(tokenization.bos), token_type(tokenization), None
    if first is None:
        raise UserError("data.tokenizer_file: the vocabulary has no token that begins or ends a text")
    with progress(total=n_rows * row, desc="sampling text", unit="token", unit_scale=True) as bar:
        for start in range(0, n_rows, sampling.batch_size):
            numbers = range(start, min(start + sampling.batch_size, n_rows))
            path = shards / f"{start:09}.npy"
            if not path.exists():
                decoder = decoder or decoder_of(checkpoint, best_device())
                uniforms = _uniforms(sampling.seed, numbers, row - 1).to(best_device())
                temperatures = uniforms.new_tensor(
                    [sampling.temperatures[i % len(sampling.temperatures)] for i in numbers]
                )
                ids = generate(decoder, first, uniforms, temperatures, sampling, tokenization.vocab_size)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, ids.cpu().numpy().astype(dtype))
            bar.update(len(numbers) * row)


def _uniforms(seed: int, numbers: range, n_tokens: int) -> Tensor:
    """Return the draws from [0, 1) of rows by their numbers (rows, n_tokens)."""
    return torch.from_numpy(np.stack([generator(seed, SLICE, number).random(n_tokens) for number in numbers]))

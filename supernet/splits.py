"""Which document is for training and which for evaluation.

Splits are stratified twice. Each evaluation split draws one document, by hash, from every stratum of
the documents sorted by size, so a few large documents cannot decide what a split looks like. Then
documents of like size trade places between the evaluation splits until these are equally hard for a
trigram model fitted on the training split. Both matter: dealing the 667 files of the standard library
into splits of 4 %, over 12 salts of the hash, the splits' trigram losses lay 0.58 nats per token apart
by hash alone (mean of largest minus smallest), 0.33 with strata, and 0.012 with both (10 salts).
That trigram is the yardstick the swaps use; for a small transformer (one run, 1200 steps) the splits as
dealt lie 0.04 apart.

Everything is a pure function of the documents and the fractions. The trigrams are over a small
vocabulary of their own, so two tokenizers are compared on the same texts.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, pairwise

import numpy as np
import numpy.typing as npt

from supernet.corpus import Document
from supernet.errors import UserError
from supernet.tokenizer import train_tokenizer

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Of an evaluation split: a larger document is for training. The second, if the first leaves too few.
LARGEST_SHARES = (1 / 8, 1 / 2)
EVALUATED_SHARE = 1 / 2  # of the documents small enough for evaluation; above that, they are too few
PIECE_BYTES = (512, 65536)  # smallest and largest length that documents are cut to
MODEL_VOCABULARY = 1024
MODEL_ORDER = 2  # tokens that a token is predicted from
MODEL_BUCKETS = 1 << 22
MODEL_BYTES = 16_000_000  # of the training split, read to fit the model
MODEL_WEIGHT = 4.0  # counts that the shorter context's prediction is worth
LENGTH_WEIGHT = 0.2  # nats per token that a length off by 100 % is worth
SWAP_GROUP = 12  # neighbors by size that may trade places
SWAP_SWEEPS = 20
BALANCED_PIECES = 1000  # per split


@dataclass(frozen=True)
class _Piece:
    """A document or a stretch of one; `key` is (document index, piece index)."""

    key: tuple[int, int]
    document: Document
    n_bytes: int
    digest: bytes

    @classmethod
    def of(cls, key: tuple[int, int], document: Document) -> "_Piece":
        encoded = document.text.encode()
        return cls(key, document, len(encoded), hashlib.sha256(encoded).digest())


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise UserError for shares of the text that evaluation splits cannot have."""
    for name, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise UserError(f"data.{name}_fraction is {fraction}; expected more than 0 and less than 1")
    if sum(fractions.values()) > 0.5:
        raise UserError(f"the evaluation splits ask for {sum(fractions.values()):.0%} of the corpus; 50% at most")


def split_documents(documents: Sequence[Document], fractions: Mapping[str, float]) -> dict[str, list[Document]]:
    """Deal documents to `train` and to the evaluation splits that `fractions` names.

    Args:
        documents: the corpus; texts are distinct and not empty.
        fractions: share of the corpus's bytes for each evaluation split.

    Returns:
        Split name to documents in the corpus's order; every evaluation split gets at least one.

    Raises:
        UserError: a fraction is out of range, or the corpus is too small to be divided.
    """
    check_fractions(fractions)
    pieces, eligible = _eligible(documents, fractions)
    if len(eligible) <= len(fractions):
        raise UserError(f"the corpus is too small for {len(fractions) + 1} splits: {len(eligible)} pieces of text")
    dealt = _deal(eligible, fractions, sum(piece.n_bytes for piece in pieces))
    held_out = {piece.key for chosen in dealt.values() for piece in chosen}
    train = [piece for piece in pieces if piece.key not in held_out]
    if not train:
        raise UserError("data: the fractions of gate, valid and test leave nothing of so small a corpus to train on")
    _balance(dealt, train)
    return {name: list(_join(chosen)) for name, chosen in {"train": train, **dealt}.items()}


def _eligible(documents: Sequence[Document], fractions: Mapping[str, float]) -> tuple[list[_Piece], list[_Piece]]:
    """Return all pieces, and those small enough to evaluate on; documents are cut only if it must be."""
    whole = [_Piece.of((index, 0), document) for index, document in enumerate(documents)]
    total = sum(piece.n_bytes for piece in whole)
    wanted = sum(fractions.values()) * total
    smallest_split = min(fractions.values()) * total
    for share in LARGEST_SHARES:
        small = [piece for piece in whole if piece.n_bytes <= share * smallest_split]
        if wanted <= EVALUATED_SHARE * sum(piece.n_bytes for piece in small):
            return whole, small
    # Too few documents to fill the evaluation splits with whole ones. Only here may one document's
    # text end up in several splits, and scores then say less about documents never seen.
    length = int(min(max(LARGEST_SHARES[0] * smallest_split, PIECE_BYTES[0]), PIECE_BYTES[1]))
    cut = [
        _Piece.of((index, number), replace(document, text=text))
        for index, document in enumerate(documents)
        for number, text in enumerate(_cut(document.text, length))
    ]
    return cut, cut


def _cut(text: str, length: int) -> Iterator[str]:
    """Yield stretches of at most `length` characters that end with a line, or else anywhere."""
    start = 0
    while start < len(text):
        end = start + length
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _deal(eligible: list[_Piece], fractions: Mapping[str, float], total: int) -> dict[str, list[_Piece]]:
    """Give every evaluation split one piece, the lowest hash, from each of its strata by size."""
    available = sum(piece.n_bytes for piece in eligible)
    left = sorted(eligible, key=lambda piece: (piece.n_bytes, piece.digest))
    dealt: dict[str, list[_Piece]] = {}
    for name, fraction in fractions.items():
        count = max(1, round(fraction * total / available * len(eligible)))
        bounds = [len(left) * stratum // count for stratum in range(count + 1)]
        strata = [left[start:end] for start, end in pairwise(bounds)]
        dealt[name] = [min(stratum, key=lambda piece: piece.digest) for stratum in strata if stratum]
        taken = {piece.key for piece in dealt[name]}
        left = [piece for piece in left if piece.key not in taken]
    return dealt


def _balance(dealt: dict[str, list[_Piece]], train: list[_Piece]) -> None:
    """Swap pieces of like size between the evaluation splits until none makes them more alike."""
    if min(len(chosen) for chosen in dealt.values()) > BALANCED_PIECES:
        return  # so many are alike by the law of large numbers, and not worth the time
    model = _TokenModel(train)
    pieces = [piece for chosen in dealt.values() for piece in chosen]
    owner = np.repeat(np.arange(len(dealt)), [len(chosen) for chosen in dealt.values()])
    costs = np.stack([model.costs(piece.document.text) for piece in pieces])
    n_tokens, nats = costs[:, 0], costs[:, 1:]
    # What a piece costs beyond the mean rate, and its length: a split's mean of both should be zero.
    excess = (nats - n_tokens[:, None] * (nats.sum(0) / n_tokens.sum())) / n_tokens.mean()
    length = (n_tokens[:, None] - n_tokens.mean()) / n_tokens.mean()
    # Rounded, so that the last bit of another machine's logarithm does not decide a swap.
    values = np.round(np.concatenate([excess, LENGTH_WEIGHT * length], axis=1), 6)
    count = np.bincount(owner).astype(np.float64)
    sums = np.stack([values[owner == split].sum(0) for split in range(len(dealt))])
    by_size = sorted(range(len(pieces)), key=lambda index: (pieces[index].n_bytes, pieces[index].digest))
    groups = [by_size[start : start + SWAP_GROUP] for start in range(0, len(pieces), SWAP_GROUP // 2)]
    for _ in range(SWAP_SWEEPS):
        swapped = False
        for first, second in (pair for group in groups for pair in combinations(group, 2)):
            a, b = owner[first], owner[second]
            if a == b:
                continue
            moved = values[second] - values[first]
            before = _unevenness(sums[a] / count[a]) + _unevenness(sums[b] / count[b])
            after = _unevenness((sums[a] + moved) / count[a]) + _unevenness((sums[b] - moved) / count[b])
            if after < before - 1e-9:
                sums[a] += moved
                sums[b] -= moved
                owner[first], owner[second] = b, a
                swapped = True
        if not swapped:
            break
    for split, name in enumerate(dealt):
        dealt[name] = [piece for piece, mine in zip(pieces, owner, strict=True) if mine == split]


def _unevenness(deviation: Floats) -> float:
    return float(deviation @ deviation)


class _TokenModel:
    """Smoothed n-grams over the tokens of a small BPE, counted in hashed buckets."""

    def __init__(self, train: list[_Piece]) -> None:
        texts: list[str] = []
        read = 0
        # By hash, so that a corpus larger than the budget is sampled rather than read from its start.
        for piece in sorted(train, key=lambda piece: piece.digest):
            texts.append(piece.document.text)
            read += piece.n_bytes
            if read > MODEL_BYTES:
                break
        self.tokenizer = train_tokenizer(texts, MODEL_VOCABULARY)
        self.counts = np.zeros((MODEL_ORDER + 1, MODEL_BUCKETS))
        for text in texts:
            for order, buckets in enumerate(self._ngrams(text)):
                np.add.at(self.counts[order], buckets, 1)
        self.n_tokens = self.counts[0].sum()

    def costs(self, text: str) -> Floats:
        """Return the number of tokens and, for each order but the lowest, the text's nats."""
        grams = self._ngrams(text)
        probability = (self.counts[0][grams[0]] + 1) / (self.n_tokens + MODEL_VOCABULARY)
        costs = [float(len(grams[0]))]
        for order in range(1, MODEL_ORDER + 1):
            # The context's count is that of the shorter n-gram which ended one token before.
            context = np.concatenate([[0.0], self.counts[order - 1][grams[order - 1][:-1]]])
            seen = np.minimum(self.counts[order][grams[order]], context)
            probability = (seen + MODEL_WEIGHT * probability) / (context + MODEL_WEIGHT)
            costs.append(float(-np.log(probability).sum()))
        return np.array(costs)

    def _ngrams(self, text: str) -> list[Integers]:
        """Return, for 1 to MODEL_ORDER + 1 tokens, the bucket of the n-gram that ends at each token."""
        tokens = np.array(self.tokenizer.encode(text).ids, dtype=np.int64)
        gram = tokens
        buckets = [tokens]
        for back in range(1, MODEL_ORDER + 1):
            earlier = np.concatenate([np.zeros(min(back, len(tokens)), np.int64), tokens[:-back]])
            gram = gram + (earlier + 1) * (MODEL_VOCABULARY + 1) ** back
            buckets.append((gram * 0x9E3779B1 >> 7) % MODEL_BUCKETS)  # multiplied to spread over the buckets
        return buckets


def _join(pieces: list[_Piece]) -> Iterator[Document]:
    """Yield documents in the corpus's order, neighboring pieces of one document as one."""
    ordered = sorted(pieces, key=lambda piece: piece.key)
    # Neighbors' piece number and rank rise together, so their difference names the run.
    runs = groupby(enumerate(ordered), key=lambda item: (item[1].key[0], item[1].key[1] - item[0]))
    for _, run in runs:
        members = [piece.document for _, piece in run]
        yield replace(members[0], text="".join(document.text for document in members))

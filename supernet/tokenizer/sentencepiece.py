"""sentencepiece's `.model` file, read as data and turned into a BPE of the tokenizers library with equal ids.

The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto; field numbers below are that file's. Its BPE
always merges the neighbors whose union is the piece of the highest score. So any two pieces whose union is a piece are
a merge here, in the order of that score.

Where a model was trained with `remove_extra_whitespaces`, sentencepiece also drops leading, trailing and repeated
spaces. Neither llama.cpp nor transformers' Llama does, and a text could not be written back, so it is not done here:
ids differ from sentencepiece's on texts with such spaces, and there only.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
BYTES = [f"<0x{value:02X}>" for value in range(256)]


@dataclass(frozen=True)
class Piece:
    """One token: its text (spaces as ▁), its score and its type."""

    text: str
    score: float
    kind: int


def convert(content: bytes) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer, and the content of the tokenizer_config.json that belongs to it.

    Args:
        content: of the file.

    Raises:
        ValueError: it is no sentencepiece model, or one that cannot be turned into a BPE; the text says why.
    """
    pieces, trainer, normalizer = _parts(content)
    if not pieces:
        raise ValueError("it is no sentencepiece model")
    kind = trainer.get(3, 1)
    if kind != 2:
        raise ValueError(f"it is a {MODEL_TYPES.get(kind, kind)} model of sentencepiece; only BPE is read")
    if normalizer.get(2) or not normalizer.get(5, 1) or trainer.get(24, 0):
        raise ValueError("it normalizes text, or keeps spaces otherwise than as a ▁ before a word")
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        raise ValueError("it has a piece twice")
    other = next((piece.text for piece in pieces if piece.kind in (USER_DEFINED, UNUSED)), None)
    if other is not None:
        raise ValueError(f"piece {other!r} is user-defined or unused, which is not supported")
    if any(ids.get(text) is None or pieces[ids[text]].kind != BYTE for text in BYTES):
        raise ValueError("it lacks tokens for single bytes (byte_fallback)")
    special = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    bos, eos = (_at(pieces, trainer.get(field, default)) for field, default in ((41, 1), (42, 2)))

    tokenizer = Tokenizer(models.BPE(ids, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(normalizer.get(3, 1))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
        )
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unknown}
    return tokenizer, {key: value for key, value in named.items() if value is not None}


def _at(pieces: list[Piece], i: int) -> str | None:
    """Return the piece with id `i`; None where there is none, as -1 says (a negative number has 64 bits here)."""
    return pieces[i].text if 0 <= i < len(pieces) else None


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Return every pair of pieces whose union is a piece, by falling score of the union."""
    normal = {piece.text for piece in pieces if piece.kind == NORMAL}
    longer = sorted((piece for piece in pieces if piece.kind == NORMAL and len(piece.text) > 1), key=lambda p: -p.score)
    if any(one.score == other.score for one, other in pairwise(longer)):
        raise ValueError("two of its pieces have the same score, which leaves open what is merged first")
    merges = []
    for piece in longer:
        if not normal.issuperset(piece.text):
            raise ValueError(f"piece {piece.text!r} has a character that is no piece")
        pairs = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
        merges += [pair for pair in pairs if normal.issuperset(pair)]
    return merges


def _parts(content: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """Return the pieces, and field number -> value of trainer_spec and normalizer_spec."""
    pieces: list[Piece] = []
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    try:
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append(Piece(piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number in specs:
                specs[number] |= dict(_fields(value))
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, struct.error):
        raise ValueError("it is no sentencepiece model") from None
    return pieces, specs[2], specs[3]


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a message's fields: a number, or the bytes of anything else.

    Raises:
        IndexError: the message ends in the middle of a field.
        KeyError: a wire type that this format does not use.
    """
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        if key & 7 == 0:
            value, position = _varint(content, position)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, position = _varint(content, position)
        else:
            length = {1: 8, 5: 4}[key & 7]
        if position + length > len(content):
            raise IndexError("cut short")
        yield key >> 3, content[position : position + length]
        position += length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position

"""A tokenizer as llama.cpp reads it: the `tokenizer.` keys of a GGUF file.

llama.cpp has two kinds of BPE that concern us. Model `gpt2` is byte-level: it knows how to split text by the name of
a pre-tokenizer, and would split by another rule without a word where the name is wrong. Model `llama` is that of
sentencepiece: it merges the neighbors whose union has the highest score, whatever merges there are. So what is not
known to give the same ids in llama.cpp is refused here. Read in llama.cpp's src/llama-vocab.cpp.

One difference is let through: Llama 3's expression ignores case and so takes 'ſ (U+017F) for a contraction, llama.cpp
does not. It shows only where a token crosses the place behind it.
"""

import json
from bisect import bisect
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gguf import TokenType

from supernet.errors import UserError
from supernet.tokenizer import Tokenization
from supernet.tokenizer.sentencepiece import BYTES, SPACE

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Llama 3 and Qwen 2 differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _WORDS.replace("DIGITS", "{1,3}"), _WORDS.replace("DIGITS", "")
DIGITS = "one digit at a time, then " + GPT2
# (how text is split, whether a piece that is a token is taken whole) -> llama.cpp's name
PRE_TOKENIZERS = {
    (GPT2, False): "gpt-2",
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",
    (QWEN2, False): "qwen2",
    (DIGITS, False): "smollm",
}
NORMALIZERS = (  # of model `llama`, by whether a space is put before a text
    ({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, False),
    (
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        True,
    ),
)

Content = Mapping[str, Any]


def vocabulary(tokenization: Tokenization, vocab_size: int) -> dict[str, Any]:
    """Return key -> value of all `tokenizer.` keys.

    Args:
        tokenization: the tokenizer.
        vocab_size: embeddings of the model; those that no token uses get a name as well.

    Raises:
        UserError: llama.cpp would give other ids, or the tokenizer has more tokens than there are embeddings.
    """
    tokenizer = tokenization.tokenizer
    content = json.loads(tokenizer.to_str())  # which has every key, whoever wrote the file
    if content["model"]["type"] != "BPE":
        raise UserError(f"a GGUF file needs a BPE tokenizer, not {content['model']['type']}")
    if tokenization.vocab_size > vocab_size:
        raise UserError(f"the tokenizer has id {tokenization.vocab_size - 1}, but the model {vocab_size} embeddings")
    for token in content["added_tokens"]:
        altered = token["normalized"] and not token["special"] and content["normalizer"] is not None
        if token["lstrip"] or token["rstrip"] or token["single_word"] or altered:
            raise UserError(f"a GGUF file cannot hold token {token['content']!r}: it takes in what stands around it")
    merging = bool(content["model"].get("byte_fallback"))
    values = _sentencepiece(content) if merging else _byte_level(content)
    # Rows of the embedding that no token uses still need a name.
    tokens, types = [f"[unused {i}]" for i in range(vocab_size)], [int(TokenType.UNUSED)] * vocab_size
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, int(TokenType.NORMAL)
        if merging and token in BYTES:
            types[i] = int(TokenType.BYTE)
    for token in content["added_tokens"]:
        types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if merging:
        scores = values["scores"]
        values["scores"] = [scores.get(i, 0.0) for i in range(vocab_size)]
        unknown = content["model"].get("unk_token")
        if unknown is not None:
            types[tokenizer.get_vocab()[unknown]] = int(TokenType.UNKNOWN)
    values |= {"tokens": tokens, "token_type": types, **_special(tokenization)}
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if tokenization.chat_template is not None:
        named["tokenizer.chat_template"] = tokenization.chat_template
    return named


def _special(tokenization: Tokenization) -> dict[str, Any]:
    """Return the ids of special tokens, and which of them llama.cpp places by itself."""
    before, after = tokenization.placed
    bos, eos = tokenization.bos, tokenization.eos
    if before not in ([], [bos]) or after not in ([], [eos]):
        raise UserError(f"a GGUF file cannot hold a tokenizer that writes {before} before a text and {after} after it")
    ids = {
        "bos": bos,
        "eos": eos,
        "unknown": tokenization.named("unk_token"),
        "padding": tokenization.named("pad_token"),
    }
    found = {f"{name}_token_id": tokenization.id_of(token) for name, token in ids.items()}
    placed = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    return {key: value for key, value in found.items() if value is not None} | placed


def _byte_level(content: Content) -> dict[str, Any]:
    """Return model, pre-tokenizer and merges of a byte-level BPE."""
    if content["normalizer"] is not None:
        name = content["normalizer"]["type"]
        raise UserError(f"a GGUF file cannot hold this tokenizer: llama.cpp does not normalize text ({name})")
    whole = bool(content["model"].get("ignore_merges"))
    pre = PRE_TOKENIZERS.get((_split(content["pre_tokenizer"]), whole))
    if pre is None:
        known = ", ".join(sorted(PRE_TOKENIZERS.values()))
        raise UserError(f"a GGUF file cannot hold this tokenizer: it splits text otherwise than {known} of llama.cpp")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return {"model": "gpt2", "pre": pre, "merges": merges}


def _split(splitter: Content | None) -> str:
    """Return the regular expression that a byte-level pre-tokenizer splits by; empty where it has another form."""
    steps = splitter["pretokenizers"] if splitter and splitter["type"] == "Sequence" else [splitter or {"type": ""}]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return ""
    own = last.get("use_regex", True)
    match steps[:-1]:
        case []:
            return GPT2 if own else ""
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}] if not own:
            return str(regex)
        case [{"type": "Digits", "individual_digits": True}] if own:
            return DIGITS
    return ""


def _sentencepiece(content: Content) -> dict[str, Any]:
    """Return model, scores by id and the prefix of a BPE on ▁ and bytes."""
    prefix = next((prefix for normalizer, prefix in NORMALIZERS if content["normalizer"] == normalizer), None)
    if prefix is None or content["pre_tokenizer"] is not None:
        raise UserError(
            "a GGUF file cannot hold this tokenizer: llama.cpp puts a space before every text, also one that begins"
            " with a space; use the sentencepiece model, if there is one (data.tokenizer_file=FOLDER/tokenizer.model)"
        )
    if content["model"].get("ignore_merges"):
        raise UserError("a GGUF file cannot hold this tokenizer: it has byte_fallback together with ignore_merges")
    return {"model": "llama", "pre": "default", "scores": _scores(content), "add_space_prefix": prefix}


def _scores(content: Content) -> dict[int, float]:
    """Return the score of each token that is merged, under which llama.cpp merges in the order of the merges.

    llama.cpp joins any neighbors whose union is a token, the highest score first. That comes to the same as BPE where
    each token, encoded by itself, comes out as itself: whatever stands around them, neighbors whose union it is have
    come to be by the merges it goes through alone, so the last of these is the only merge that ever makes it, and the
    score is its negative rank. A token that comes out in parts (sentencepiece has a few) must have every pair of parts
    among the merges, with no other token's merge between them, and no way for two of these pairs to overlap.

    Raises:
        UserError: llama.cpp would make a token where BPE does not.
    """
    model, added = content["model"], content["added_tokens"]
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    marked = {token["content"] for token in added} | set(BYTES)
    used = {token: _last_merge(token, ranks) for token in ids if len(token) > 1 and token not in marked}
    made = sorted(rank for rank in used.values() if rank is not None)
    scores = {ids[token]: -float(rank) for token, rank in used.items() if rank is not None}
    for token in ids:
        if len(token) == 1 or used.get(token) is not None:
            continue
        parts = [(token[:i], token[i:]) for i in range(1, len(token))]
        parts = [pair for pair in parts if all(len(part) == 1 or part in ids for part in pair)]
        found = [ranks[pair] for pair in parts if pair in ranks]
        overlap = {a for a, b in parts if a != b} & {b for a, b in parts if a != b}
        if len(found) < len(parts) or overlap or (found and bisect(made, max(found)) != bisect(made, min(found))):
            raise UserError(f"a GGUF file cannot hold this tokenizer: llama.cpp would merge parts of text to {token!r}")
        if found:
            scores[ids[token]] = -float(min(found))
    return scores


def _last_merge(token: str, ranks: Mapping[tuple[str, ...], int]) -> int | None:
    """Return the rank of the last merge that makes a token of its characters; None where they stay in parts."""
    parts, last = list(token), None
    while len(parts) > 1:
        last, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(parts)))
        if last == len(ranks):
            return None
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return last

"""Byte-level BPE as GPT-2 has it, so that llama.cpp reads it as model `gpt2` with pre-tokenizer `gpt-2`."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from supernet.errors import UserError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on `texts`; the same texts in the same order give the same tokenizer, byte for byte.

    Args:
        texts: the training split's documents.
        vocab_size: tokens wanted, the special one (id 0) included. Few texts may give fewer.

    Raises:
        UserError: `vocab_size` cannot hold the 256 bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"data.vocab_size is {vocab_size}; expected {SMALLEST_VOCABULARY} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return prepared(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        UserError: the file is missing or damaged, or the vocabulary has no `<|endoftext|>`.
    """
    if not path.is_file():
        raise UserError(f"data.tokenizer_file: {path} does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"data.tokenizer_file: {path} is no tokenizer.json: {error}") from None
    end_of_text_id(tokenizer)
    return prepared(tokenizer)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id of `<|endoftext|>`.

    Raises:
        UserError: the vocabulary, which then came from a file, has no such token.
    """
    token_id = tokenizer.token_to_id(END_OF_TEXT)
    if token_id is None:
        raise UserError(f"data.tokenizer_file: the vocabulary has no token {END_OF_TEXT}")
    return token_id


def prepared(tokenizer: Tokenizer) -> Tokenizer:
    """Set what must hold for every tokenizer here: nothing is cut, padded or read as a command."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The characters `<|endoftext|>` inside a document are text; only we place the token.
    tokenizer.encode_special_tokens = True
    return tokenizer

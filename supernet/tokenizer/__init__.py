"""A tokenizer as data: the text of its `tokenizer.json`, and of the files that go with it.

The one we train is a byte-level BPE as GPT-2 has it, which llama.cpp reads as model `gpt2`, pre-tokenizer `gpt-2`.
Others come from files, see `reading.py`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from supernet.errors import UserError

END_OF_TEXT = "<|endoftext|>"
# What separates documents in pretraining; an instruction-tuned model ends its answers with another token.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>")
BEGINNINGS = ("<|begin_of_text|>", "<s>")
SMALLEST_VOCABULARY = 257  # every byte, and the end of text
CONFIG, SPECIAL, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Tokenization:
    """What is known of a tokenizer, all of it derived from the texts of its files.

    Attributes:
        json: text of `tokenizer.json`.
        files: name -> text of what came with it: configurations, chat template, license; may be empty.
    """

    json: str
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. It takes special tokens within a text as text.

        Raises:
            UserError: the text is damaged.
        """
        try:
            return prepared(Tokenizer.from_str(self.json))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"the tokenizer is damaged: {error}") from None

    @cached_property
    def vocab_size(self) -> int:
        """Embeddings that the tokenizer needs: its ids may have gaps."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of tokenizer_config.json, completed from special_tokens_map.json."""
        return {**json.loads(self.files.get(SPECIAL, "{}")), **json.loads(self.files.get(CONFIG, "{}"))}

    def named(self, key: str) -> str | None:
        """Return the token that the configuration names, as `eos_token`; None where it names none."""
        token = self.config.get(key)
        token = token.get("content") if isinstance(token, Mapping) else token
        return token if isinstance(token, str) else None

    def id_of(self, token: str | None) -> int | None:
        """Return the id of a token, None for None or a token that the vocabulary lacks."""
        return None if token is None else self.tokenizer.token_to_id(token)

    @property
    def end_of_text(self) -> str | None:
        """The token that separates documents."""
        named = self.named("eos_token")
        known = [token for token in ENDS if self.id_of(token) is not None]
        return named if named in known else next(iter(known), named)

    @property
    def eos(self) -> str | None:
        """The token that ends what is generated."""
        return self.named("eos_token") or self.end_of_text

    @property
    def bos(self) -> str | None:
        """The token that begins a text, whether or not it is placed by itself."""
        known = [token for token in BEGINNINGS if self.id_of(token) is not None]
        return self.named("bos_token") or next(iter([*self.placed[0], *known]), self.end_of_text)

    @cached_property
    def placed(self) -> tuple[list[str], list[str]]:
        """Tokens that are placed before a text and after it, by the post-processor of tokenizer.json."""
        bare = len(self.tokenizer.encode("a", add_special_tokens=False).ids)
        encoding = self.tokenizer.encode("a")
        special = encoding.special_tokens_mask
        before = special.index(0) if 0 in special else 0
        return encoding.tokens[:before], encoding.tokens[before + bare :]

    @property
    def starts_documents(self) -> list[int]:
        """Ids that come before a document's own: the end of the one before and, where it is placed, the beginning.

        Raises:
            UserError: the vocabulary, which then came from a file, has no such end.
        """
        end = self.id_of(self.end_of_text)
        if end is None:
            known = ", ".join(ENDS)
            raise UserError(f"data.tokenizer_file: the vocabulary has no token that ends a text ({known} or eos_token)")
        placed = (self.id_of(token) for token in self.placed[0])
        return [end, *(token for token in placed if token not in (None, end))]

    @property
    def chat_template(self) -> str | None:
        """The chat template, a text in Jinja's language that we never run."""
        named = self.config.get("chat_template")
        if isinstance(named, list):  # several, each with a name
            entries = [entry for entry in named if isinstance(entry, Mapping)]
            named = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
        return self.files.get(CHAT_TEMPLATE, named if isinstance(named, str) else None)


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


def prepared(tokenizer: Tokenizer) -> Tokenizer:
    """Set what must hold for every tokenizer here: nothing is cut, padded or read as a command."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The characters `<|endoftext|>` inside a document are text; only we place the token.
    tokenizer.encode_special_tokens = True
    return tokenizer

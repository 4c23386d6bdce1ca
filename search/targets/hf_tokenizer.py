"""The files of a Hugging Face folder that belong to its tokenizer, as texts.

transformers' class is always PreTrainedTokenizerFast, which takes tokenizer.json as it is: LlamaTokenizer and others
would build a splitter and a template of their own. So of a configuration that came along only those keys go on that
say what tokens are for. None names code.
"""

import json
from typing import Any

from supernet.errors import UserError
from supernet.tokenizer import CONFIG, GENERATION, SPECIAL, Tokenization

KEPT = (
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "chat_template",
    "padding_side",
    "model_input_names",
)
DROPPED = ("custom_generate", "auto_map", "transformers_version", "_from_model_config")  # code, and whose file it was


def special_ids(tokenization: Tokenization) -> dict[str, Any]:
    """Return `bos_token_id` and `eos_token_id` as config.json has them; the second may be a list, or None."""
    own = _generation(tokenization)
    ids = {f"{end}_token_id": tokenization.id_of(getattr(tokenization, end)) for end in ("bos", "eos")}
    return {key: own.get(key, value) for key, value in ids.items()}


def tokenizer_files(tokenization: Tokenization, vocab_size: int, context_length: int) -> dict[str, str]:
    """Return name -> text of tokenizer, its configuration, generation defaults, chat template and license.

    Args:
        tokenization: the tokenizer and what came with it.
        vocab_size: embeddings of the model.
        context_length: tokens.

    Raises:
        UserError: the tokenizer is damaged, or has more tokens than the model has embeddings.
    """
    n_tokens = tokenization.vocab_size
    if n_tokens > vocab_size:
        raise UserError(f"the tokenizer has {n_tokens} tokens, the model {vocab_size} embeddings")
    tokens = {
        "bos_token": tokenization.bos,
        "eos_token": tokenization.eos,
        "unk_token": tokenization.named("unk_token"),
    }
    kept = {key: tokenization.config.get(key) for key in KEPT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **tokens,
        **{key: _plain(value) for key, value in kept.items()},
    }
    generation = {key: value for key, value in _generation(tokenization).items() if key not in DROPPED}
    licenses = {name: text for name, text in tokenization.files.items() if name not in (CONFIG, SPECIAL, GENERATION)}
    return {
        **licenses,  # and the chat template, where it is a file
        "tokenizer.json": tokenization.json,
        CONFIG: _text(config),
        GENERATION: _text({**generation, **special_ids(tokenization)}),
    }


def _generation(tokenization: Tokenization) -> dict[str, Any]:
    return json.loads(tokenization.files.get(GENERATION, "{}"))


def _plain(value: Any) -> Any:
    """Return a token, or tokens, by text alone: lstrip and the like stand in tokenizer.json."""
    if isinstance(value, dict) and "content" in value:
        return value["content"]
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _text(content: dict[str, Any]) -> str:
    # transformers' own files, so without our format version.
    return json.dumps({k: v for k, v in content.items() if v is not None}, indent=2) + "\n"

"""Tokenizers from files: a `tokenizer.json`, a folder that has one, or a `.model` of sentencepiece.

Only JSON, text and sentencepiece's protocol buffer are read, by the names below. Nothing is executed: what else lies in
a folder, as code or pickles, is never opened.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from supernet.errors import UserError
from supernet.licenses import is_license
from supernet.tokenizer import CHAT_TEMPLATE, CONFIG, GENERATION, SPECIAL, Tokenization, prepared
from supernet.tokenizer.sentencepiece import BYTES, convert
from supernet.tokenizer.storing import TOKENIZER, TOKENIZER_FILES, read_tokenization

MODEL = "tokenizer.model"
JSON_FILES = (CONFIG, SPECIAL, GENERATION)
KEY = "data.tokenizer_file"


def load_tokenizer(path: Path) -> Tokenization:
    """Read a tokenizer, and from a folder also what has to go along: configurations, chat template, license.

    Args:
        path: of a `tokenizer.json`, of a folder with one (or else a `tokenizer.model`), or of a file `*.model`. The
            folder `supernet/` of a run is such a folder, too.

    Raises:
        UserError: something is missing, damaged, or of a kind that cannot be used; one line says what.
    """
    if not path.exists():
        raise UserError(f"{KEY}: {path} does not exist")
    if (path / TOKENIZER_FILES).exists():  # the folder of a run
        return read_tokenization(path)
    files: dict[str, str] = {}
    if path.is_dir():
        files = _beside(path)
        found = next((path / name for name in (TOKENIZER, MODEL) if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{KEY}: {path} has neither {TOKENIZER} nor {MODEL}")
        path = found
    if path.suffix == ".model":
        tokenizer, config = _sentencepiece(path)
        own = json.loads(files.get(CONFIG, "{}"))
        files[CONFIG] = json.dumps({**config, **own}, indent=2, ensure_ascii=False) + "\n"
    else:
        tokenizer = _read(path)
    tokenization = Tokenization(prepared(tokenizer).to_str(pretty=True), files)
    _check(tokenization, path)
    return _with_configured_template(tokenization)


def fingerprint(tokenization: Tokenization) -> str:
    """Return what names a tokenizer in the hash of a cache; the copy that a run keeps has the same name."""
    if len(tokenization.starts_documents) == 1 and not tokenization.files:
        return hashlib.sha256(tokenization.json.encode()).hexdigest()
    return hashlib.sha256(json.dumps([tokenization.json, dict(tokenization.files)]).encode()).hexdigest()


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{KEY}: {path} is no tokenizer.json: {error}") from None


def _sentencepiece(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    try:
        return convert(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}: {path} cannot be used: {error}") from None


def _beside(folder: Path) -> dict[str, str]:
    """Return name -> text of the files that go along."""
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not (is_license(path) or path.name in (*JSON_FILES, CHAT_TEMPLATE)):
            continue
        try:
            files[path.name] = path.read_text(encoding="utf-8")
            if path.name in JSON_FILES and not isinstance(json.loads(files[path.name]), dict):
                raise ValueError("expected a JSON object")
        except (OSError, ValueError) as error:
            raise UserError(f"{KEY}: {path} is damaged: {error}") from None
    return files


def _check(tokenization: Tokenization, path: Path) -> None:
    """Refuse what cannot be trained on: no BPE, text that has no tokens, no end of text, or names without a token."""
    model = json.loads(tokenization.json)["model"]
    if model["type"] != "BPE":
        raise UserError(f"{KEY}: {path} is a {model['type']} tokenizer; only BPE can be used")
    if model.get("dropout"):
        raise UserError(f"{KEY}: {path} drops merges at random (dropout); its ids would not repeat")
    alphabet = BYTES if model.get("byte_fallback") else pre_tokenizers.ByteLevel.alphabet()
    if not set(model["vocab"]).issuperset(alphabet):
        raise UserError(f"{KEY}: {path} cannot write every text: it has tokens for some of the 256 bytes only")
    for key in ("bos_token", "eos_token", "unk_token"):
        token = tokenization.named(key)
        if token is not None and tokenization.id_of(token) is None:
            raise UserError(f"{KEY}: {CONFIG} names {token!r} as {key}, which the vocabulary of {path} lacks")
    _ = tokenization.starts_documents


def _with_configured_template(tokenization: Tokenization) -> Tokenization:
    """Let tokenizer.json place the beginning and the end of a text as the configuration wants it placed.

    `add_bos_token` and `add_eos_token` overrule the post-processor in transformers' Llama tokenizers. From here on the
    post-processor alone decides.
    """
    before, after = tokenization.placed
    placed = {"bos": list(before), "eos": list(after)}
    for end, token in (("bos", tokenization.bos), ("eos", tokenization.eos)):
        wanted = tokenization.config.get(f"add_{end}_token")
        if isinstance(wanted, bool) and wanted != bool(placed[end]):
            placed[end] = [token] if wanted and token is not None else []
    if (placed["bos"], placed["eos"]) == (before, after):
        return tokenization

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        bos, eos = ([{"SpecialToken": {"id": t, "type_id": type_id}} for t in placed[end]] for end in ("bos", "eos"))
        return [*bos, {"Sequence": {"id": sequence, "type_id": type_id}}, *eos]

    content = json.loads(tokenization.json)
    tokens = {token: tokenization.id_of(token) for token in (*placed["bos"], *placed["eos"])}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in tokens.items()},
    }
    text = Tokenizer.from_str(json.dumps(content)).to_str(pretty=True)
    return Tokenization(text, tokenization.files)

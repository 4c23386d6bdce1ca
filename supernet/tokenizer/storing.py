"""A tokenizer in the folder of a cache or a run: two files, so that the folder is complete on its own."""

from pathlib import Path
from typing import Any

from supernet.errors import UserError
from supernet.files import read_json, write_json, write_text
from supernet.tokenizer import Tokenization

TOKENIZER, TOKENIZER_FILES = "tokenizer.json", "tokenizer_files.json"


def write_tokenization(folder: Path, tokenization: Tokenization) -> None:
    """Write tokenizer.json and, where files came with it, their names and texts as tokenizer_files.json."""
    write_text(folder / TOKENIZER, tokenization.json)
    if tokenization.files:
        write_json(folder / TOKENIZER_FILES, {"files": dict(tokenization.files)})


def read_tokenization(folder: Path) -> Tokenization:
    """Read what `write_tokenization` wrote.

    Raises:
        UserError: tokenizer_files.json is damaged.
        FileNotFoundError: there is no tokenizer.json.
    """
    text = (folder / TOKENIZER).read_text(encoding="utf-8")
    return Tokenization(text, read_files(folder))


def read_files(folder: Path) -> dict[str, str]:
    """Return name -> text of the files that came with the tokenizer in `folder`; empty where none did.

    Raises:
        UserError: tokenizer_files.json is damaged.
    """
    path = folder / TOKENIZER_FILES
    if not path.exists():
        return {}
    return checked(read_json(path).get("files"), path)


def checked(files: Any, path: Path) -> dict[str, str]:
    """Return name -> text of files, as they were found in `path`.

    Raises:
        UserError: they are something else.
    """
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise UserError(f"{path} is damaged: expected names and texts of files")
    if any(Path(name).name != name for name in files):
        raise UserError(f"{path} is damaged: it has names that are paths")
    return files

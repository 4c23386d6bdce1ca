"""Where text comes from: a source hands out documents in an order that never varies.

A source's constructor takes plain values (`conf/data/*.yaml` names the class), and `describe()` gives
the same values back, so that a run directory can say how its tokens are made again.
"""

import hashlib
import json
import os
import re
import socket
import sysconfig
import threading
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import decode_source
from pathlib import Path
from typing import Any

from supernet.errors import UserError

ROW_FORMATS = {".jsonl": "json", ".parquet": "parquet"}  # suffix -> the loader's name in `datasets`
WHOLE_FILES = (".txt", ".md")
TEST_FOLDERS = {"test", "tests", "idlelib", "idle_test"}
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Document:
    """One text that is never torn between splits unless there are too few of them.

    `name` identifies the document within its corpus; `slice` is the group that scores are broken
    down by (a package, a file, a dataset).
    """

    text: str
    name: str
    slice: str


class Corpus(ABC):
    """What `supernet.data.prepare` needs from a source."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every document, always in the same order."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the plain configuration (`_target_` and arguments) that builds this source again."""

    def fingerprint(self) -> str | None:
        """Return a hash that pins the content without reading it, or None if only reading can tell."""
        return None


class StandardLibrary(Corpus):
    """The Python source of the standard library on this machine, tests left out.

    The slice is the top-level package or module. Another Python version is another corpus.
    """

    def __init__(self) -> None:
        self.root = Path(sysconfig.get_path("stdlib"))

    def documents(self) -> Iterator[Document]:
        """Yield one document per `.py` file, sorted by path.

        Raises:
            UserError: this Python ships its library without source files.
        """
        found = False
        for path in sorted(self.root.rglob("*.py"), key=lambda path: path.relative_to(self.root).parts):
            parts = path.relative_to(self.root).with_suffix("").parts
            # What is no identifier is no package of the library: site-packages, config-3.11-x86_64, ...
            if not all(part.isidentifier() for part in parts) or TEST_FOLDERS.intersection(parts[:-1]):
                continue
            if parts[-1].startswith("test_"):
                continue
            try:
                text = decode_source(path.read_bytes())
            except (SyntaxError, UnicodeDecodeError):
                continue  # deliberately broken encodings exist, as test material
            found = True
            yield Document(text, "/".join(parts) + ".py", parts[0])
        if not found:
            raise UserError(f"no Python source in {self.root}: choose another corpus, such as data=text")

    def describe(self) -> dict[str, Any]:
        """Return the plain configuration that builds this source again."""
        return {"_target_": "supernet.corpus.StandardLibrary"}


class TextFiles(Corpus):
    """The user's own files or folders of them.

    A `.txt` or `.md` file is one document, kept to the letter; each row of a `.jsonl` or `.parquet`
    file is one. The slice is the file.

    Args:
        paths: files and folders; folders are searched at every depth, hidden entries skipped.
        text_key: the column of a row that holds its text.
    """

    def __init__(self, paths: Sequence[str] | str, text_key: str) -> None:
        self.paths = (paths,) if isinstance(paths, str) else tuple(str(path) for path in paths)
        self.text_key = text_key

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the order of `paths`, within a folder sorted by path.

        Raises:
            UserError: a path is missing or has an unknown suffix, a folder holds nothing readable, a
                file is damaged, or a row lacks the text column.
        """
        for path, label in self._files():
            if path.suffix.lower() in WHOLE_FILES:
                yield Document(_read_text(path), label, label)
                continue
            for number, row in enumerate(_read_rows(path)):
                where = f"{path}, row {number + 1}"
                yield Document(_text_of(row, self.text_key, where), f"{label}:{number}", label)

    def describe(self) -> dict[str, Any]:
        """Return the plain configuration that builds this source again."""
        return {
            "_target_": "supernet.corpus.TextFiles",
            "paths": list(self.paths),
            "text_key": self.text_key,
        }

    def _files(self) -> list[tuple[Path, str]]:
        """Return every file once, with the label that names it: its path as reached from `paths`."""
        suffixes = sorted([*WHOLE_FILES, *ROW_FORMATS])
        if not self.paths:
            raise UserError("data.corpus.paths is empty: name at least one file or folder")
        files: dict[Path, str] = {}
        for given in self.paths:
            root = Path(given).expanduser()
            if not root.exists():
                raise UserError(f"data.corpus.paths: {given} does not exist")
            if root.is_file():
                if root.suffix.lower() not in suffixes:
                    raise UserError(f"data.corpus.paths: {given} is none of {', '.join(suffixes)}")
                files.setdefault(root.resolve(), root.name)
                continue
            inside = sorted(
                path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.suffix.lower() in suffixes
            )
            inside = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
            if not inside:
                raise UserError(f"data.corpus.paths: no file below {given} is one of {', '.join(suffixes)}")
            for path in inside:
                files.setdefault((root / path).resolve(), (root.name / path).as_posix())
        return list(files.items())


class HubDataset(Corpus):
    """A dataset of the Hugging Face Hub, by name; one slice.

    Args:
        name: `owner/dataset`.
        config: the dataset's configuration, or None where it has only one.
        split: the Hub's split to read; our own four splits are cut from it.
        text_key: the column that holds the text.
        streaming: read over the network row by row instead of downloading whole files first.
        revision: branch, tag or commit, or None for the newest. With a full commit hash a finished
            token cache is found again without reading the dataset.
        max_documents: stop after so many rows, or None for all of them. Text is held in memory.
    """

    def __init__(
        self,
        name: str,
        config: str | None,
        split: str,
        text_key: str,
        streaming: bool,
        revision: str | None,
        max_documents: int | None,
    ) -> None:
        if max_documents is not None and max_documents < 1:
            raise UserError(f"data.corpus.max_documents is {max_documents}; expected 1 or more, or null")
        self.name = name
        self.config = config
        self.split = split
        self.text_key = text_key
        self.streaming = streaming
        self.revision = revision
        self.max_documents = max_documents

    def documents(self) -> Iterator[Document]:
        """Yield one document per row, in the dataset's order.

        Raises:
            UserError: the Hub is out of reach, the dataset cannot be read, or a row lacks the column.
        """
        _require_hub(self.name)
        import datasets

        try:
            rows = datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                streaming=self.streaming,
                revision=self.revision,
            )
            for number, row in enumerate(rows):
                if number == self.max_documents:
                    break
                where = f"{self.name}, row {number + 1}"
                yield Document(_text_of(row, self.text_key, where), f"{self.name}:{number}", self.name)
        except UserError:
            raise
        except Exception as error:  # the Hub's clients raise from half a dozen libraries
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"data.corpus.name: cannot read {self.name} from the Hub: {reason}") from error

    def describe(self) -> dict[str, Any]:
        """Return the plain configuration that builds this source again."""
        return {"_target_": "supernet.corpus.HubDataset", **vars(self)}

    def fingerprint(self) -> str | None:
        """Return a hash when the revision is a full commit hash, which cannot come to mean other data."""
        if self.revision is None or not re.fullmatch("[0-9a-f]{40}", self.revision):
            return None
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


def _read_text(path: Path) -> str:
    # Not through `datasets`: its text loader turns CRLF into LF.
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    import datasets  # costs a second or more, which only row formats should pay

    # Streaming reads the file in place; otherwise a copy of it would land in the home directory.
    # Escaped, because `datasets` takes a name with brackets for a pattern.
    pattern = re.sub(r"([*?\[])", r"[\1]", str(path))
    try:
        yield from datasets.load_dataset(
            ROW_FORMATS[path.suffix.lower()], data_files=[pattern], split="train", streaming=True
        )
    except Exception as error:
        raise UserError(f"{path} is damaged: {(str(error).splitlines() or ['it holds no rows'])[0]}") from error


def _text_of(row: dict[str, Any], text_key: str, where: str) -> str:
    text = row.get(text_key)
    if not isinstance(text, str):
        columns = ", ".join(sorted(row))
        raise UserError(f"{where}: no text in column {text_key!r} (columns: {columns}); see data.corpus.text_key")
    return text


def _require_hub(name: str) -> None:
    """Refuse at once when the Hub is out of reach: its own client would retry for half a minute."""
    remedy = "use a local corpus (data=text or data=stdlib), or run where the Hub can be reached"
    for switch in OFFLINE_SWITCHES:
        if os.environ.get(switch, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise UserError(f"dataset {name} is on the Hugging Face Hub, but {switch} is set: {remedy}")
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    # Behind a proxy only the proxy itself can be reached directly.
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    gate = urllib.parse.urlsplit(proxy if "//" in (proxy or "") else f"//{proxy}") if proxy else endpoint
    address = (gate.hostname or "", gate.port or (80 if gate.scheme == "http" else 443))
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
            reached.set()
        except OSError:
            pass

    # In a thread, because resolving a name has no timeout of its own.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(CONNECT_TIMEOUT_S + 0.5)
    if not reached.is_set():
        raise UserError(f"dataset {name}: no connection to {address[0]}:{address[1]}: {remedy}")

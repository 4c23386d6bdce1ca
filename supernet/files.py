"""Files that are either whole or absent: written to a temporary name, flushed, renamed."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supernet.errors import UserError

FORMAT_VERSION = 1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return the name beside `path` that this process writes to first; what killed ones left of theirs is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.suffixes[-2].removeprefix(".")
        if pid == str(os.getpid()) or not (pid.isdecimal() and _runs(int(pid))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON with the format version in front, atomically."""
    write_text(path, json.dumps({"version": FORMAT_VERSION, **content}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises:
        UserError: the file is missing, is not such an object, or has an unknown format version.
    """
    content = read_object(path, ": the stage that writes it has not finished")
    version = content.pop("version", None)
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version!r}; this program reads version {FORMAT_VERSION}")
    return content


def read_object(path: Path, why_missing: str = "") -> dict[str, Any]:
    """Read a JSON object, whoever wrote it.

    Raises:
        UserError: the file is missing (the message ends with `why_missing`), or is no such object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing{why_missing}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return content


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Parts:
    """Results of a long phase as they come, by name, in a file that goes when the phase is done: a kill costs one.

    Args:
        whole: the file that the phase leaves in the end; the parts lie beside it.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, whole: Path) -> None:
        self.path = whole.with_suffix(".parts.json")
        self.known: dict[str, Any] = {}
        if self.path.exists():
            self.known = read_json(self.path).get("parts") or {}

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a result, plain values as JSON has them, made and kept unless it is known."""
        if name not in self.known:
            self.known[name] = make()
            write_json(self.path, {"parts": self.known})
        return self.known[name]

    def done(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

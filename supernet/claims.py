"""Directories of stages: who may write where, and with which settings."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from supernet.errors import UserError
from supernet.files import write_text

CONFIG, LOCK = "config.yaml", ".lock"


def leads() -> bool:
    """Return whether this is the first process of a (distributed) run: it alone locks and writes."""
    return not int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; one in which nothing came to be is removed again.

    Raises:
        UserError: another process holds it.
    """
    if not leads():  # the first process holds it, and launched this one
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is in use by another process") from None
        try:
            yield
        finally:
            if list(folder.iterdir()) == [path]:
                path.unlink()
                folder.rmdir()


def already_finished(
    folder: Path, config: Mapping[str, Any], finished: Path, fresh_key: str, free: Collection[str] = ()
) -> bool:
    """Return whether the stage in `folder` is finished; the arguments are those of `claim`.

    Raises:
        UserError: the folder holds the same stage with other settings.
    """
    differing = changed(folder, config, fresh_key)
    keys = ", ".join(key for key in differing if not _matches(key, free))
    if keys:
        raise UserError(f"{folder} was begun with other settings ({keys}); name another or say {fresh_key}")
    return finished.exists()


def changed(folder: Path, config: Mapping[str, Any], fresh_key: str, among: Collection[str] = ("*",)) -> list[str]:
    """Return the dotted keys whose settings are not those that the stage in `folder` was begun with.

    Args:
        folder: the stage's directory.
        config: all settings, resolved.
        fresh_key: how to say "start over", for the message.
        among: patterns of the keys that matter.

    Raises:
        UserError: the settings that were kept are damaged.
    """
    if not (_begun(folder) and (folder / CONFIG).exists()):
        return []
    before = read_config(folder / CONFIG, fresh_key)
    keys = {key for key, _ in _flat(before).items() ^ _flat(config).items()}
    return sorted(key for key in keys if _matches(key, among))


def read_config(path: Path, fresh_key: str) -> dict[str, Any]:
    """Return the settings that a stage kept.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(content, dict):
            return {str(key): value for key, value in content.items()}
        error: object = "no settings"
    except Exception as raised:  # any parser error at all means the same to the user
        error = raised
    raise UserError(f"{path} is damaged ({error}); {fresh_key} starts over")


def _begun(folder: Path) -> bool:
    """Return whether anything came of a stage: settings alone bind nobody, they may be the mistake that ended it."""
    return any(entry.name != CONFIG and not entry.name.startswith(".") for entry in folder.iterdir())


def check_sources(folder: Path, sources: Mapping[str, str | None]) -> None:
    """Refuse to start over in a directory that the stage itself reads from.

    Args:
        folder: the stage's directory.
        sources: setting -> path of what is read; None: nothing.

    Raises:
        UserError: one of them lies in `folder`.
    """
    for key, path in sources.items():
        if path is not None and Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"fresh=true would delete {key}={path} first: take another name")


def claim(
    folder: Path,
    config: Mapping[str, Any],
    fresh: bool,
    finished: Path,
    fresh_key: str,
    free: Collection[str] = (),
) -> bool:
    """Prepare `folder` for a stage; return whether the stage is already finished.

    Args:
        folder: the stage's directory, locked by the caller.
        config: all settings, resolved; compared with what is there, and kept as config.yaml.
        fresh: delete what is there.
        finished: the file a finished stage leaves.
        fresh_key: how to say "start over", for the message.
        free: patterns of dotted keys of settings that may differ from what is there.

    Raises:
        UserError: the folder holds the same stage with other settings.
    """
    if not leads():
        return False
    if fresh:
        for lock in list(folder.glob(f"*/*/{LOCK}")):  # searches of a run: none may be at work
            with locked(lock.parent):
                pass
        # A kill in here must leave neither a stage that looks finished nor one without its settings.
        # What is named by a candidate's number goes before the journal, which says what the number means.
        finished.unlink(missing_ok=True)
        for entry in sorted(folder.iterdir(), key=lambda entry: not entry.is_dir()):
            if entry.name not in (LOCK, CONFIG):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    elif already_finished(folder, config, finished, fresh_key, free):
        return True
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    return False


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Return dotted key -> repr of every leaf."""
    if isinstance(node, Mapping) and node:
        return {k: v for key, child in node.items() for k, v in _flat(child, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): repr(node)}

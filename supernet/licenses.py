"""Licenses that lie beside a pretrained model and have to go along with whatever is made of it."""

from pathlib import Path

from supernet.errors import UserError

NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")  # any of these, and what may follow the name
TEXT_SUFFIXES = ("", ".txt", ".md")


def is_license(path: Path) -> bool:
    """Say whether a file is a license by its name, such as LICENSE or NOTICE.txt."""
    return path.name.upper().startswith(NAMES) and path.suffix.lower() in TEXT_SUFFIXES


def licenses_of(checkpoint: Path) -> dict[str, str]:
    """Return name -> text of the licenses in a checkpoint's folder; beside a file X.bin also of one X.LICENSE.

    Raises:
        UserError: one cannot be read.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    own = {f"{checkpoint.stem}.{name}" for name in NAMES}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (is_license(path) or (folder != checkpoint and path.name in own)):
            try:
                found[path.name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {error}") from None
    return found

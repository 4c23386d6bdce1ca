"""What the scripts print: tables, and the command as it was typed."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any


def typed_command() -> str:
    """Return the command line of this process, as a user would type it."""
    return shlex.join(["python", *sys.argv])


def argument(key: str, value: object) -> str:
    """Return `key=value` as it can be typed in a shell; Hydra wants quotes around a value with `=` in it."""
    word = f'{key}="{value}"' if "=" in str(value) else f"{key}={value}"
    return shlex.quote(word)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Piped into a file the width is unknown; cutting columns there would lose numbers.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def progress(**settings: Any) -> Any:
    """Return a tqdm bar that redraws itself on a terminal and says a line now and then in a log."""
    from tqdm import tqdm

    seconds = 0.1 if sys.stderr.isatty() else 20.0
    return tqdm(mininterval=seconds, maxinterval=seconds, **settings)

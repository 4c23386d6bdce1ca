"""A worker's own side: make a scorer once, then answer task after task."""

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raised:
    """The answer of a worker whose code raised."""

    error: Exception


class Host:
    """Holds the scorer of a worker; everything goes in and out pickled, so that no pickling can fail elsewhere."""

    def start(self, payload: bytes) -> bytes:
        """Make the scorer of a pickled (folder, make_scorer, spec); return the process id."""
        return _answer(self._start, payload)

    def score(self, payload: bytes) -> bytes:
        """Return the scores of a task."""
        return _answer(lambda task: self.scorer(task), payload)

    def _start(self, message: tuple[str, Callable[[Any], Callable[[Any], Any]], Any]) -> int:
        folder, make_scorer, spec = message
        os.chdir(folder)  # relative paths mean what they mean to the search
        self.scorer = make_scorer(spec)
        return os.getpid()


def _answer(call: Callable[[Any], Any], payload: bytes) -> bytes:
    try:
        return pickle.dumps(call(pickle.loads(payload)))
    except Exception as error:
        return pickle.dumps(Raised(_portable(error)))


def _portable(error: Exception) -> Exception:
    """Return the exception with its traceback as a note, or what can be said of one that cannot be pickled."""
    error.add_note(f"In worker {os.getpid()}:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note(error.__notes__[-1])
        return substitute

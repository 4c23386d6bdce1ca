"""The append-only record of a search: one candidate a line, whole or absent."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from search.candidate import Candidate
from supernet.errors import UserError
from supernet.files import FORMAT_VERSION
from supernet.genes import SearchSpace


class Journal:
    """journal.jsonl and the candidates in it.

    A line that a kill tore off is dropped when the file is opened; any other damage is refused.

    Raises:
        UserError: a line that is not the last is damaged, or not of this search space or version.
    """

    def __init__(self, path: Path, space: SearchSpace) -> None:
        self.path = path
        self.candidates: list[Candidate] = []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            self.candidates.append(self._parse(line, number, space))
        if whole != content:
            with path.open("rb+") as file:
                file.truncate(len(whole))

    def _parse(self, line: bytes, number: int, space: SearchSpace) -> Candidate:
        where = f"{self.path}, line {number}"
        try:
            content = json.loads(line)
            version = content["version"]
            if version != FORMAT_VERSION:
                raise UserError(f"format version {version!r}; this program reads version {FORMAT_VERSION}")
            candidate = Candidate.from_json(content)
            space.check(candidate.genome)
        except UserError as error:
            raise UserError(f"{where}: {error}; fresh=true starts this search over") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged ({error!r}); fresh=true starts this search over") from None
        if candidate.id != number - 1:
            raise UserError(f"{where} is damaged: id {candidate.id}, expected {number - 1}")
        return candidate

    def append(self, candidates: Sequence[Candidate]) -> None:
        """Add candidates and wait until they are on disk."""
        lines = [json.dumps({"version": FORMAT_VERSION, **c.to_json()}, separators=(",", ":")) for c in candidates]
        with self.path.open("ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.candidates.extend(candidates)

"""Targets: one runtime each, what it can express, and the artifact made for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.genes import Value

if TYPE_CHECKING:  # a target is composed before anything heavy is needed
    from supernet.subnet import Decoder


class Target(ABC):
    """A runtime that subnets ship to.

    Attributes:
        name: as it appears in reports and file names.
    """

    name: str

    @abstractmethod
    def available(self) -> str | None:
        """Return None when artifacts can be run here, else the sentence that says what to install."""

    @abstractmethod
    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None when this target can express the architecture, else the reason."""

    @abstractmethod
    def export(self, decoder: Decoder, tokenizer_json: str, folder: Path) -> Path:
        """Write the artifact of `decoder` into `folder`, whole or not at all, and return its path."""

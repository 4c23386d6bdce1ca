"""Targets: one runtime each, what it can express, and the artifact made for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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


class Runtime(Target):
    """A target whose artifact runs on this machine, so that it can be measured.

    Attributes:
        file_name: of the artifact in the folder it is exported to.
        kv_bytes_per_value: what an entry of the key-value cache takes.
        rounds_activations: whether the inputs of quantized products are rounded, as `supernet.elastic.emulate` does.
        hardware: path of a hardware.json measured elsewhere, on the device that counts; None: this machine is it.
    """

    file_name: str
    kv_bytes_per_value: float
    rounds_activations: bool = False
    hardware: str | None = None

    @property
    def kv_format(self) -> str | None:
        """What keys and values are rounded to in the cache; None: nothing."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What a measured cost depends on: all settings but those that only say where and how long."""
        return {k: v for k, v in vars(self).items() if k not in ("name", "timeout_s", "hardware")}

    @abstractmethod
    def loads(self, path: Path) -> str | None:
        """Return None when the artifact loads and runs a token, else the reason why not."""

    @abstractmethod
    def measure(self, path: Path) -> dict[str, Any]:
        """Return `built` and what the artifact costs: times in ms, memory in MB; see the target for the keys.

        Beside the metrics of `supernet.hardware` there may be `device`, the name of what it ran on.
        """

    @abstractmethod
    def evaluate(self, path: Path, rows: np.ndarray) -> dict[str, float]:
        """Return `loss` (nats per token) and `accuracy` of token ids (n, tokens + 1)."""

    @abstractmethod
    def generate(self, path: Path, prompt: str, n_tokens: int, seed: int) -> str:
        """Return text that continues the prompt."""

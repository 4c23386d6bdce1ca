"""Targets: one runtime each, what it can express, and the artifact made for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from supernet.genes import Value

if TYPE_CHECKING:  # a target is composed before anything heavy is needed
    from supernet.subnet import Decoder
    from supernet.tokenizer import Tokenization


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

    def supports_tokenizer(self, tokenization: Tokenization, vocab_size: int) -> str | None:
        """Return None when the artifact of a net with so many embeddings can hold the tokenizer, else the reason."""
        return None

    @abstractmethod
    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write the artifact of `decoder` into `folder`, whole or not at all, and return its path.

        Args:
            decoder: any subnet.
            tokenizer_json: text of a `tokenizer.json`.
            folder: to write to.
            files: name -> text of what came with the tokenizer: chat template, license and the like.
        """


class Runtime(Target):
    """A target whose artifact runs on this machine, so that it can be measured.

    Attributes:
        file_name: of the artifact in the folder it is exported to.
        kv_bytes_per_value: what an entry of the key-value cache takes.
        rounds_activations: whether the inputs of quantized products are rounded, as `supernet.elastic.emulate` does.
        hardware: path of a hardware.json measured elsewhere, on the device that counts; None: this machine is it.
        quantizer: kinds that the runtime's own quantizer makes of the largest net in F16, as baselines.
        quantizer_name: of that quantizer, as tables show it.
    """

    file_name: str
    kv_bytes_per_value: float
    rounds_activations: bool = False
    hardware: str | None = None
    quantizer: Sequence[str] = ()
    quantizer_name: str = ""

    @property
    def kv_format(self) -> str | None:
        """What keys and values are rounded to in the cache; None: nothing."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What a measured cost depends on: all settings but those that only say where, how long and beside what."""
        return {k: v for k, v in vars(self).items() if k not in ("name", "timeout_s", "hardware", "quantizer")}

    @abstractmethod
    def loads(self, path: Path) -> str | None:
        """Return None when the artifact loads and runs a token, else the reason why not."""

    @abstractmethod
    def measure(self, path: Path) -> dict[str, Any]:
        """Return `built` and what the artifact costs: times in ms, memory in MB; see the target for the keys.

        Beside the metrics of `supernet.hardware` there may be `device`, the name of what it ran on.
        """

    @abstractmethod
    def token_scores(self, path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the next-token loss in nats, and whether the target was the likeliest, of each token (n, tokens).

        Args:
            path: of an artifact.
            rows: token ids (n, tokens + 1); each row is a sequence of its own.
        """

    def evaluate(self, path: Path, rows: np.ndarray) -> dict[str, float]:
        """Return `loss` and `accuracy`: the means of `token_scores`, which has the same arguments."""
        losses, hits = self.token_scores(path, rows)
        return {"loss": float(losses.mean(dtype=np.float64)), "accuracy": float(hits.mean())}

    def quantized(self, path: Path, kind: str, folder: Path) -> tuple[Path, int]:
        """Let the runtime's own quantizer make an artifact, whole or not at all; only where there is a `quantizer`.

        Args:
            path: of an artifact in F16.
            kind: of those that the constructor accepts as `quantizer`.
            folder: to write to.

        Returns:
            Its path, and the bytes of its tensors as `size_mb` counts them.
        """
        raise NotImplementedError

    @abstractmethod
    def generate(self, path: Path, prompt: str, n_tokens: int, seed: int) -> str:
        """Return text that continues the prompt."""

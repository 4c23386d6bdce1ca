"""Rotary positions (arXiv 2104.09864), and how Llama 3 stretches them to longer contexts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from supernet.errors import UserError


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow rotations become slower, fast ones stay: `llama3` in transformers' modeling_rope_utils.py.

    Attributes:
        factor: what slow frequencies are divided by.
        low_freq_factor: slow is what turns less often than this within the original context.
        high_freq_factor: fast is what turns more often; in between the divisor goes over smoothly.
        original_max_position_embeddings: the original context, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def divisors(self, frequencies: Tensor) -> Tensor:
        """Return what each frequency (head_dim / 2,), in radians a token, is divided by."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        fast = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        fast = fast.clamp(0, 1)
        return 1 / ((1 - fast) / self.factor + fast)


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the channels of a head.

    Attributes:
        head_dim: channels of a head.
        theta: base of the frequencies.
        scaling: of the frequencies; None: as they are.
    """

    head_dim: int
    theta: float
    scaling: Llama3Scaling | None = None

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Return the unscaled frequencies (head_dim / 2,), in radians a token."""
        return self.theta ** (-torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim)

    def divisors(self) -> Tensor | None:
        """Return what each frequency (head_dim / 2,) is divided by; None where nothing is."""
        return None if self.scaling is None else self.scaling.divisors(self.frequencies())

    def table(self, n_tokens: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Return the cosines and signed sines, each (n_tokens, head_dim)."""
        frequencies = self.frequencies(device)
        if self.scaling is not None:
            frequencies = frequencies / self.scaling.divisors(frequencies)
        angles = torch.outer(torch.arange(n_tokens, device=device, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def scaling_json(self) -> dict[str, Any] | None:
        """Return the scaling as plain values under transformers' names, without its type."""
        return None if self.scaling is None else asdict(self.scaling)


def check_scaling(key: str, settings: Mapping[str, Any] | None) -> Llama3Scaling | None:
    """Return the scaling that plain settings describe; None for none.

    Args:
        key: where they are set, for the message.
        settings: the attributes of `Llama3Scaling`; `rope_type: llama3` may stand beside them.

    Raises:
        UserError: a key is missing or unknown, or a value makes no sense.
    """
    if settings is None:
        return None
    names = [entry.name for entry in fields(Llama3Scaling)]
    if settings.get("rope_type", "llama3") != "llama3":
        raise UserError(f"{key}.rope_type must be llama3, got {settings['rope_type']!r}")
    settings = {name: value for name, value in settings.items() if name != "rope_type"}
    if set(settings) != set(names):
        raise UserError(f"{key} must hold {', '.join(names)}, got {', '.join(map(str, settings)) or 'nothing'}")
    for name in names:
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise UserError(f"{key}.{name} must be a number above 0, got {value!r}")
    scaling = Llama3Scaling(**{name: settings[name] for name in names})
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise UserError(f"{key}: low_freq_factor must be below high_freq_factor")
    return scaling

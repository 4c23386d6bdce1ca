"""Text that a plain decoder writes, many sequences at a time, with a cache of keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from supernet.errors import UserError
from supernet.plain import Cache
from supernet.subnet import Decoder


@dataclass(frozen=True)
class Distribution:
    """What the next token is drawn from.

    Attributes:
        top_k: only so many of the likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together have this probability (arXiv 1904.09751); 1: all.
    """

    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                "data.sampling: top_k must be 0 (all) or more, top_p above 0 and at most 1, got"
                f" {self.top_k}, {self.top_p}"
            )

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return an id (batch,) for each of the logits (batch, vocab): where the sum of probabilities passes `uniform`.

        Args:
            logits: of the next token, divided by the temperature.
            uniform: draws from [0, 1), (batch,).
        """
        likelihood = logits.double().softmax(-1)
        if self.top_k or self.top_p < 1:
            likelihood = self._likeliest(likelihood)
        sums = likelihood.cumsum(-1)
        place = (sums <= uniform.unsqueeze(-1) * sums[:, -1:]).sum(-1)
        return place.clamp_max(logits.shape[-1] - 1)

    def _likeliest(self, likelihood: Tensor) -> Tensor:
        """Return the probabilities (batch, vocab) of the tokens that are kept, 0 for the others."""
        ordered = likelihood.sort(descending=True).values
        n_kept = (ordered.cumsum(-1) - ordered < self.top_p).sum(-1, keepdim=True)
        if self.top_k:
            n_kept = n_kept.clamp_max(self.top_k)
        return likelihood * (likelihood >= ordered.gather(-1, n_kept - 1))


@torch.inference_mode()
def generate(
    decoder: Decoder, first: int, uniforms: Tensor, temperatures: Tensor, distribution: Distribution, n_ids: int
) -> Tensor:
    """Return sequences of ids (batch, tokens + 1) that all begin with the id `first`.

    A text that ends is followed by the next one, as in pretraining.

    Args:
        decoder: writes them; on the device of `uniforms`, its formats frozen.
        first: id that begins a text.
        uniforms: a draw from [0, 1) for each token (batch, tokens); a sequence depends on its own alone.
        temperatures: divide the logits of each sequence (batch,); 1: the net's own distribution.
        distribution: what a token is drawn from.
        n_ids: only ids below this are drawn; a model may have more embeddings than its tokenizer has tokens.
    """
    batch, n_tokens = uniforms.shape
    ids = torch.full((batch, n_tokens + 1), first, device=uniforms.device)
    caches = [Cache(n_tokens) for _ in decoder.layers]
    cos, sin = decoder.config.rope.table(n_tokens, uniforms.device)
    embedding = decoder.embedding.effective()
    head = embedding if decoder.output is None else decoder.output.effective()
    for i in range(n_tokens):
        x = F.embedding(ids[:, i : i + 1], embedding.weight)
        for layer, cache in zip(decoder.layers, caches, strict=True):
            x = layer.step(x, (cos[i : i + 1], sin[i : i + 1]), cache)  # type: ignore[operator]
        logits = head(decoder.norm(x))[:, 0, :n_ids]
        ids[:, i + 1] = distribution.draw(logits.double() / temperatures.unsqueeze(-1), uniforms[:, i])
    return ids

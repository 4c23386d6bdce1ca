"""What the frozen original teaches every subnet: its predictions and, if asked for, its residual stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.losses import distillation_loss, next_token_loss, stream_error
from supernet.subnet import Decoder


class Teacher:
    """A frozen net that the subnets learn from; no module, so it is in no checkpoint and no optimizer.

    Args:
        decoder: the original, as deep as the largest subnet and, but for padding, as wide; of the same vocabulary.
        share: of its predictions in the target; the rest is the next token itself.
        temperature: of its predictions and of what is compared with them (Hinton et al., arXiv 1503.02531).
        hidden: weight of `stream_error`, for subnets whose residual stream has all of the teacher's channels; 0: none.
    """

    def __init__(self, decoder: Decoder, share: float, temperature: float, hidden: float) -> None:
        if not 0 <= share <= 1 or temperature <= 0 or hidden < 0:
            raise UserError("teacher: share must be from 0 to 1, temperature above 0, hidden 0 or more")
        self.decoder = decoder.eval().requires_grad_(False)
        self.share, self.temperature, self.hidden = share, temperature, hidden

    @torch.no_grad()
    def lesson(self, tokens: Tensor) -> "Lesson":
        """Return what the teacher says of token ids (batch, tokens)."""
        states: list[Tensor] = []
        if self.decoder.embedding.weight.device != tokens.device:  # a plan's have no memory, and cannot be moved
            self.decoder.to(tokens.device)
        logits = self.decoder(tokens, states if self.hidden else None)
        return Lesson(self, (logits.float() / self.temperature).softmax(-1), states)


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch.

    Attributes:
        teacher: whose it is.
        predictions: probabilities of the next token at its temperature (batch, tokens, vocab).
        states: its residual stream behind each layer (batch, tokens, d_model); none where that is not taught.
    """

    teacher: Teacher
    predictions: Tensor
    states: Sequence[Tensor]

    def loss(self, logits: Tensor, states: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a student is trained on, and its next-token loss, without a gradient, to be shown.

        The first is share x T^2 x cross-entropy with the predictions at temperature T, which keeps the size of its
        gradient, + (1 - share) x next-token loss + hidden x `stream_error`.

        Args:
            logits: of the student (batch, tokens, vocab).
            states: its residual stream behind each layer (batch, tokens, width).
            targets: ids of the next tokens (batch, tokens).
        """
        share, temperature = self.teacher.share, self.teacher.temperature
        loss, next_token = distillation_loss(logits / temperature, self.predictions, targets)
        if share < 1 or temperature != 1:
            next_token = next_token_loss(logits, targets)
            loss = share * temperature**2 * loss + (1 - share) * next_token
        width = self.states[0].shape[-1] if self.states else 0
        if width and states[0].shape[-1] >= width:  # what is padded comes last
            loss = loss + self.teacher.hidden * stream_error([state[..., :width] for state in states], self.states)
        return loss, next_token.detach()

"""Losses: next-token, in-place distillation, and the evaluation both stages share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits (batch, tokens, vocab) and ids (batch, tokens)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class _SoftCrossEntropy(torch.autograd.Function):
    """-mean(sum(teacher * log_softmax(logits))), its gradient formed in the forward pass.

    Autograd would keep the log-probabilities and walk the vocabulary three times more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities = logits.log_softmax(-1)
        n = targets.numel()
        # A sequence at a time: CUDA takes no product of more than 2^31 - 1 numbers.
        products = [torch.dot(p.flatten(), t.flatten()) for p, t in zip(log_probabilities, teacher, strict=True)]
        loss = -torch.stack(products).sum() / n
        next_token = -log_probabilities.gather(-1, targets.unsqueeze(-1)).mean()
        ctx.save_for_backward(log_probabilities.exp_().sub_(teacher).div_(n))
        ctx.mark_non_differentiable(next_token)
        return loss, next_token

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


def distillation_loss(logits: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of a student against a teacher's probabilities, and against the text.

    In-place distillation (BigNAS, arXiv 2003.11142): the largest net's predictions on the same batch are
    the only labels of the smaller ones. The second value has no gradient; it is for people to read.

    Args:
        logits: of the student (batch, tokens, vocab).
        teacher: probabilities (batch, tokens, vocab).
        targets: ids of the next tokens (batch, tokens).
    """
    loss, next_token = _SoftCrossEntropy.apply(logits.float(), teacher, targets)
    return loss, next_token


def stream_error(states: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the distance of a student's residual stream from its teacher's: the mean of |s - t|^2 / |t|^2.

    Hidden states are matched behind each layer as in TinyBERT (arXiv 1909.10351). There is no projection, since a
    subnet has its teacher's channels; and it is relative, since the stream grows from layer to layer.

    Args:
        states: of the student, behind each layer (batch, tokens, d_model).
        teacher: of the same shape.
    """
    errors = [
        ((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1)).mean()
        for s, t in zip(states, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def best_device() -> torch.device:
    """Return where networks are scored: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next-token loss in nats (float32), and whether the target was the likeliest, of each token.

    Args:
        logits: (batch, tokens, vocab).
        targets: ids of the next tokens (batch, tokens).
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)
    # Of the target being the largest; argmax takes three times as long as amax.
    hits = logits.gather(-1, targets.unsqueeze(-1)) >= logits.amax(-1, keepdim=True)
    return losses, hits.squeeze(-1)


def token_divergences(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return KL(teacher || student) in nats of each token (batch, tokens).

    Args:
        teacher: log-probabilities (batch, tokens, vocab); in half precision the result is off by about 1e-4
            nats, the same for all students but for the last digits.
        logits: of the student (batch, tokens, vocab).
    """
    teacher = teacher.float()
    return (teacher - logits.float().log_softmax(-1)).mul_(teacher.exp()).sum(-1)


def mean_scores(losses: Tensor, hits: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy of what `token_scores` gives; summed in float64."""
    return losses.double().mean().item(), int(hits.sum()) / hits.numel()


def first_quarter(n_tokens: int) -> int:
    """Return how many of the positions of a row count as its first quarter: those with little context."""
    return max(1, n_tokens // 4)


def late_loss(losses: Tensor) -> float:
    """Return the mean of token losses (n, tokens) at positions beyond the first quarter of their row."""
    return losses[:, first_quarter(losses.shape[1]) :].double().mean().item()


def slice_losses(losses: Tensor, slices: Tensor) -> dict[int, float]:
    """Return the mean loss of each slice of the corpus, by its id.

    Of the slices that hold at least as many tokens as a row, the mean of fewer being chance; of the largest where
    there is none so large.

    Args:
        losses: of each token (n, tokens).
        slices: the slice that each token belongs to (n, tokens).
    """
    # On the CPU: a GPU adds up in an order of its own each time.
    losses, slices = losses.double().cpu(), slices.cpu()
    counts = slices.flatten().bincount()
    sums = slices.flatten().bincount(losses.flatten())
    large = counts >= min(losses.shape[1], int(counts.max()))
    return {i: (sums[i] / counts[i]).item() for i in large.nonzero().flatten().tolist()}


@torch.no_grad()
def score_tokens(network: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the next-token loss in nats (float32) and the hit of each token of all rows, each (n, tokens).

    Args:
        network: token ids (batch, tokens) -> logits (batch, tokens, vocab).
        rows: token ids (n, tokens + 1), on the network's device.
        batch_size: rows at a time.
    """
    scores = [token_scores(network(batch[:, :-1]), batch[:, 1:]) for batch in rows.split(batch_size)]
    losses, hits = zip(*scores, strict=True)
    return torch.cat(losses), torch.cat(hits)


def evaluate(network: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int) -> tuple[float, float]:
    """Return the mean next-token loss in nats and the next-token accuracy of a network; see `score_tokens`."""
    return mean_scores(*score_tokens(network, rows, batch_size))

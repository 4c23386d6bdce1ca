"""Order by importance: what prefixes are cut from holds first what matters most; the function stays the same.

Once-for-all networks sort channels before widths become elastic (Cai et al., arXiv 1908.09791, section 3.3). Here
hidden channels and heads are eliminated one by one on some text, the least needed first (`elimination.py`). A channel
of the residual stream counts by the mean magnitude of its activation times the norm of the weights that read it (Wanda,
arXiv 2306.11695, for whole channels); it is read behind every norm, so its scores there are summed, as Minitron does
with activations alone (arXiv 2407.14679).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from supernet.elastic import ElasticLinear, Stream, under
from supernet.model import Supernet


@torch.no_grad()
def order_by_importance(
    supernet: Supernet, tokens: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, list[int]]:
    """Permute the channels of the residual stream, then the hidden channels and heads of every block.

    Any prefix then holds the most important ones. The stream is left alone where nothing is cut from it, `d_model`
    having one choice: with other neighbors in a group, formats would round otherwise for nothing. For the same reason
    learned factors on scales, which belong to a group, begin anew.

    Args:
        supernet: reordered in place; the largest net computes what it did before, but for the order of summation.
        tokens: ids (batch, tokens) of some text.
        optimizer: its running averages move along with the weights; those of eight bits begin anew.

    Returns:
        Block, or `d_model` -> the former places of its channels (or heads), in the new order.
    """

    def reorder(parameter: nn.Parameter, put: Callable[[Tensor], Tensor]) -> None:
        parameter.copy_(put(parameter))
        if optimizer is None:
            return
        kept = optimizer.state.get(parameter, {}).values()
        averages = [a for a in kept if isinstance(a, Tensor) and a.shape == parameter.shape]
        if not all(average.is_floating_point() for average in averages):
            del optimizer.state[parameter]  # codes, with a scale for every few of them: these begin anew
            return
        for average in averages:
            average.copy_(put(average))

    found = {}
    if len(supernet.d_model) > 1:
        streams = _streams(supernet)
        order = _stream_scores(supernet, streams, tokens).argsort(descending=True, stable=True)
        for parameter, axis in _along_stream(supernet, streams).items():
            reorder(parameter, lambda w, axis=axis: w.index_select(axis, order))  # type: ignore[misc]
        found["d_model"] = order.tolist()
    rope = supernet.rope.table(tokens.shape[1], tokens.device)
    for (prefix, block), x in zip(supernet.blocks(), _residuals(supernet, tokens), strict=False):
        places, reorderings = block.ordered(x, rope)
        for parameter, put in reorderings:
            reorder(parameter, put)
        found[prefix.rstrip(".")] = places
    for linear in (module for module in supernet.modules() if isinstance(module, ElasticLinear)):
        for factors in linear.restart_factors():
            if optimizer is not None:
                optimizer.state.pop(factors, None)
    return found


def _residuals(supernet: Supernet, tokens: Tensor) -> Iterator[Tensor]:
    """Yield the residual stream (batch, tokens, d_model) of the largest net before each block and behind the last.

    Blocks read one sequence after another: no more is in memory of what is wider than the stream.
    """
    largest = supernet.space.full_precision(supernet.space.largest)
    x = supernet.embedding.weight[tokens]
    rope = supernet.rope.table(tokens.shape[1], tokens.device)
    for prefix, block in supernet.blocks():
        yield x
        parts = [block(part, under(largest, prefix), supernet.d_model[-1], rope) for part in x.split(1)]
        x = x + torch.cat(parts)
    yield x


def _streams(supernet: Supernet) -> list[Stream]:
    """Return where the residual stream is met: in each block, and behind the last one."""
    head = supernet.output or supernet.embedding
    return [*(block.stream() for _, block in supernet.blocks()), Stream(supernet.norm, (head,), ())]


def _stream_scores(supernet: Supernet, streams: Sequence[Stream], tokens: Tensor) -> Tensor:
    """Return the importance (d_model,) of the stream's channels: its sum over all that read them."""
    score = torch.zeros_like(supernet.norm.weight)
    for stream, x in zip(streams, _residuals(supernet, tokens), strict=True):
        norms = torch.stack([reader.weight.flatten(0, -2).norm(dim=0) for reader in stream.readers])
        score += stream.norm(x, x.shape[-1]).abs().flatten(0, -2).mean(0) * norms.norm(dim=0)
    return score


def _along_stream(supernet: Supernet, streams: Sequence[Stream]) -> dict[nn.Parameter, int]:
    """Return each weight with an axis of the stream's channels -> that axis."""
    axes = {supernet.embedding.weight: -1}
    for stream in streams:
        axes[stream.norm.weight] = 0
        axes |= {reader.weight: -1 for reader in stream.readers} | {writer.weight: 0 for writer in stream.writers}
    return axes

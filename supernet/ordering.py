"""Order by importance: what prefixes are cut from holds first what matters most; the function stays the same.

Once-for-all networks sort channels before widths become elastic (Cai et al., arXiv 1908.09791, section 3.3). Here a
hidden channel or head counts by how much it adds to the residual stream on some text: the mean magnitude of its
activation times the norm of the weights that read it (Wanda, arXiv 2306.11695, for whole channels).
"""

import torch
from torch import Tensor

from supernet.elastic import under
from supernet.model import Supernet


@torch.no_grad()
def order_by_importance(
    supernet: Supernet, tokens: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, list[int]]:
    """Permute the hidden channels and heads of every block so that any prefix holds the most important ones.

    Args:
        supernet: reordered in place; the largest net computes what it did before, but for the order of summation.
        tokens: ids (batch, tokens) of some text.
        optimizer: its running averages move along with the weights.

    Returns:
        Block -> the former places of its channels (or heads), in the new order.
    """
    largest = supernet.space.full_precision(supernet.space.largest)
    width = supernet.d_model[-1]
    x = supernet.embedding.weight[tokens]
    rope = supernet.rope.table(tokens.shape[1], tokens.device)
    found = {}
    for prefix, block in supernet.blocks():
        update = block(x, under(largest, prefix), width, rope)
        places, reorderings = block.ordered(x, rope)
        for parameter, put in reorderings:
            parameter.copy_(put(parameter))
            for average in (optimizer.state.get(parameter, {}) if optimizer else {}).values():
                if isinstance(average, Tensor) and average.shape == parameter.shape:
                    average.copy_(put(average))
        found[prefix.rstrip(".")] = places
        x = x + update
    return found

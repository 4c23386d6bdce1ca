"""Where weights come from at the start: the seed, or a run that is finished (`model.init`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import read_json
from supernet.model import Supernet
from supernet.randomness import derive
from supernet.run import SUMMARY, build_supernet, load_supernet


def initial_supernet(model: Mapping[str, Any], data: TokenData, seed: int) -> Supernet:
    """Return the supernet to begin with.

    Args:
        model: the configuration; its key `init` names the run whose weights to take, None draws them from the seed.
        data: its tokenizer must be that run's.
        seed: root of the draws.

    Raises:
        UserError: the run is unfinished or damaged, or of another tokenizer or shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        supernet = build_supernet(model, data.vocab_size)
    if model.get("init") is not None:
        try:
            before = load_supernet(Path(model["init"]))
        except UserError as error:
            raise UserError(f"model.init: {str(error).removeprefix('run: ')}") from None
        if before.tokenizer_json != data.tokenizer_json:
            raise UserError(f"model.init: {model['init']} was trained with another tokenizer; set data.tokenizer_file")
        weights, own = before.supernet.state_dict(), supernet.state_dict()
        new = [name for name in own if name not in weights and "log_factors" not in name]
        if new or any(name not in own or own[name].shape != weight.shape for name, weight in weights.items()):
            raise UserError(
                f"model.init: the largest net of {model['init']} has another shape; model and model.blocks must agree"
            )
        supernet.load_state_dict(weights, strict=False)
    return supernet


def flops_before(model: Mapping[str, Any]) -> float:
    """Return the FLOPs of all runs that the initial weights have behind them."""
    if model.get("init") is None:
        return 0.0
    summary = read_json(Path(model["init"]) / "supernet" / SUMMARY)
    return float(summary["flops"] + summary.get("flops_before", 0.0))

"""Where weights come from at the start: the seed, a finished run, or a pretrained checkpoint (`model.init`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from supernet.data import TokenData
from supernet.errors import UserError
from supernet.licenses import licenses_of
from supernet.model import Supernet
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.fill import filled, padding
from supernet.pretrained.load import load_checkpoint, open_checkpoint
from supernet.randomness import derive
from supernet.run import build_supernet, load_supernet, read_summary


def completed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's settings; where `init` names a checkpoint, what is null is taken from that.

    Raises:
        UserError: the checkpoint cannot be taken, or is of another shape than what is set.
    """
    checkpoint = checkpoint_of(model)
    if checkpoint is None:
        if model.get("init") is not None and not Path(model["init"]).exists():
            origin(model)  # says so
        return dict(model)
    for key in ("attention", "mlp"):
        if key not in model.get("blocks", {}):
            raise UserError(f"model.blocks must hold attention and mlp, got {list(model.get('blocks', {}))}")
    return filled(model, checkpoint)


def tokenizer_of(model: Mapping[str, Any]) -> str | None:
    """Return the folder with the tokenizer of the initial weights; None where a corpus may train one.

    Raises:
        UserError: a checkpoint that is a file, which has none.
    """
    checkpoint = checkpoint_of(model)
    if checkpoint is None:
        return None
    if not checkpoint.path.is_dir():
        raise UserError(
            f"data.tokenizer_file: {checkpoint.path} comes without a tokenizer; name the one of its vocabulary"
        )
    return str(checkpoint.path)


def initial_supernet(model: Mapping[str, Any], data: TokenData, seed: int, device: torch.device) -> Supernet:
    """Return the supernet to begin with.

    A checkpoint's weights go to the device one by one; what is drawn from the seed or comes from a run is on the CPU.

    Args:
        model: the configuration; its key `init` names the run or checkpoint whose weights to take, None draws them
            from the seed.
        data: its tokenizer must be that run's, or have no more tokens than the checkpoint.
        seed: root of the draws.
        device: where the supernet will train.

    Raises:
        UserError: the run or checkpoint is unfinished or damaged, or of another tokenizer or shape.
    """
    checkpoint = checkpoint_of(model)
    vocab_size = data.vocab_size if checkpoint is None else checkpoint.llama.vocab_size
    if data.vocab_size > vocab_size:
        raise UserError(
            f"data.tokenizer_file: it has {data.vocab_size} tokens, but {model['init']} has {vocab_size} embeddings"
        )
    if checkpoint is not None:
        with torch.device(device), _Undrawn():
            supernet = build_supernet(model, vocab_size)
        with _about_init():
            load_checkpoint(supernet, checkpoint)
        return supernet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        supernet = build_supernet(model, vocab_size)
    if model.get("init") is not None:
        _load_run(supernet, Path(model["init"]), data)
    return supernet


class _Undrawn(TorchFunctionMode):
    """Within, weights are not drawn: the checkpoint has all that would be."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call anything but the drawing of weights."""
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def origin(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's summary says of where its weights come from.

    Returns:
        `flops_before`, those of all runs that the weights have behind them; `continued`, how many runs these are, where
        there are any; `licenses` of the checkpoint that was
        taken, here or by a run before, name -> text; and of one taken here `pretrained`, with its path, kind and what
        of it was padded with zeros. Its own training is not known, and not counted.

    Raises:
        UserError: the run is missing or unfinished, or the checkpoint cannot be taken.
    """
    checkpoint = checkpoint_of(model)
    if checkpoint is not None:
        about = {"path": str(checkpoint.path), "kind": checkpoint.kind, "padded": padding(model, checkpoint)}
        return {"flops_before": 0.0, "pretrained": about, "licenses": licenses_of(checkpoint.path)}
    if model.get("init") is None:
        return {"flops_before": 0.0}
    with _about_init():
        summary = read_summary(Path(model["init"]))
    # Runs of before they were counted have none.
    flops = float(summary.get("flops", 0.0) + summary.get("flops_before", 0.0))
    runs = summary.get("continued", int(summary.get("flops_before", 0.0) > 0)) + 1
    return {
        "flops_before": flops,
        "continued": runs,
        **({"licenses": summary["licenses"]} if "licenses" in summary else {}),
    }


def checkpoint_of(model: Mapping[str, Any]) -> Checkpoint | None:
    """Return the pretrained checkpoint that `init` names; None where it names a run, or nothing.

    Raises:
        UserError: it cannot be taken.
    """
    if model.get("init") is None:
        return None
    with _about_init():
        return open_checkpoint(Path(model["init"]))


def _load_run(supernet: Supernet, run: Path, data: TokenData) -> None:
    with _about_init():
        before = load_supernet(run)
    if before.tokenizer_json != data.tokenizer_json:
        raise UserError(f"model.init: {run} was trained with another tokenizer; set data.tokenizer_file")
    weights, own = before.supernet.state_dict(), supernet.state_dict()
    new = [name for name in own if name not in weights and "log_factors" not in name]
    if new or any(name not in own or own[name].shape != weight.shape for name, weight in weights.items()):
        raise UserError(f"model.init: the largest net of {run} has another shape; model and model.blocks must agree")
    for key, theirs, ours in (
        ("rope_theta, model.rope_scaling", before.supernet.rope, supernet.rope),
        ("norm_eps", before.supernet.norm_eps, supernet.norm_eps),
    ):
        if theirs != ours:
            raise UserError(f"model.init: {run} was trained with other values of model.{key}: {theirs}, here {ours}")
    supernet.load_state_dict(weights, strict=False)


@contextmanager
def _about_init() -> Iterator[None]:
    """Say of a refusal which setting it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"model.init: {str(error).removeprefix('run: ')}") from None

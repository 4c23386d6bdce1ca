"""Run directories: what one stage leaves for the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from supernet.config import build
from supernet.data import OTHER_TOKENIZER, TokenData
from supernet.errors import UserError
from supernet.files import read_json, replacing, write_json
from supernet.gates import Gates
from supernet.genes import SearchSpace
from supernet.model import Supernet
from supernet.tokenizer.storing import checked, read_tokenization

WEIGHTS, SPACE, GATES = "model.safetensors", "space.json", "gates.json"
DATA, SUMMARY = "data.json", "summary.json"


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {}
    for package in (
        "supernet-search",
        "torch",
        "lightning",
        "tokenizers",
        "gguf",
        "llama-cpp-python",
        "transformers",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def described(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the configuration describes the supernet, wherever its weights come from."""
    return {key: value for key, value in model.items() if key != "init"}


def build_supernet(model: Mapping[str, Any], vocab_size: int) -> Supernet:
    """Build a supernet from its configuration; its targets must occur in `conf/`."""
    supernet = build(OmegaConf.create(described(model)), vocab_size=vocab_size)
    if not isinstance(supernet, Supernet):
        try:
            supernet = supernet()
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {error} (conf/model/, conf/block/)") from None
    if not isinstance(supernet, Supernet):
        raise UserError(f"model: {type(supernet).__name__} is no supernet (conf/model/)")
    return supernet


def save_supernet(folder: Path, supernet: Supernet, model: Mapping[str, Any]) -> None:
    """Write the weights and the search space that the search will read."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(
        folder / SPACE,
        {"model": described(model), "vocab_size": supernet.vocab_size, "genes": supernet.space.to_json()},
    )


@dataclass(frozen=True)
class TrainedSupernet:
    """What a finished training left.

    Attributes:
        folder: runs/NAME.
        supernet: with its trained weights, on the CPU.
        gates: content of gates.json.
        data: content of data.json.
        tokenizer_json: content of tokenizer.json.
        tokenizer_files: name -> text of the files that came with the tokenizer, and of licenses of the weights.
    """

    folder: Path
    supernet: Supernet
    gates: dict[str, Any]
    data: dict[str, Any]
    tokenizer_json: str
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)

    def tokens(self) -> TokenData:
        """Return the tokens it was trained on; a missing cache is built again.

        Raises:
            UserError: data.json is damaged, the corpus is gone or has changed, or its tokenizer came out differently.
        """
        for key in ("config", "hash"):
            if key not in self.data:
                raise UserError(f"{self.folder / 'supernet' / DATA} is damaged: it lacks {key}")
        config = self.data["config"]
        if config.get("tokenizer_file") is not None:  # the run has a copy, whatever became of where it came from
            config = {**config, "tokenizer_file": str(self.folder / "supernet")}
        if "sampling" in config:  # from the original that the run keeps, whatever became of where it came from
            config = {**config, "sampling": {**config["sampling"], "checkpoint": str(self.folder)}}
        data = build(OmegaConf.create(config))
        if not isinstance(data, TokenData) or data.hash != self.data["hash"]:
            raise UserError(f"the corpus of {self.folder} has changed since training; its hash was {self.data['hash']}")
        if data.tokenizer_sha256 != self.data.get("tokenizer_sha256", data.tokenizer_sha256):
            raise UserError(f"{data.directory} {OTHER_TOKENIZER}")
        return data


def read_summary(run: Path) -> dict[str, Any]:
    """Return the content of summary.json, which says that `train.py` finished `run`.

    Raises:
        UserError: the run is missing, unfinished or damaged.
    """
    if not run.is_dir():
        raise UserError(f"run: {run} does not exist; `python train.py +experiment=NAME` makes runs/NAME")
    path = run / "supernet" / SUMMARY
    if not path.exists():
        raise UserError(f"run: the training in {run} has not finished; the command that began it goes on with it")
    return read_json(path)


def load_supernet(run: Path) -> TrainedSupernet:
    """Read what `train.py` left in `run`.

    Raises:
        UserError: the run is missing, unfinished or damaged.
    """
    from safetensors.torch import load_file

    folder, summary = run / "supernet", read_summary(run)
    space = read_json(folder / SPACE)
    gates, data = read_json(folder / GATES), read_json(folder / DATA)
    for key in ("budgets_mb", "genes", "modes", "history"):
        if key not in gates:
            raise UserError(f"{folder / GATES} is damaged: it lacks {key}")
    gates.setdefault("budgets_ms", [])  # runs of before gates could be held to a time
    try:
        supernet = build_supernet(space["model"], space["vocab_size"])
        known = {gene.name: gene.choices for gene in SearchSpace.from_json(space["genes"])}
        if known != {gene.name: gene.choices for gene in supernet.space}:
            raise UserError(f"{folder / SPACE} is damaged: its genes are not those of its model")
        supernet.load_state_dict(load_file(folder / WEIGHTS))
        tokenization = read_tokenization(folder)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder / WEIGHTS} is missing; the run is damaged") from None
    except UserError:
        raise
    except Exception as error:  # whatever the constructors make of a damaged file
        raise UserError(f"{folder} is damaged: {error!r}") from None
    for parameter in supernet.parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{folder / WEIGHTS} is damaged: it holds numbers that are not finite")
    licenses = checked(summary.get("licenses", {}), folder / SUMMARY)
    return TrainedSupernet(run, supernet, gates, data, tokenization.json, {**licenses, **tokenization.files})


def gates_json(
    gates: Gates | None,
    budgets_mb: Sequence[float],
    history: list[dict[str, Any]],
    budgets_ms: Sequence[float] = (),
) -> dict[str, Any]:
    """Return the content of gates.json: names, budgets, modes and the history of probabilities.

    The sets of `modes` and of each record's `probabilities` and `expected_mb` are in the order of
    `budgets_mb`, then `budgets_ms` (ms a token); `expected_ms` has the latter only.
    """
    names = [gene.name for gene in gates.space] if gates else []
    modes = [list(gates.mode(i)) for i in range(gates.n_sets)] if gates else []
    budgets = {"budgets_mb": list(budgets_mb), "budgets_ms": list(budgets_ms)}
    return {**budgets, "genes": names, "modes": modes, "history": history}

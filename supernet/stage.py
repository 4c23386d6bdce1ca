"""The steps of `train.py`, in the order it names them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from supernet.budgets import check_budgets
from supernet.claims import already_finished, check_sources, claim, leads, locked
from supernet.config import build, check, check_counts, job_name, number, plain
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.fitting import Batches, check_trainer, fit
from supernet.gates import Gates
from supernet.hardware import read_model
from supernet.initial import completed, initial_supernet, origin, tokenizer_of
from supernet.metrics import Metrics
from supernet.model import Supernet
from supernet.original import keep_original, original_of
from supernet.randomness import derive
from supernet.run import SUMMARY, described
from supernet.teacher import Teacher
from supernet.training import SupernetTraining


@dataclass(frozen=True)
class Run:
    """An opened run directory.

    Attributes:
        folder: runs/NAME.
        finished: whether there is nothing left to train.
        command: what the user typed, for the files that say how they were made.
        origin: what the summary says of where the initial weights come from; empty where it is finished.
    """

    folder: Path
    finished: bool
    command: str
    origin: dict[str, Any]


def with_shape(config: DictConfig) -> DictConfig:
    """Return the configuration; where `model.init` names a pretrained checkpoint, what is null comes from that."""
    if not isinstance(config.model.get("init"), str | None):
        raise UserError(f"model.init must be a path, got {config.model.init!r}")
    if config.model.get("init") is None:
        if config.model.get("n_layers", 0) is None:
            raise UserError(
                "model.init: name a checkpoint, a folder with config.json and safetensors or a .bin of llama2.c"
            )
        return config
    config = copy.deepcopy(config)
    config.model = completed(_plain(config.model))
    if "tokenizer_file" in config.data and config.data.tokenizer_file is None:
        config.data.tokenizer_file = tokenizer_of(config.model)
    return config


@contextmanager
def opened(config: DictConfig) -> Iterator[Run]:
    """Lock the run directory for the time of training, having checked what can be checked at once."""
    from supernet.cli import typed_command

    check_settings(config)
    folder = Path(config.runs_dir) / job_name(config, "name")
    if config.fresh:
        keys = ("model.init", "data.tokenizer_file", "data.sampling.checkpoint", "gates.hardware")
        check_sources(folder, {key: OmegaConf.select(config, key) for key in keys})
    with locked(folder):
        finished = not config.fresh and already_finished(**_claim_of(config, folder))
        yield Run(folder, finished, typed_command(), {} if finished else origin(config.model))


def _claim_of(config: DictConfig, folder: Path) -> dict[str, Any]:
    finished = folder / "supernet" / SUMMARY
    return {
        "folder": folder,
        "config": plain(config, but=["fresh", "plan"]),
        "finished": finished,
        "fresh_key": "fresh=true",
    }


def check_settings(config: DictConfig) -> None:
    """Raise UserError for what the configuration alone shows to be impossible."""
    check_counts(config)
    if config.sequence_length > number(config.model, "context_length"):
        raise UserError(
            f"sequence_length={config.sequence_length} exceeds model.context_length={config.model.context_length}"
        )
    # With interpolations of `model.init` resolved, which is no setting of the supernet. A plan needs no corpus.
    settings = plain(config, but=["data"] if config.plan else [])
    check({**settings, "model": described(settings["model"])})
    build(config.schedule)
    check_trainer(config.trainer)
    original_of(config)


def prepare_data(config: DictConfig) -> TokenData:
    """Tokenize and pack the corpus, or take it from the cache."""
    data = build(config.data, sequence_length=config.sequence_length)
    assert isinstance(data, TokenData)
    return data


def make_supernet(config: DictConfig, data: TokenData) -> Supernet:
    """Build the supernet with its initial weights."""
    trainer = check_trainer(config.trainer)
    # Of several processes none needs to hold all of it on its device, and each one's device is not settled yet.
    device = trainer.strategy.root_device if trainer.world_size == 1 else torch.device("cpu")
    return initial_supernet(_plain(config.model), data, config.seed, device)


def make_training(config: DictConfig, supernet: Supernet, teacher: Teacher | None) -> SupernetTraining:
    """Join supernet, gates, schedule and optimizer."""
    settings = config.gates
    for key in ("budgets_mb", "budgets_ms"):
        if not isinstance(settings[key], ListConfig):
            raise UserError(f"gates.{key} must be a list, [] for none, got {settings[key]!r} (conf/gates/)")
    if not isinstance(settings.hardware, str | None):
        raise UserError(f"gates.hardware must be the path of a hardware.json, got {settings.hardware!r}")
    schedule = build(config.schedule)
    on = {key: [number(settings[key], i) for i in range(len(settings[key]))] for key in ("budgets_mb", "budgets_ms")}
    model = None
    if settings.hardware is not None:
        model = read_model(Path(settings.hardware), settings.target)
        model.check(supernet.space, str(settings.hardware))
    budgets = check_budgets(supernet.space, supernet, **on, model=model)
    if not budgets:
        schedule = build(config.schedule, gate_every=0)
    if not schedule.gate_steps:  # gates that nobody trained prefer nothing
        budgets = []
    elif schedule.gate_steps < len(budgets):
        raise UserError(
            f"gates: {len(budgets)} budgets take turns, but schedule has {schedule.gate_steps} gate steps; raise"
            " schedule.joint_steps or lower schedule.gate_every"
        )
    rates = {key: number(settings, key) for key in ("lr", "multiplier_lr", "damping", "entropy_weight")}
    for key, rate in rates.items():
        if rate < 0:
            raise UserError(f"gates.{key} must be 0 or more, got {rate} (conf/gates/)")
    training = SupernetTraining(
        supernet,
        Gates(supernet.space, max(1, len(budgets)), number(settings, "keep_bias")),
        schedule,
        build(config.optimizer),
        config.seed,
        budgets,
        rates["lr"],
        rates["multiplier_lr"],
        rates["damping"],
        rates["entropy_weight"],
        teacher,
    )
    try:
        training.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {error} (see its file in conf/)") from None
    return training


def train(config: DictConfig, run: Run, training: SupernetTraining, data: TokenData) -> Metrics:
    """Train to the end of the schedule; return the training curves."""
    logger = _logger(config, run)
    claim(**_claim_of(config, run.folder), fresh=config.fresh)
    original = original_of(config)
    if original is not None and leads():
        keep_original(original, run.folder)
    schedule = training.schedule
    batches = Batches(
        data,
        schedule.steps,
        lambda step: "gate" if schedule.kind(step) == "gates" else "train",
        _batch_seed(config, run),
        config.batch_size,
        config.sequence_length,
    )
    metrics = Metrics(run.folder / "supernet" / "metrics.csv", schedule, config.batch_size, config.sequence_length)
    try:
        fit(training, batches, run.folder / "checkpoints", _plain(config.trainer), "train", [metrics], logger)
    finally:
        if logger is not None:  # a sweep's jobs share this process
            import wandb

            wandb.finish()
    metrics.write()
    return metrics


def _batch_seed(config: DictConfig, run: Run) -> int:
    """Return the seed of the batches: others than those that the initial weights have been trained on."""
    if not config.model.get("init"):
        return int(config.seed)
    runs = run.origin.get("continued", 1)
    return derive(config.seed, "continued", *([runs] if runs > 1 else []))


def _logger(config: DictConfig, run: Run) -> Any:
    if not config.logger:
        return None
    if config.logger.get("offline") is False:
        import wandb

        try:
            wandb.login()
        except wandb.Error as error:
            raise UserError(f"logger: {error} (or logger.offline=true)") from None
    return build(config.logger, save_dir=str(run.folder), name=run.folder.name, id=run.folder.name)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)

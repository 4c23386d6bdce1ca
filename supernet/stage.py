"""The steps of `train.py`, in the order it names them."""

import copy
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from supernet.config import build, check, check_counts, job_name, number, plain
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.fitting import Batches, check_trainer, fit
from supernet.flops import forward_flops, phase_flops
from supernet.formats import MB
from supernet.gates import Gates
from supernet.genes import Genome
from supernet.hardware import read_model
from supernet.initial import completed, initial_supernet, origin, tokenizer_of
from supernet.losses import evaluate
from supernet.metrics import Metrics
from supernet.model import Supernet
from supernet.original import keep_original, original_of
from supernet.randomness import derive
from supernet.run import (
    DATA,
    GATES,
    SUMMARY,
    already_finished,
    claim,
    described,
    gates_json,
    leads,
    locked,
    save_supernet,
    versions,
)
from supernet.subnet import extract
from supernet.teacher import Teacher
from supernet.tokenizer.storing import write_tokenization
from supernet.training import SupernetTraining, check_budgets


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
    schedule = build(config.schedule)
    on = {key: [number(settings[key], i) for i in range(len(settings[key]))] for key in ("budgets_mb", "budgets_ms")}
    model = None
    if settings.hardware is not None:
        model = read_model(Path(settings.hardware), settings.target)
        model.check(supernet.space, str(settings.hardware))
    budgets = check_budgets(supernet.space, supernet, **on, model=model)
    if not budgets:
        schedule = build(config.schedule, gate_every=0)
    if not schedule.trains_gates:  # gates that nobody trained prefer nothing
        budgets = []
    training = SupernetTraining(
        supernet,
        Gates(supernet.space, max(1, len(budgets)), number(settings, "keep_bias")),
        schedule,
        build(config.optimizer),
        config.seed,
        budgets,
        number(settings, "lr"),
        number(settings, "multiplier_lr"),
        number(settings, "entropy_weight"),
        teacher,
    )
    try:
        training.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {error} (see its file in conf/)") from None
    return training


def train(config: DictConfig, run: Run, training: SupernetTraining, data: TokenData) -> Metrics:
    """Train to the end of the schedule; return the training curves."""
    claim(**_claim_of(config, run.folder), fresh=config.fresh)
    original = original_of(config)
    if original is not None and leads():
        keep_original(original, run.folder)
    schedule = training.schedule
    batches = Batches(
        data,
        schedule.steps,
        lambda step: "gate" if schedule.kind(step) == "gates" else "train",
        derive(config.seed, "continued") if config.model.get("init") else config.seed,
        config.batch_size,
        config.sequence_length,
    )
    metrics = Metrics(run.folder / "supernet" / "metrics.csv", schedule, config.batch_size * config.sequence_length)
    logger = _logger(config, run)
    try:
        fit(training, batches, run.folder / "checkpoints", _plain(config.trainer), "train", [metrics], logger)
    finally:
        if logger is not None:  # a sweep's jobs share this process
            import wandb

            wandb.finish()
    metrics.write()
    return metrics


def _logger(config: DictConfig, run: Run) -> Any:
    if not config.logger:
        return None
    return build(config.logger, save_dir=str(run.folder), name=run.folder.name, id=run.folder.name)


def save(config: DictConfig, run: Run, training: SupernetTraining, data: TokenData, metrics: Metrics) -> None:
    """Evaluate, and leave what the search reads; summary.json, written last, says that all is there."""
    folder, supernet = run.folder / "supernet", training.supernet.eval()
    save_supernet(folder, supernet, _plain(config.model))
    write_tokenization(folder, data.tokenization)
    write_json(folder / DATA, data.describe())
    gates = training.gates if training.budgets else None
    on = {unit: [budget.bound for budget in training.budgets if budget.unit == unit] for unit in ("MB", "ms")}
    write_json(folder / GATES, gates_json(gates, on["MB"], training.gate_history, on["ms"]))
    rows = data.evaluation_batch("valid", config.eval_sequences, config.sequence_length).to(training.device)
    table = []
    for name, genome in table_rows(training):
        architecture = supernet.space.decode(genome)
        loss, accuracy = evaluate(extract(supernet, genome).freeze_formats(), rows, config.batch_size)
        size_mb = supernet.n_bytes(architecture) / MB
        table.append({"name": name, "size_mb": size_mb, "valid_loss": loss, "valid_accuracy": accuracy})
    sequences = config.batch_size * training.trainer.world_size
    phases = _phases(training, metrics.seconds, sequences, config.sequence_length)
    summary = {
        "name": run.folder.name,
        "command": run.command,
        "table": table,
        "parameters": sum(p.numel() for p in supernet.parameters()),
        "genomes": float(supernet.space.n_genomes),
        "steps": training.schedule.steps,
        "tokens": sum(phase["tokens"] for phase in phases),
        "seconds": round(sum(metrics.seconds.values()), 1),
        "flops": sum(phase["flops"] for phase in phases),
        **run.origin,
        "phases": phases,
        "threads": torch.get_num_threads(),
        "device": str(training.device),
        "versions": versions(),
        "corpus": data.hash,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_json(folder / SUMMARY, summary)


def table_rows(training: SupernetTraining) -> list[tuple[str, Genome]]:
    """Return (name, genome) of the nets the closing table compares."""
    gates = [(f"gates for {budget}", training.gates.mode(i)) for i, budget in enumerate(training.budgets)]
    return [*training.supernet.space.baselines(), *gates]


def _phases(
    training: SupernetTraining, seconds: dict[str, float], sequences: int, n_tokens: int
) -> list[dict[str, Any]]:
    """Return what each phase cost, of `sequences` of `n_tokens` in a step; seconds are those of the steps alone."""
    schedule = training.schedule
    kinds = Counter[str](schedule.kind(step) for step in range(schedule.steps))
    taught = forward_flops(training.teacher.decoder, n_tokens) if training.teacher else 0.0
    flops = phase_flops(training.supernet, schedule, training.seed, n_tokens, taught)
    return [
        {
            "name": name,
            "steps": kinds[name],
            "seconds": round(seconds[name], 1),
            "tokens": round(kinds[name] * sequences * n_tokens * (schedule.gate_share if name == "gates" else 1)),
            "flops": sequences * flops[name],
        }
        for name in seconds
    ]


def say_finished(run: Run) -> None:
    """Print the table and the command that comes next."""
    from supernet.cli import argument, print_table

    summary = read_json(run.folder / "supernet" / SUMMARY)
    if run.finished:
        print(f"{run.folder} is finished ({summary['finished']}); fresh=true trains it again.")
    rows = [
        [r["name"], f"{r['size_mb']:.3f}", f"{r['valid_loss']:.4f}", f"{r['valid_accuracy']:.2%}"]
        for r in summary["table"]
    ]
    title = f"{run.folder.name}: {summary['parameters'] / 1e6:.2f}M parameters, {summary['genomes']:.1e} subnets"
    print_table(title, ["net", "size MB", "valid loss", "accuracy"], rows)
    costs = [
        [p["name"], f"{p['steps']:,}", f"{p['seconds']:,.0f}", f"{p['tokens'] / 1e6:,.2f}", f"{p['flops'] / 1e12:,.1f}"]
        for p in summary["phases"]
        if p["steps"] and "flops" in p  # runs of before it was counted lack it
    ]
    if costs:
        print_table("what each phase cost", ["phase", "steps", "seconds", "M tokens", "TFLOPs"], costs)
    budget = next(
        (r["size_mb"] for r in summary["table"] if r["name"] == "uniform Q4_0"),
        summary["table"][0]["size_mb"],
    )
    print(f"next: python search.py {argument('run', run.folder)} budget.size_mb={budget:.2f}")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)

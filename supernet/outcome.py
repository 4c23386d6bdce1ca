"""What a finished training leaves: the files that the search reads, a summary, and its table."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from supernet.budgets import rounded_up
from supernet.config import plain
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.fitting import check_trainer
from supernet.flops import forward_flops, phase_flops
from supernet.formats import MB, format_named
from supernet.genes import Genome
from supernet.losses import evaluate
from supernet.metrics import Metrics
from supernet.run import DATA, GATES, SUMMARY, gates_json, save_supernet, versions
from supernet.stage import Run
from supernet.subnet import extract
from supernet.tokenizer.storing import write_tokenization
from supernet.training import SupernetTraining


def save(config: DictConfig, run: Run, training: SupernetTraining, data: TokenData, metrics: Metrics) -> None:
    """Evaluate, and leave what the search reads; summary.json, written last, says that all is there."""
    trainer = check_trainer(config.trainer)
    device = trainer.strategy.root_device  # Lightning has moved all of it to the CPU
    folder, supernet = run.folder / "supernet", training.supernet.eval().to(device)
    save_supernet(folder, supernet, plain(config.model, but=()))
    write_tokenization(folder, data.tokenization)
    write_json(folder / DATA, data.describe())
    gates = training.gates if training.budgets else None
    on = {unit: [budget.bound for budget in training.budgets if budget.unit == unit] for unit in ("MB", "ms")}
    write_json(folder / GATES, gates_json(gates, on["MB"], training.gate_history, on["ms"]))
    rows = data.evaluation_batch("valid", config.eval_sequences, config.sequence_length).to(device)
    table = []
    for name, genome in table_rows(training):
        architecture = supernet.space.decode(genome)
        loss, accuracy = evaluate(extract(supernet, genome).freeze_formats(), rows, config.batch_size)
        size_mb = supernet.n_bytes(architecture) / MB
        table.append({"name": name, "size_mb": size_mb, "valid_loss": loss, "valid_accuracy": accuracy})
    phases = _phases(training, metrics.seconds, config.batch_size, config.sequence_length)
    ordered = training.schedule.order if training.schedule.joint_steps else 0  # batches
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
        "ordered_on": ordered * config.batch_size * config.sequence_length,
        "phases": phases,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": str(trainer.precision),  # what `auto` came to, which is not the same on every processor
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
    training: SupernetTraining, seconds: dict[str, float], batch_size: int, n_tokens: int
) -> list[dict[str, Any]]:
    """Return what each phase cost; seconds are those of the steps alone.

    Args:
        training: done.
        seconds: of each phase.
        batch_size: sequences that a process takes in a step.
        n_tokens: of a sequence.
    """
    schedule, processes = training.schedule, training.trainer.world_size
    rows = {name: schedule.gate_rows(batch_size) if name == "gates" else batch_size for name in seconds}
    kinds = Counter[str](schedule.kind(step) for step in range(schedule.steps))
    taught = forward_flops(training.teacher.decoder, n_tokens) if training.teacher else 0.0
    flops = phase_flops(training.supernet, schedule, training.seed, n_tokens, taught)
    return [
        {
            "name": name,
            "steps": kinds[name],
            "seconds": round(seconds[name], 1),
            "tokens": kinds[name] * processes * rows[name] * n_tokens,
            "flops": processes * rows[name] * flops[name],
        }
        for name in seconds
    ]


def say_finished(run: Run) -> None:
    """Print the table and the command that comes next."""
    from supernet.cli import argument, print_table

    path = run.folder / "supernet" / SUMMARY
    summary = read_json(path)
    for key in ("finished", "table", "parameters", "genomes", "phases"):
        if key not in summary:
            raise UserError(f"{path} is damaged: it lacks {key}")
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
    budget = rounded_up(_four_bits(summary["table"]))
    print(f"next: python search.py {argument('run', run.folder)} budget.size_mb={budget:g}")


def _four_bits(table: Sequence[Mapping[str, Any]]) -> float:
    """Return the size, in MB, of the smallest uniform net of 4 bits or more, else of the largest net."""
    rows = [row for row in table if row["name"].startswith("uniform ")]
    sizes = [r["size_mb"] for r in rows if format_named(r["name"].removeprefix("uniform ")).bits >= 4]
    return float(min(sizes, default=table[0]["size_mb"]))

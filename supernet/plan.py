"""What a training needs of a device's memory, before any is spent: `python train.py ... plan=true`.

Weights, gradients and what the optimizer keeps are counted. What a step holds beyond them, activations and rounded
copies of weights, is the peak of going through one step of each kind on tensors without memory (`supernet/memory.py`),
so it follows from the code that trains. Left out is ordering by importance, which holds one block's activations on
`schedule.order` batches, and of its hidden channels and heads a few square matrices in float64.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from supernet.cli import print_table
from supernet.errors import UserError
from supernet.fitting import check_trainer
from supernet.flops import subnet_flops
from supernet.formats import MB
from supernet.initial import checkpoint_of
from supernet.losses import next_token_loss
from supernet.memory import Rehearsal, n_bytes
from supernet.model import Supernet
from supernet.original import make_teacher, original_of
from supernet.pretrained.checkpoint import Checkpoint
from supernet.run import build_supernet
from supernet.stage import check_settings, make_training
from supernet.tokenizer.reading import load_tokenizer
from supernet.training import SupernetTraining, joint_loss

SHARDED = (2, 4, 8)  # devices of the rows on FSDP


@dataclass(frozen=True)
class Plan:
    """Bytes that a training holds at its peak, on a device that holds everything.

    Attributes:
        device: where it would train.
        optimizer_name: class of the optimizer.
        n_parameters: numbers in the supernet.
        weights: of the supernet.
        gradients: of its weights.
        optimizer: what the optimizer keeps between steps.
        teacher: weights of a frozen original that teaches; each device has all of them.
        beyond: kind of step -> what its peak holds on top; `update` is the optimizer's part of any step.
        unit: weights of the largest part that FSDP gathers at a time: a layer, or all that is in none.
    """

    device: torch.device
    optimizer_name: str
    n_parameters: int
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    beyond: Mapping[str, int]
    unit: int

    @property
    def activations(self) -> int:
        """The most that a step of any kind holds beyond weights, gradients and optimizer."""
        return max(self.beyond.values())

    def on(self, n_devices: int) -> dict[str, float]:
        """Return the bytes on each of some devices, by what they are; of several, under FSDP's full shard.

        A device then has its share of weights, gradients and optimizer, weights and gradients of the part at work, and
        the activations of a batch of its own (Zhao et al., arXiv 2304.11277, section 3.2: at most the sum of all /
        devices + the largest part). Rounded copies of weights are activations: every device has all of them.
        """
        held = {name: getattr(self, name) / n_devices for name in ("weights", "gradients", "optimizer")}
        held |= {"teacher": float(self.teacher)} if self.teacher else {}
        held |= {"gathered": 2.0 * self.unit if n_devices > 1 else 0.0, "activations": float(self.activations)}
        return {**held, "total": sum(held.values())}


def plan(config: DictConfig) -> Plan:
    """Return what training with these settings needs; no text is read, and no weight is held.

    Raises:
        UserError: the training would refuse them, too.
    """
    check_settings(config)
    trainer, rehearsal = check_trainer(config.trainer), Rehearsal()
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    training = _training(config, rehearsal, trainer)
    supernet, teacher = training.supernet, training.teacher
    with rehearsal, torch.device(device):
        batch = torch.zeros(config.batch_size, config.sequence_length + 1, dtype=torch.int64)
    optimizer = training.configure_optimizers()
    beyond: dict[str, int] = {}
    with rehearsal:
        _fill_gradients(supernet)
        for _ in range(2):  # the first time it makes what it keeps
            before = rehearsal.mark()
            _update(optimizer)
        beyond["update"] = rehearsal.peak - before
        for kind, step in _steps(training, config.sequence_length).items():
            supernet.requires_grad_(step is not None)
            _fill_gradients(supernet)  # those of the step before stay until the backward pass
            before = rehearsal.mark()
            with precision.forward_context():
                loss = _gate_loss(training, batch) if step is None else _weight_loss(training, batch, step)
            supernet.zero_grad()
            rehearsal.backward(loss)
            beyond[kind] = rehearsal.peak - before
    parameters = list(supernet.parameters())
    return Plan(
        device=device,
        optimizer_name=type(optimizer).__name__,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        weights=n_bytes(supernet.state_dict()),
        gradients=n_bytes(parameters),
        optimizer=n_bytes(dict(optimizer.state)),
        teacher=n_bytes(teacher.decoder.state_dict()) if teacher else 0,
        beyond=beyond,
        unit=_largest_unit(supernet),
    )


def check_parts(config: DictConfig) -> None:
    """Refuse before text is read or sampled what supernet, teacher, gates and optimizer would refuse after it.

    Where the vocabulary comes from the corpus nothing is known yet, and nothing is refused.

    Raises:
        UserError: they cannot be made of these settings.
    """
    if checkpoint_of(config.model) is not None or config.data.tokenizer_file is not None:
        _training(config, Rehearsal(), check_trainer(config.trainer))


def _training(config: DictConfig, rehearsal: Rehearsal, trainer: L.Trainer) -> SupernetTraining:
    """Return the training of tensors without memory."""
    model: Any = OmegaConf.to_container(config.model, resolve=True)
    device, vocab_size, original = trainer.strategy.root_device, _vocab_size(config), original_of(config)
    with rehearsal, torch.device(device), trainer.precision_plugin.module_init_context():
        supernet = build_supernet(model, vocab_size)
    with rehearsal, torch.device(device):
        teacher = make_teacher(config, supernet, _Unread(original)) if original else None
    return make_training(config, supernet, teacher)


class _Unread(Checkpoint):
    """A checkpoint of which the shape is known, and no weight is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.kind, self.llama = checkpoint.path, checkpoint.kind, checkpoint.llama

    def tensor(self, name: str) -> Tensor:
        """Return an empty weight of the right shape."""
        return torch.empty(self.llama.shape(self.llama.tensors()[name]))

    stored = tensor


def _vocab_size(config: DictConfig) -> int:
    """Return the rows of the embedding, as far as they are known without the corpus."""
    checkpoint = checkpoint_of(config.model)
    if checkpoint is not None:
        return checkpoint.llama.vocab_size
    if config.data.tokenizer_file is not None:
        return load_tokenizer(Path(config.data.tokenizer_file)).vocab_size
    if config.data.vocab_size is None:
        raise UserError("data.vocab_size is null: give a size, or a data.tokenizer_file")
    return int(config.data.vocab_size)


def _fill_gradients(supernet: Supernet) -> None:
    for parameter in supernet.parameters():
        parameter.grad = torch.empty_like(parameter)


def _update(optimizer: Any) -> None:
    """Go through an update; of bitsandbytes', whose kernels take no fake tensors, through what it allocates."""
    if not hasattr(optimizer, "init_state"):
        optimizer.step()
        return
    for i, group in enumerate(optimizer.param_groups):
        for k, parameter in enumerate(group["params"]):
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, i, k)


def _steps(training: SupernetTraining, n_tokens: int) -> dict[str, int | None]:
    """Return kind of step -> the step whose nets take the most FLOPs; None for gate steps, which are all alike.

    Joint steps that train nets in different roles are kinds of their own.
    """
    schedule, supernet = training.schedule, training.supernet
    most: dict[str, tuple[float, int]] = {}
    kinds = [schedule.kind(step) for step in range(schedule.steps)]
    for step, kind in enumerate(kinds):
        if kind == "gates" or (kind == "alone" and kind in most):
            continue
        nets = schedule.subnets(supernet.space, training.seed, step)
        name = kind if kind == "alone" else f"{kind}: {', '.join(role for role, _ in nets)}"
        flops = sum(subnet_flops(supernet, architecture, n_tokens) for _, architecture in nets)
        most[name] = max(most.get(name, (0.0, 0)), (flops, step))
    found: dict[str, int | None] = {name: step for name, (_, step) in most.items()}
    return {**found, "gates": None} if "gates" in kinds else found


def _weight_loss(training: SupernetTraining, batch: Tensor, step: int) -> Tensor:
    subnets = training.schedule.subnets(training.supernet.space, training.seed, step)
    return joint_loss(training.supernet, batch, subnets, training.schedule, training.teacher)[0]


def _gate_loss(training: SupernetTraining, batch: Tensor) -> Tensor:
    """Return the loss of the relaxed net; the other terms of a gate step are a few numbers."""
    batch = batch[: training.schedule.gate_rows(len(batch))]
    choices = {
        gene.name: torch.ones(len(gene.choices), device=batch.device, requires_grad=True)
        for gene in training.supernet.space
    }
    return next_token_loss(training.supernet(batch[:, :-1], choices), batch[:, 1:])


def _largest_unit(supernet: Supernet) -> int:
    layers = [n_bytes(layer.state_dict()) for layer in supernet.layers]
    return max(*layers, n_bytes(supernet.state_dict()) - sum(layers))


def show(config: DictConfig) -> None:
    """Print what training with these settings needs: on one device, and by formula on several under FSDP."""
    found = plan(config)
    capacity = _capacity(found.device)
    rows = []
    for n_devices in (1, *SHARDED):
        held = found.on(n_devices)
        name = "1 device" if n_devices == 1 else f"each of {n_devices}, FSDP"
        rows.append([name, *(f"{size / MB:,.1f}" for size in held.values()), f"{held['total'] / capacity:.1%}"])
    columns = ["on", *(found.optimizer_name if part == "optimizer" else part for part in found.on(1))]
    title = f"{config.name}: memory of {found.n_parameters / 1e6:,.2f}M parameters in training, MB"
    print_table(title, [*columns, f"of {capacity / MB:,.0f} ({found.device.type})"], rows)
    steps = [[kind, f"{size / MB:,.1f}"] for kind, size in found.beyond.items()]
    print_table("activations by kind of step, MB", ["step", "activations"], steps)


def _capacity(device: torch.device) -> int:
    """Return the bytes of memory that a device has in all; where it is no GPU of its own memory, the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

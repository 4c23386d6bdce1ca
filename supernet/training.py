"""The LightningModule: weight steps of the nets that the schedule names, gate steps on their own split.

One optimizer with three parameter groups serves both kinds of step: AdamW skips what has no gradient, so
a weight step leaves the gates alone and a gate step the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from supernet.budgets import Budget
from supernet.errors import UserError
from supernet.formats import MB
from supernet.gates import Gates
from supernet.genes import Architecture
from supernet.losses import distillation_loss, next_token_loss
from supernet.model import Supernet
from supernet.ordering import order_by_importance
from supernet.randomness import derive
from supernet.sandwich import Schedule
from supernet.teacher import Teacher


class SupernetTraining(L.LightningModule):
    """Trains a supernet and its gates.

    Args:
        supernet: the elastic network.
        gates: one set for each of `budgets`.
        schedule: what each step trains.
        make_optimizer: parameter groups -> optimizer.
        seed: root of every random draw.
        budgets: what the expected cost of each set of gates is held to.
        gate_lr: learning rate of the gates.
        multiplier_lr: step size of the Lagrange multipliers, per relative excess over the budget.
        damping: what is added to a multiplier per relative excess, at once and without memory: the augmented
            Lagrangian (Platt and Barr, Constrained Differential Optimization, 1988).
        entropy_weight: of the gates' entropy at the end of training, ramped up from 0.
        teacher: what all subnets learn from; None: the text alone.
    """

    multipliers: Tensor

    def __init__(
        self,
        supernet: Supernet,
        gates: Gates,
        schedule: Schedule,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        seed: int,
        budgets: Sequence[Budget],
        gate_lr: float,
        multiplier_lr: float,
        damping: float,
        entropy_weight: float,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.supernet, self.gates, self.schedule = supernet, gates, schedule
        self.make_optimizer, self.seed = make_optimizer, seed
        self.budgets, self.gate_lr, self.teacher = tuple(budgets), gate_lr, teacher
        self.multiplier_lr, self.damping, self.entropy_weight = multiplier_lr, damping, entropy_weight
        self.register_buffer("multipliers", torch.zeros(max(1, len(self.budgets))))
        self.gate_history: list[dict[str, Any]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one optimizer: matrices decay, gains, factors and gates do not, gates have their own rate."""
        optimizer = self.make_optimizer(
            [
                *parameter_groups(self.supernet),
                {"params": list(self.gates.parameters()), "weight_decay": 0.0, "lr": self.gate_lr},
            ]
        )
        for group in optimizer.param_groups:
            group["highest_lr"] = group["lr"]
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates of this step (the gates' stays) and who gets gradients; order what widths cut."""
        step = self.global_step
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups[:2]:
            group["lr"] = group["highest_lr"] * self.schedule.lr_factor(step)
        if step == self.schedule.alone_steps and self.schedule.order:
            text = self.trainer.datamodule.calibration(self.schedule.order)  # type: ignore[attr-defined]
            order_by_importance(self.supernet, text[:, :-1].to(self.device), optimizer)
        is_gate_step = self.schedule.kind(step) == "gates"
        self.supernet.requires_grad_(not is_gate_step)
        self.gates.requires_grad_(is_gate_step)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of token ids (batch, tokens + 1)."""
        kind = self.schedule.kind(self.global_step)
        loss = self._gate_loss(batch) if kind == "gates" else self._weight_loss(batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step}: begin again with a lower optimizer.lr or"
                " trainer.gradient_clip_val, under another name= or with fresh=true"
            )
        return loss

    def _weight_loss(self, batch: Tensor) -> Tensor:
        subnets = self.schedule.subnets(self.supernet.space, self.seed, self.global_step)
        loss, shown = joint_loss(self.supernet, batch, subnets, self.schedule, self.teacher)
        for (role, _), value in zip(subnets, shown, strict=True):
            self._show(f"loss_{role}", value)
        return loss

    def _gate_loss(self, batch: Tensor) -> Tensor:
        """Return loss + price x relative excess of the expected cost + entropy, for the set whose turn it is."""
        step = self.global_step
        batch = batch[: self.schedule.gate_rows(len(batch))]
        index = step // self.schedule.gate_every % self.gates.n_sets
        noise = torch.Generator().manual_seed(derive(self.seed, "gumbel", step))
        temperature = self.schedule.gumbel_temperature(step)
        choices = self.gates.sample(index, temperature, self.schedule.hard_gates(step), noise)
        loss = next_token_loss(self.supernet(batch[:, :-1], choices), batch[:, 1:])
        excess = self._expected(index, self.budgets[index]) / self.budgets[index].bound - 1
        with torch.no_grad():  # dual ascent: the price of cost rises while the budget is missed
            self.multipliers[index] = (self.multipliers[index] + self.multiplier_lr * excess).clamp_min(0)
            price = (self.multipliers[index] + self.damping * excess).clamp_min(0)
        entropy = self.entropy_weight * self.schedule.progress(step) * self.gates.entropy(index)
        self._show("loss_gates", loss)
        self._show("temperature", torch.tensor(temperature))
        with torch.no_grad():
            self._show("expected_mb", self._expected_mb(index))
        if index == self.gates.n_sets - 1:
            self._remember(step, temperature)
        return loss + price * excess + entropy

    def _expected(self, index: int, budget: Budget) -> Tensor:
        """Return the expected cost of set `index`, in the budget's unit."""
        return budget.cost(self.gates.expected(index))

    def _expected_mb(self, index: int) -> Tensor:
        return self.supernet.n_bytes(self.gates.expected(index)) / MB

    @torch.no_grad()
    def _remember(self, step: int, temperature: float) -> None:
        self.gate_history.append(
            {
                "step": step,
                "temperature": temperature,
                "expected_mb": [self._expected_mb(i).item() for i in range(self.gates.n_sets)],
                "expected_ms": [self._expected(i, b).item() for i, b in enumerate(self.budgets) if b.unit == "ms"],
                "probabilities": rounded_probabilities(self.gates),
            }
        )

    def _show(self, name: str, value: Tensor) -> None:
        self.log(name, value.detach(), prog_bar=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the gates' history, so that it is whole after a resume."""
        checkpoint["gate_history"] = self.gate_history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the gates' history up again."""
        self.gate_history = checkpoint["gate_history"]


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return the weights of matrices, which decay, and all else, which does not: gains, factors on scales."""
    decays = {True: list[Any](), False: list[Any]()}
    for name, parameter in network.named_parameters():
        decays[parameter.ndim > 1 and "log_factors" not in name].append(parameter)
    return [{"params": decays[True]}, {"params": decays[False], "weight_decay": 0.0}]


def joint_loss(
    supernet: Supernet,
    batch: Tensor,
    subnets: Sequence[tuple[str, Architecture]],
    schedule: Schedule,
    teacher: Teacher | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the weighted sum of the losses of some subnets on a batch, and the next-token loss of each.

    Beside the largest, the gradient of a hopeless net is several times as long, and clipping would leave of the
    largest's next to nothing: hence `student_gap`. A net by itself has its whole weight: its loss says as much of the
    batch as of the net, and hard batches must not count for less.

    Args:
        supernet: whose weights they share.
        batch: token ids (batch, tokens + 1).
        subnets: (role, hard choices for every gene). The largest, if it is there, comes first and teaches the others
            (in-place distillation).
        schedule: `student_weight`, `student_gap` and `distillation` are read.
        teacher: a frozen one, that teaches all of them, instead of the largest.
    """
    tokens, targets = batch[:, :-1], batch[:, 1:]
    losses: list[Tensor] = []
    shown: list[Tensor] = []
    lesson = None if teacher is None else teacher.lesson(tokens)
    predictions = None  # the largest's
    for role, architecture in subnets:
        states: list[Tensor] = []
        logits = supernet(tokens, architecture, states)
        if lesson is not None:
            loss, next_token = lesson.loss(logits, states, targets)
        elif predictions is not None:
            loss, next_token = distillation_loss(logits, predictions, targets)
        else:
            loss = next_token = next_token_loss(logits, targets)
        weight: float | Tensor = 1.0 if role == "largest" else schedule.student_weight
        if role == "largest":
            if lesson is None and schedule.distillation and len(subnets) > 1:
                predictions = logits.detach().float().softmax(-1)
        elif subnets[0][0] == "largest" and shown:
            weight = weight / (1 + (next_token.detach() - shown[0].detach()).clamp_min(0) / schedule.student_gap)
        losses.append(weight * loss)
        shown.append(next_token)
    return torch.stack(losses).sum(), shown


def rounded_probabilities(gates: Gates) -> list[list[list[float]]]:
    """Return the probabilities per set, gene and choice, without padding."""
    return [
        [[round(p, 5) for p in row.tolist()] for row in gates.distributions(one_set).values()]
        for one_set in gates.probabilities()
    ]

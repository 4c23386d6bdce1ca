"""Fine-tuning of finalists: quantization-aware, distilled from the run's original, else from the largest subnet."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from search.incremental import IncrementalRounding
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import replacing
from supernet.fitting import Batches, fit
from supernet.flops import forward_flops, tuning_flops
from supernet.losses import distillation_loss
from supernet.randomness import derive
from supernet.subnet import Decoder
from supernet.training import parameter_groups

WEIGHTS = "model.safetensors"  # of a tuned net, in its folder
SETTLED = 0.99  # share of the steps after which all weights are


@dataclass(frozen=True)
class FineTuning:
    """How finalists and the uniform baselines are fine-tuned.

    Attributes:
        steps: 0 for none.
        trial_steps: that the inherited weights and those of the run's original, cut to size, are both tuned for; the
            better on `valid` then begins anew, for all steps. 0, or no original: the inherited ones.
        full_precision: share of the steps, the first ones, in which no weight is rounded: a net gets used to its
            structure, and to its formats when the rate has fallen (ParetoQ, arXiv 2502.02631, has 0.9).
        incremental: round the weights little by little for good, see `IncrementalRounding`; else all of them in every
            step, and pass gradients straight through.
        equal_flops: a net gets as many more steps as its step costs less FLOPs than the largest net's.
        lr: highest learning rate of AdamW, falling linearly to 0.
        warmup_steps: over which it rises.
        batch_size: sequences in a step, of the run's own sequence length.
        distillation: share of the teacher's predictions in the target; the rest is the next token itself.
        weight_decay: of matrices.
        baselines: fine-tune the baselines too, in the same way: the largest net in each format, the smallest.
        trainer: settings of `lightning.Trainer`.
    """

    steps: int
    trial_steps: int
    full_precision: float
    incremental: bool
    equal_flops: bool
    lr: float
    warmup_steps: int
    batch_size: int
    distillation: float
    weight_decay: float
    baselines: bool
    trainer: Mapping[str, Any]

    def __post_init__(self) -> None:
        if min(self.steps, self.trial_steps) < 0 or self.lr <= 0 or self.batch_size < 1:
            raise UserError("finetune: steps and trial_steps must be 0 or more, lr above 0, batch_size 1 or more")
        if not 0 <= self.distillation <= 1:
            raise UserError(f"finetune.distillation must be from 0 to 1, got {self.distillation}")
        if not 0 <= self.full_precision <= 1:
            raise UserError(f"finetune.full_precision must be from 0 to 1, got {self.full_precision}")

    def steps_for(self, decoder: Decoder, teacher: Decoder, length: int) -> int:
        """Return how many steps a decoder gets; with `equal_flops` all cost what the teacher itself would.

        A step costs a training pass of the decoder, and a forward pass of the teacher where that is learned from.

        Args:
            decoder: what is tuned.
            teacher: as large as the largest subnet.
            length: tokens of a sequence.
        """
        if not self.equal_flops:
            return self.steps
        largest = forward_flops(teacher, length)
        predicting = largest if self.distillation else 0.0
        costs = [tuning_flops(forward, predicting) for forward in (largest, forward_flops(decoder, length))]
        return round(self.steps * costs[0] / costs[1])

    @property
    def trial(self) -> "FineTuning":
        """The same for as long as a trial takes; where the first steps round nothing, it rounds nothing either."""
        unrounded = self.full_precision > 0
        return replace(
            self,
            steps=self.trial_steps,
            full_precision=float(unrounded),
            incremental=self.incremental and not unrounded,
        )

    def tune(self, folder: Path, name: str, decoder: Decoder, teacher: Decoder, data: TokenData, seed: int) -> Decoder:
        """Return the fine-tuned decoder; its weights are kept in `folder`, so that this is done once.

        Args:
            folder: of this decoder alone: model.safetensors, and checkpoints while it trains.
            name: for the progress bar.
            decoder: with inherited weights and formats.
            teacher: what it learns from: the original, else the largest subnet.
            data: its training split is used.
            seed: root of the draws; the same for all, so that all see the same batches.
        """
        from safetensors.torch import load_file, save_file

        weights = folder / WEIGHTS
        if not weights.exists():
            length = int(data.config["sequence_length"])
            settings = replace(self, steps=self.steps_for(decoder, teacher, length))
            module = _Module(settings, decoder, teacher)
            draws = derive(seed, "fine-tuning")
            batches = Batches(data, settings.steps, lambda _: "train", draws, self.batch_size, length)
            fit(module, batches, folder / "checkpoints", self.trainer, name)
            with replacing(weights) as temporary:
                save_file({k: v.detach().cpu() for k, v in decoder.state_dict().items()}, temporary)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # several times the weights
            for linear in decoder.linears():
                linear.rounds = True
        decoder.load_state_dict(load_file(weights))
        return decoder.cpu()


class _Module(L.LightningModule):
    def __init__(self, settings: FineTuning, decoder: Decoder, teacher: Decoder) -> None:
        super().__init__()
        self.settings, self.decoder = settings, decoder
        # Kept out of the module's parameters: the teacher is neither trained nor in the checkpoints.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.rounding = IncrementalRounding(decoder) if settings.incremental else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.decoder.requires_grad_(True))
        return torch.optim.AdamW(
            groups, lr=self.settings.lr, betas=(0.9, 0.95), weight_decay=self.settings.weight_decay
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step, s = self.global_step, self.settings
        factor = min((step + 1) / max(1, s.warmup_steps), (s.steps - step) / s.steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = s.lr * factor
        begun = step - s.full_precision * s.steps
        for linear in self.decoder.linears():
            linear.rounds = begun >= 0 and (self.rounding is None or linear.format.group == 1)
        if self.rounding is not None and begun >= 0:
            share = math.sqrt(begun / max(1.0, s.steps * (SETTLED - s.full_precision)))
            self.rounding.settle(min(1.0, math.floor(100 * share) / 100))  # sorting in every step would be dear

    def on_after_backward(self) -> None:
        if self.rounding is not None:
            self.rounding.mask_gradients()

    def on_train_end(self) -> None:
        if self.rounding is not None:
            self.rounding.settle(1.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        share = self.settings.distillation
        teacher = self._teacher[0].to(self.device)
        with torch.no_grad():
            target = share * teacher(tokens).float().softmax(-1) if share else None
            if target is None:
                target = torch.zeros(*tokens.shape, self.decoder.vocab_size, device=self.device)
            target.scatter_add_(-1, targets.unsqueeze(-1), torch.full_like(target[..., :1], 1 - share))
        loss, next_token = distillation_loss(self.decoder(tokens), target, targets)
        if not torch.isfinite(loss):
            raise UserError(f"fine-tuning: the loss is {loss.item()} at step {self.global_step}; lower finetune.lr")
        self.log("loss", next_token, batch_size=1)
        return loss

"""Fine-tuning of the nets of a search, from the supernet's weights or from those that the supernet began with."""

import copy
import math
import shutil
import sys
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from search.finetune import FineTuning
from supernet.data import TokenData
from supernet.files import read_json, write_json
from supernet.genes import Genome
from supernet.losses import best_device, evaluate
from supernet.model import Supernet
from supernet.ordering import order_by_importance
from supernet.original import original_supernet
from supernet.randomness import derive
from supernet.run import TrainedSupernet
from supernet.subnet import Decoder, extract

TRIAL = "trial.json"  # in a net's folder: the losses by which its beginning was chosen
ORDER_TOKENS = 16_384  # of the training split, on which importance is taken


class Tuner:
    """Fine-tunes nets, from the better of two beginnings.

    What trains all nets moves the largest ones away from the original, so a net that is nearly the original had better
    be cut from that; a small one has learned more in the supernet. Which of the two a net is, a short fine-tuning of
    both tells: the one whose loss on `valid` is then lower begins anew.

    Args:
        trained: the run.
        data: its tokens.
        tuning: how nets are tuned, and for how long on trial.
        teacher: what they learn from.
        valid: rows (n, tokens + 1) to judge by.
        batch_size: rows at a time.
        seed: root of the draws.
    """

    def __init__(
        self,
        trained: TrainedSupernet,
        data: TokenData,
        tuning: FineTuning,
        teacher: Decoder,
        valid: Tensor,
        batch_size: int,
        seed: int,
    ) -> None:
        self.trained, self.data, self.tuning, self.teacher = trained, data, tuning, teacher
        self.valid, self.batch_size, self.seed = valid, batch_size, seed

    @cached_property
    def original(self) -> Supernet | None:
        """The supernet with its original's weights, in order of importance."""
        supernet = original_supernet(self.trained)
        if supernet is not None:
            length = int(self.data.config["sequence_length"])
            n = max(1, ORDER_TOKENS // length)
            rows = self.data.batch("train", derive(self.seed, "order"), 0, n, length).to(best_device())
            order_by_importance(supernet.to(best_device()), rows[:, :-1])
            supernet.cpu()
        return supernet

    def tuned(self, work: Path, name: str, genome: Genome) -> tuple[Decoder, dict[str, float] | None]:
        """Return a net, fine-tuned once, and the losses of its trial; see `choose`.

        Args:
            work: the net's own folder, in which its weights are kept.
            name: of the net.
            genome: of the net.
        """
        begun, trial = self.choose(work, genome, extract(self.trained.supernet, genome))
        return self.tuning.tune(work, f"fine-tune {name}", begun, self.teacher, self.data, self.seed), trial

    def choose(self, work: Path, genome: Genome, inherited: Decoder) -> tuple[Decoder, dict[str, float] | None]:
        """Return what a net's fine-tuning begins with, and the losses of the trial.

        None for these where there is nothing to choose from: no original, or no trial is wanted.

        Args:
            work: the net's own folder, in which the outcome is kept.
            genome: of the net.
            inherited: the net as extracted.
        """
        if not self.tuning.trial_steps or self.original is None:
            return inherited, None
        nets = {"inherited": inherited, "original": extract(self.original, genome)}
        outcome = work / TRIAL
        if not outcome.exists():
            write_json(outcome, {name: self._tried(work / f"trial_{name}", name, net) for name, net in nets.items()})
        for name in nets:
            shutil.rmtree(work / f"trial_{name}", ignore_errors=True)
        losses: dict[str, float] = read_json(outcome)
        return nets[min(nets, key=lambda name: losses[name])], losses

    def _tried(self, folder: Path, name: str, net: Decoder) -> float:
        """Return the loss on `valid` after a short fine-tuning; its weights are kept in a folder.

        Weights are rounded as they ship, unless the trial rounds nothing: after so few steps the loss of rounding would
        hide which beginning is better.
        """
        trial = self.tuning.trial
        tuned = trial.tune(folder, f"try {name} weights", copy.deepcopy(net), self.teacher, self.data, self.seed)
        for linear in tuned.linears():
            if trial.full_precision:
                linear.rounds = False
            else:
                linear.freeze()
        with torch.inference_mode():
            loss, _ = evaluate(tuned.to(best_device()), self.valid, self.batch_size)
        return loss if math.isfinite(loss) else sys.float_info.max  # the worst; JSON has no infinity

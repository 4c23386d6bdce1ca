"""Which step does what: the schedule, and the genomes of a weight step.

First the largest net trains alone, then the space opens: the sandwich rule (largest, smallest, a few in
between; Yu and Huang, arXiv 1903.05134) with every few steps given to the gates. All of it is a pure
function of the step, which is what makes resuming exact.
"""

import math
from dataclasses import dataclass
from typing import Literal

from supernet.errors import UserError
from supernet.genes import KINDS, Architecture, Gene, Kind, SearchSpace
from supernet.randomness import generator

StepKind = Literal["alone", "sandwich", "gates"]


@dataclass(frozen=True)
class Schedule:
    """When what is trained, and how fast.

    Attributes:
        alone_steps: steps of the largest net in full precision.
        joint_steps: steps after that, gate steps included.
        order: put channels and heads in order of importance between the two.
        n_sampled: subnets sampled in a sandwich step, beside largest and smallest.
        smallest_every: the smallest net trains in every n-th sandwich step.
        vary: kinds of genes that the smaller nets differ in; the others keep the largest net's choice.
        spread: draw the mean level of each kind first, then genes around it; else every gene for itself.
        kept: the least share of blocks that sampled nets keep in the mean: nets that lose most of
            their blocks are of little use to anyone, and what they learn the others pay for.
        inherit: share of the joint steps over which cheaper formats open one after another, so that each begins
            with weights that the one above has trained (OQAT, arXiv 2010.04354); 0: all are open at once.
        student_weight: weight of each smaller net's loss; the largest net's is 1.
        student_gap: nats behind the largest at which that weight is halved.
        distillation: smaller nets learn the largest's predictions, else the next token.
        gate_every: every n-th joint step is a gate step; 0 for none.
        gate_warmup: share of the joint steps before the first gate step.
        hard_after: share of the joint steps after which gate samples are one-hot.
        temperature: of the Gumbel-softmax, first and last.
        warmup_steps: steps over which the learning rate rises.
        final_lr: the last learning rate as a share of the highest; a cosine leads there.
    """

    alone_steps: int
    joint_steps: int
    order: bool
    n_sampled: int
    smallest_every: int
    vary: tuple[Kind, ...]
    spread: bool
    kept: float
    inherit: float
    student_weight: float
    student_gap: float
    distillation: bool
    gate_every: int
    gate_warmup: float
    hard_after: float
    temperature: tuple[float, float]
    warmup_steps: int
    final_lr: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", tuple(self.temperature))
        object.__setattr__(self, "vary", tuple(self.vary))
        if not set(self.vary) <= set(KINDS):
            raise UserError(f"schedule.vary must hold some of {', '.join(KINDS)}, got {list(self.vary)}")
        for name, share in (("kept", self.kept), ("inherit", self.inherit)):
            if not 0 <= share <= 1:
                raise UserError(f"schedule.{name} must be from 0 to 1, got {share}")
        if self.alone_steps < 0 or self.joint_steps < 0 or self.steps < 1:
            raise UserError("schedule.alone_steps and schedule.joint_steps must be 0 or more, and one of them 1")
        if self.n_sampled < 0 or self.smallest_every < 1 or self.gate_every < 0 or self.gate_every == 1:
            raise UserError(
                "schedule: n_sampled must be 0 or more, smallest_every 1 or more, gate_every 0 (never) or 2 or more"
            )
        if self.student_weight < 0:
            raise UserError(f"schedule.student_weight must be 0 or more, got {self.student_weight}")
        if self.student_gap <= 0:
            raise UserError(f"schedule.student_gap must be above 0, got {self.student_gap}")
        if len(self.temperature) != 2 or min(self.temperature) <= 0:
            raise UserError("schedule.temperature must be two positive numbers, the first and the last")

    @property
    def steps(self) -> int:
        """All steps."""
        return self.alone_steps + self.joint_steps

    def progress(self, step: int) -> float:
        """Return the share of the joint steps that lies behind `step`; 0 while training alone."""
        return max(0.0, (step - self.alone_steps) / max(1, self.joint_steps))

    def kind(self, step: int) -> StepKind:
        """Return what step `step` trains."""
        if step < self.alone_steps:
            return "alone"
        turn = self.gate_every and (step - self.alone_steps) % self.gate_every == self.gate_every - 1
        return "gates" if turn and self.progress(step) >= self.gate_warmup else "sandwich"

    def lr_factor(self, step: int) -> float:
        """Return the learning rate of `step` as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def gumbel_temperature(self, step: int) -> float:
        """Return the temperature of `step`: geometric from first to last."""
        first, last = self.temperature
        return float(first * (last / first) ** self.progress(step))

    def hard_gates(self, step: int) -> bool:
        """Return whether gate samples are one-hot at `step`."""
        return self.progress(step) >= self.hard_after

    def subnets(self, space: SearchSpace, seed: int, step: int) -> list[tuple[str, Architecture]]:
        """Return (role, architecture) of every subnet that trains in weight step `step`, the largest first."""
        if self.kind(step) == "alone":
            return [("largest", space.full_precision(space.largest))]
        offered = space.above(lambda gene: self._lowest(gene, step))
        chosen = [("largest", space.decode(space.largest))]
        if (step - self.alone_steps) % self.smallest_every == 0:
            chosen.append(("smallest", offered.decode(offered.smallest)))
        rng = generator(seed, "sandwich", step)
        draw = offered.sample_spread if self.spread else offered.sample
        chosen += [("sampled", offered.decode(draw(rng, self.kept))) for _ in range(self.n_sampled)]
        return chosen

    def _lowest(self, gene: Gene, step: int) -> int:
        """Return the index of the cheapest choice that smaller nets may take."""
        last = len(gene.choices) - 1
        if gene.kind not in self.vary:
            return last
        opened = min(1.0, self.progress(step) / self.inherit) if self.inherit else 1.0
        return math.ceil((1 - opened) * last) if gene.kind == "format" else 0

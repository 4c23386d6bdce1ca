"""Which step does what: the schedule, and the genomes of a weight step.

First the largest net trains alone, then the space opens: one subnet a step (single path, Guo et al., arXiv
1904.00420), or the sandwich rule (largest, smallest, a few in between; Yu and Huang, arXiv 1903.05134), with every few
steps given to the gates. All of it is a pure function of the step, which is what makes resuming exact.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from supernet.errors import UserError
from supernet.genes import KINDS, Architecture, Gene, Kind, SearchSpace
from supernet.randomness import generator

StepKind = Literal["alone", "joint", "gates"]


@dataclass(frozen=True)
class Schedule:
    """When what is trained, and how fast.

    Attributes:
        alone_steps: steps of the largest net in full precision.
        joint_steps: steps after that, gate steps included.
        order: batches of text on which channels and heads are put in order of importance between the two; 0: they stay
            as they are. For weights of one net trained alone.
        largest_every: the largest net trains in every n-th joint step. 1: in each, beside the others, which learn its
            predictions (sandwich rule); else the others have the steps between to themselves (single path).
        smallest_every: the smallest net trains in every n-th joint step, where the others do; 0: never.
        n_sampled: subnets that are sampled for such a step.
        vary: kinds of genes that the smaller nets differ in; the others keep the largest net's choice.
        spread: draw the mean level of each kind first, then genes around it; else every gene for itself.
        floor: for each kind of gene the least mean level of sampled nets, from 0, all choices, to 1, the dearest:
            hopeless nets are of little use to anyone, and what they learn the others pay for.
        inherit: share of the joint steps over which cheaper formats open one after another, so that each begins
            with weights that the one above has trained (OQAT, arXiv 2010.04354); 0: all are open at once.
        student_weight: weight of each smaller net's loss; the largest net's is 1.
        student_gap: nats behind the largest at which that weight is halved, where both train on the same batch.
        distillation: smaller nets learn the largest's predictions where it trains beside them, else the next token; a
            frozen teacher (`conf/teacher/`) comes before both.
        gate_every: every n-th joint step is a gate step; 0 for none.
        gate_share: share of a batch that a gate step takes.
        gate_warmup: share of the joint steps before the first gate step.
        hard_after: share of the joint steps after which gate samples are one-hot.
        temperature: of the Gumbel-softmax, first and last.
        warmup_steps: steps over which the learning rate rises.
        decay: share of the steps, the last ones, over which the learning rate falls linearly (Haegele et al., arXiv
            2405.18392); before, it is constant.
        final_lr: the last learning rate as a share of the highest.
    """

    alone_steps: int
    joint_steps: int
    order: int
    largest_every: int
    smallest_every: int
    n_sampled: int
    vary: tuple[Kind, ...]
    spread: bool
    floor: Mapping[Kind, float]
    inherit: float
    student_weight: float
    student_gap: float
    distillation: bool
    gate_every: int
    gate_warmup: float
    gate_share: float
    hard_after: float
    temperature: tuple[float, float]
    warmup_steps: int
    decay: float
    final_lr: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", tuple(self.temperature))
        object.__setattr__(self, "vary", tuple(self.vary))
        object.__setattr__(self, "floor", dict(self.floor))
        for name, kinds in (("vary", self.vary), ("floor", self.floor)):
            if not set(kinds) <= set(KINDS):
                raise UserError(f"schedule.{name} must hold some of {', '.join(KINDS)}, got {list(kinds)}")
        shares = {f"floor.{kind}": share for kind, share in self.floor.items()}
        shares |= {name: getattr(self, name) for name in ("inherit", "decay", "final_lr", "gate_warmup", "hard_after")}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"schedule.{name} must be from 0 to 1, got {share}")
        if not 0 < self.gate_share <= 1:
            raise UserError(f"schedule.gate_share must be above 0 and at most 1, got {self.gate_share}")
        if self.alone_steps < 0 or self.joint_steps < 0 or self.steps < 1:
            raise UserError("schedule.alone_steps and schedule.joint_steps must be 0 or more, and one of them 1")
        if self.order < 0:
            raise UserError(f"schedule.order must be 0 (false: never) or a number of batches, got {self.order}")
        if self.n_sampled < 0 or self.largest_every < 1 or self.smallest_every < 0:
            raise UserError(
                "schedule: n_sampled must be 0 or more, largest_every 1 or more, smallest_every 0 (never) or more"
            )
        if self.largest_every > 1 and not self.n_sampled:
            raise UserError("schedule.n_sampled must be 1 or more where largest_every leaves steps to sampled nets")
        if self.gate_every < 0 or self.gate_every == 1:
            raise UserError(f"schedule.gate_every must be 0 (never) or 2 or more, got {self.gate_every}")
        if self.gate_every == self.largest_every == 2:
            raise UserError("schedule: gate_every=2 takes every step that largest_every=2 leaves to sampled nets")
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

    @property
    def gate_steps(self) -> int:
        """Number of gate steps."""
        return sum(self.kind(step) == "gates" for step in range(self.alone_steps, self.steps))

    def progress(self, step: int) -> float:
        """Return the share of the joint steps that lies behind `step`; 0 while training alone."""
        return max(0.0, (step - self.alone_steps) / max(1, self.joint_steps))

    def kind(self, step: int) -> StepKind:
        """Return what step `step` trains."""
        if step < self.alone_steps:
            return "alone"
        turn = self.gate_every and (step - self.alone_steps) % self.gate_every == self.gate_every - 1
        return "gates" if turn and self.progress(step) >= self.gate_warmup else "joint"

    def lr_factor(self, step: int) -> float:
        """Return the learning rate of `step` as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.final_lr + (1 - self.final_lr) * left if self.decay and left < 1 else 1.0

    def gate_rows(self, n_rows: int) -> int:
        """Return how many sequences of a batch a gate step takes."""
        return math.ceil(self.gate_share * n_rows)

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
        turn = step - self.alone_steps
        largest = [("largest", space.decode(space.largest))] if turn % self.largest_every == 0 else []
        if largest and self.largest_every > 1:
            return largest
        offered = space.above(lambda gene: self._lowest(gene, step))
        chosen = largest
        if self.smallest_every and turn % self.smallest_every == 0:
            chosen.append(("smallest", offered.decode(offered.smallest)))
        rng = generator(seed, "sandwich", step)
        draw = offered.sample_spread if self.spread else offered.sample
        chosen += [("sampled", offered.decode(draw(rng, self.floor))) for _ in range(self.n_sampled)]
        return chosen

    def _lowest(self, gene: Gene, step: int) -> int:
        """Return the index of the cheapest choice that smaller nets may take."""
        last = len(gene.choices) - 1
        if gene.kind not in self.vary:
            return last
        opened = min(1.0, self.progress(step) / self.inherit) if self.inherit else 1.0
        return math.ceil((1 - opened) * last) if gene.kind == "format" else 0

"""A schedule that tests change with `dataclasses.replace`."""

from supernet.sandwich import Schedule

SCHEDULE = Schedule(
    alone_steps=10,
    joint_steps=40,
    order=2,
    largest_every=1,
    smallest_every=2,
    n_sampled=2,
    vary=("width", "switch", "format"),
    spread=True,
    floor={},
    inherit=0.0,
    student_weight=0.5,
    student_gap=float("inf"),
    distillation=True,
    gate_every=4,
    gate_warmup=0.25,
    gate_share=0.5,
    hard_after=0.5,
    temperature=(4.0, 1.0),
    warmup_steps=5,
    decay=1.0,
    final_lr=0.1,
)

from dataclasses import replace
from itertools import combinations

import pytest

from supernet.errors import UserError
from tests.supernet.schedule import SCHEDULE


def test_kinds():
    kinds = [SCHEDULE.kind(step) for step in range(SCHEDULE.steps)]
    assert kinds[:10] == ["alone"] * 10
    assert kinds[10:20] == ["joint"] * 10  # the gates' warm-up
    gate_steps = [step for step, kind in enumerate(kinds) if kind == "gates"]
    assert gate_steps == [21, 25, 29, 33, 37, 41, 45, 49]
    assert set(kinds) == {"alone", "joint", "gates"}


def test_no_gates():
    schedule = replace(SCHEDULE, gate_every=0)
    assert "gates" not in {schedule.kind(step) for step in range(schedule.steps)}
    assert not schedule.gate_steps
    assert SCHEDULE.gate_steps == 8
    assert not replace(SCHEDULE, joint_steps=0).gate_steps


def test_the_learning_rate_rises_and_falls():
    schedule = replace(SCHEDULE, decay=0.4)
    factors = [schedule.lr_factor(step) for step in range(schedule.steps + 1)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:31] == [1.0] * 26
    assert factors[31:] == pytest.approx([1 - 0.9 * i / 20 for i in range(1, 21)])
    assert replace(schedule, warmup_steps=0).lr_factor(0) == 1
    assert replace(schedule, decay=0.0).lr_factor(schedule.steps) == 1


def test_the_temperature_falls_geometrically():
    assert [SCHEDULE.gumbel_temperature(step) for step in (0, 10, 30, 50)] == pytest.approx([4, 4, 2, 1])


def test_hard_gates_come_later():
    assert [SCHEDULE.hard_gates(step) for step in (0, 29, 30, 49)] == [False, False, True, True]


def test_the_largest_trains_alone_in_full_precision(toy_space):
    assert SCHEDULE.subnets(toy_space, 0, 3) == [("largest", toy_space.full_precision(toy_space.largest))]


def test_a_sandwich(toy_space):
    roles = [[role for role, _ in SCHEDULE.subnets(toy_space, 0, step)] for step in (10, 11, 12)]
    assert roles == [
        ["largest", "smallest", "sampled", "sampled"],
        ["largest", "sampled", "sampled"],
        ["largest", "smallest", "sampled", "sampled"],
    ]
    named = dict(SCHEDULE.subnets(toy_space, 0, 10)[:2])
    assert named["largest"] == toy_space.decode(toy_space.largest)
    assert named["smallest"] == toy_space.decode(toy_space.smallest)
    for _, architecture in SCHEDULE.subnets(toy_space, 0, 10):
        assert toy_space.decode(toy_space.encode(architecture)) == architecture


def test_single_path(toy_space):
    schedule = replace(SCHEDULE, largest_every=3, n_sampled=1)
    roles = [[role for role, _ in schedule.subnets(toy_space, 0, step)] for step in range(10, 17)]
    by_turn = [["largest"], ["sampled"], ["smallest", "sampled"], ["largest"], ["smallest", "sampled"], ["sampled"]]
    assert roles == [*by_turn, ["largest"]]
    assert all(
        replace(schedule, smallest_every=0).subnets(toy_space, 0, step)[0][0] != "smallest" for step in range(10, 30)
    )


@pytest.mark.parametrize("spread", [True, False])
def test_sampled_nets_stay_above_the_floor(supernet_of, spread):
    space = supernet_of().space
    schedule = replace(SCHEDULE, floor={"switch": 1.0, "format": 0.5}, spread=spread, smallest_every=0)
    drawn = [space.encode(a) for step in range(10, 40) for _, a in schedule.subnets(space, 0, step)[1:]]
    levels = {
        kind: [
            k / max(1, len(g.choices) - 1)
            for genome in drawn
            for g, k in zip(space, genome, strict=True)
            if g.kind == kind
        ]
        for kind in ("switch", "format", "width")
    }
    assert set(levels["switch"]) == {1.0}
    assert sum(levels["format"]) / len(levels["format"]) > 0.6 and min(levels["width"]) == 0


def test_subnets_are_a_function_of_seed_and_step(toy_space):
    drawn = {(seed, step): SCHEDULE.subnets(toy_space, seed, step) for step in (30, 12) for seed in (0, 1)}
    for (seed, step), subnets in drawn.items():
        assert SCHEDULE.subnets(toy_space, seed, step) == subnets
    sampled = [[architecture for role, architecture in s if role == "sampled"] for s in drawn.values()]
    assert all(a != b for a, b in combinations(sampled, 2))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (dict(alone_steps=-1), "alone_steps"),
        (dict(alone_steps=0, joint_steps=0), "joint_steps"),
        (dict(n_sampled=-1), "n_sampled"),
        (dict(largest_every=0), "largest_every"),
        (dict(largest_every=2, n_sampled=0), "n_sampled"),
        (dict(smallest_every=-1), "smallest_every"),
        (dict(floor={"depth": 0.5}), "floor"),
        (dict(floor={"width": 1.5}), "floor.width"),
        (dict(decay=2.0), "decay"),
        (dict(gate_share=0.0), "gate_share"),
        (dict(student_weight=-1.0), "student_weight"),
        (dict(gate_every=1), "gate_every"),
        (dict(gate_every=-2), "gate_every"),
        (dict(gate_every=2, largest_every=2), "largest_every=2 leaves"),
        (dict(temperature=(1.0,)), "temperature"),
        (dict(temperature=(1.0, 0.0)), "temperature"),
    ],
)
def test_impossible_schedules_are_refused(change, key):
    with pytest.raises(UserError, match=f"schedule.*{key}"):
        replace(SCHEDULE, **change)


def test_one_phase_is_enough():
    assert replace(SCHEDULE, joint_steps=0).steps == 10
    assert replace(SCHEDULE, alone_steps=0).kind(0) == "joint"


def test_only_what_varies_differs_from_the_largest(supernet_of):
    space = supernet_of().space
    schedule = replace(SCHEDULE, vary=("format",), smallest_every=1)
    for step in range(10, 30):
        for _, architecture in schedule.subnets(space, 0, step)[1:]:
            assert all(architecture[g.name] == g.choices[-1] for g in space if g.kind != "format")
    smallest = schedule.subnets(space, 0, 10)[1][1]
    assert all(smallest[g.name] == g.choices[0] for g in space if g.kind == "format")


def test_formats_open_from_the_dearest_on(supernet_of):
    space = supernet_of().space
    schedule = replace(SCHEDULE, inherit=0.5, smallest_every=1)

    def lowest(step):
        smallest = space.encode(schedule.subnets(space, 0, step)[1][1])
        return sum(k for g, k in zip(space, smallest, strict=True) if g.kind == "format")

    levels = [lowest(step) for step in range(10, 50)]
    assert levels == sorted(levels, reverse=True) and levels[0] > levels[-1] == 0
    assert levels.index(0) <= 20


def test_independent_draws(supernet_of):
    space = supernet_of().space
    spread, alone = (replace(SCHEDULE, spread=spread).subnets(space, 0, 15) for spread in (True, False))
    assert spread[-1] != alone[-1]

"""What a matrix needs least: weak channels, and of those that say the same all but one."""

import pytest
import torch

from supernet.elimination import elimination_order, second_moments


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def order_of(read, weight, unit=1):
    return elimination_order(second_moments(read.split(20)), weight, unit)


def test_moments_come_in_parts():
    read = normal(3, 5, 4)
    rows = read.flatten(0, 1).double()
    torch.testing.assert_close(second_moments(read.split(2)), rows.T @ rows / 15)


def test_of_two_channels_that_say_the_same_one_is_needed():
    read = normal(200, 6)
    read[:, 4] = read[:, 1] + 0.01 * normal(200, seed=1)
    read[:, 5] *= 0.1
    order = order_of(read, torch.ones(3, 6)).tolist()
    assert sorted(order) == list(range(6)) and order[-1] in (1, 4) and order[-2] == 5


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_the_first_to_go_costs_least_after_refitting(unit):
    read, weight = normal(300, 8) @ normal(8, 8, seed=2), normal(5, 8, seed=3)
    wanted = read @ weight.T

    def error(without):
        stay = [j for j in range(8) if j // unit != without]
        fitted = torch.linalg.lstsq(read[:, stay], wanted).solution
        return (read[:, stay] @ fitted - wanted).square().sum().item()

    errors = [error(u) for u in range(8 // unit)]
    order = order_of(read, weight, unit)
    assert order[-1] == errors.index(min(errors)) and sorted(order.tolist()) == list(range(8 // unit))


def test_many_channels_go_in_rounds_and_nothing_is_lost():
    read, weight = normal(900, 300), normal(40, 300, seed=1)
    weight[:, 150:] *= 1e-3
    order = order_of(read, weight)
    assert sorted(order.tolist()) == list(range(300)) and set(order[:150].tolist()) == set(range(150))


def test_channels_that_are_never_read_go_first():
    read = normal(50, 7)
    read[:, 3:] = 0
    assert set(order_of(read, normal(4, 7, seed=1))[3:].tolist()) == {3, 4, 5, 6}
    assert sorted(order_of(torch.zeros(5, 4), normal(2, 4)).tolist()) == [0, 1, 2, 3]

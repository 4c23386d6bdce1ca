from itertools import pairwise

import pytest
import torch

from search.incremental import IncrementalRounding
from supernet.formats import FORMATS, format_named
from supernet.plain import Linear

GROUPED = [name for name, each in FORMATS.items() if each.group > 1]


class Net(torch.nn.Module):
    """Projections in formats, and nothing else."""

    def __init__(self, *names, fitting="absmax"):
        super().__init__()
        torch.manual_seed(0)
        formats = [format_named(name, fitting) for name in names]
        self.all = torch.nn.ModuleList(Linear(torch.randn(8, 256), each) for each in formats)

    def linears(self):
        return list(self.all)


def disturb(net):
    """Move every weight, as a step of training would."""
    with torch.no_grad():
        for linear in net.linears():
            linear.weight.add_(0.3 * torch.randn_like(linear.weight))


@pytest.mark.parametrize("fitting", ["absmax", "mse"])
@pytest.mark.parametrize("name", GROUPED)
def test_what_is_settled_stays_and_ships(name, fitting):
    net = Net(name, fitting=fitting)
    (linear,) = net.linears()
    rounding, seen = IncrementalRounding(net), []
    for share in (0.0, 0.3, 0.3, 0.8, 1.0):
        disturb(net)
        rounding.settle(share)
        settled = rounding.settled_0
        seen.append(settled.clone())
        assert (~settled.isnan()).float().mean().item() == pytest.approx(share, abs=1e-3)
        assert torch.equal(linear.weight[~settled.isnan()], settled[~settled.isnan()])
    for before, after in pairwise(seen):
        assert torch.equal(before[~before.isnan()], after[~before.isnan()])
    disturb(net)
    rounding.settle(1.0)
    assert torch.equal(linear.weight, seen[-1])
    assert torch.equal(linear.format.decode(*linear.encoded()), linear.weight)
    assert torch.equal(linear.effective().weight, linear.weight)

    another = Net(name, fitting=fitting)
    another.load_state_dict(net.state_dict())
    for ours, theirs in zip(linear.encoded(), another.linears()[0].encoded(), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    another.linears()[0].store_as(format_named("F16"))
    assert torch.equal(another.linears()[0].encoded()[0], linear.weight.half())
    linear.freeze()
    assert torch.equal(linear.weight, seen[-1]) and not linear.scales


def test_the_largest_go_first_and_have_no_gradient():
    net = Net("Q4_0")
    (linear,) = net.linears()
    before = linear.weight.detach().clone()
    rounding = IncrementalRounding(net)
    rounding.settle(0.25)
    settled = ~rounding.settled_0.isnan()
    assert before[settled].abs().min() >= before[~settled].abs().max()
    assert torch.equal(linear.weight[~settled], before[~settled])
    linear.weight.grad = torch.ones_like(linear.weight)
    rounding.mask_gradients()
    assert torch.equal(linear.weight.grad != 0, ~settled)


def test_formats_without_scales_are_left_alone():
    net = Net("F16", "F32", "Q8_0")
    rounding = IncrementalRounding(net)
    before = [linear.weight.detach().clone() for linear in net.linears()]
    rounding.settle(1.0)
    same = [torch.equal(b, linear.weight) for b, linear in zip(before, net.linears(), strict=True)]
    assert same == [True, True, False]
    assert [bool(linear.scales) for linear in net.linears()] == [False, False, True]

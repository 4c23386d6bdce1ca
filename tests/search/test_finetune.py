import copy
from types import SimpleNamespace

import pytest
import torch

from search import finetune
from search.finetune import FineTuning
from supernet.flops import forward_flops
from supernet.subnet import extract

LENGTH = 12


def settings(**changes):
    values = {
        "steps": 120,
        "trial_steps": 0,
        "full_precision": 0.0,
        "incremental": False,
        "equal_flops": True,
        "lr": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "distillation": 0.5,
        "weight_decay": 0.0,
        "baselines": True,
        "trainer": {},
    }
    return FineTuning(**values | changes)


@pytest.fixture(scope="module")
def nets(tiny_supernet):
    """Return the largest and the smallest subnet."""
    return [extract(tiny_supernet, genome) for genome in (tiny_supernet.space.largest, tiny_supernet.space.smallest)]


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_all_nets_are_tuned_for_the_same_flops(nets, distillation):
    largest, smallest = nets
    tuning = settings(distillation=distillation)
    assert tuning.steps_for(largest, largest, LENGTH) == 120
    teaching = forward_flops(largest, LENGTH) if distillation else 0.0
    step = 3 * forward_flops(smallest, LENGTH) + teaching
    total = tuning.steps_for(smallest, largest, LENGTH) * step
    assert total == pytest.approx(120 * (3 * forward_flops(largest, LENGTH) + teaching), abs=step / 2)
    assert settings(equal_flops=False).steps_for(smallest, largest, LENGTH) == 120


def test_the_schedule_is_as_long_as_the_training(nets, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        finetune, "fit", lambda module, batches, *_: seen.append((module.settings.steps, batches.steps))
    )
    data = SimpleNamespace(config={"sequence_length": LENGTH})
    settings(steps=7).tune(tmp_path, "net", nets[1], nets[0], data, 0)
    steps = settings(steps=7).steps_for(nets[1], nets[0], LENGTH)
    assert seen == [(steps, steps)] and steps > 7


@pytest.mark.parametrize(("share", "rounded"), [(0.0, [True] * 5), (0.6, [False] * 3 + [True] * 2), (1.0, [False] * 5)])
def test_weights_are_rounded_in_the_last_steps(nets, tmp_path, share, rounded):
    largest, smallest = nets
    rows = torch.randint(50, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(config={"sequence_length": LENGTH}, batch=lambda *_: rows)
    net, seen = copy.deepcopy(smallest), []
    net.register_forward_pre_hook(lambda *_: seen.append({linear.rounds for linear in net.linears()}))
    trainer = {"_target_": "lightning.Trainer", "accelerator": "cpu", "checkpoint_every": 100}
    tuning = settings(steps=5, equal_flops=False, full_precision=share, trainer=trainer)
    tuned = tuning.tune(tmp_path, "net", net, largest, data, 0)
    assert seen == [{each} for each in rounded]
    assert all(linear.rounds for linear in tuned.linears())


@pytest.mark.parametrize(("share", "kept"), [(0.0, (0.0, True)), (0.3, (1.0, False))])
def test_a_trial_rounds_nothing_where_the_first_steps_do_not(share, kept):
    trial = settings(trial_steps=7, full_precision=share, incremental=True).trial
    assert (trial.steps, trial.full_precision, trial.incremental) == (7, *kept)


class Stopped(Exception):
    """As if the process had been killed."""


def incrementally(folder, nets, stop_at=None):
    """Return the smaller net, rounded little by little."""
    rows = torch.randint(50, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))

    def batch(split, seed, step, *_):
        if step == stop_at:
            raise Stopped
        return rows

    data = SimpleNamespace(config={"sequence_length": LENGTH}, batch=batch, hash="x", tokenizer_sha256="x")
    trainer = {"_target_": "lightning.Trainer", "accelerator": "cpu", "checkpoint_every": 2}
    tuning = settings(steps=9, equal_flops=False, full_precision=0.2, incremental=True, trainer=trainer)
    return tuning.tune(folder, "net", copy.deepcopy(nets[1]), nets[0], data, 0)


def test_incremental_rounding_goes_on_where_it_was_stopped(nets, tmp_path):
    whole = incrementally(tmp_path / "whole", nets)
    with pytest.raises(Stopped):
        incrementally(tmp_path / "halves", nets, stop_at=7)
    halves = incrementally(tmp_path / "halves", nets)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name]), name
    for linear in whole.linears():
        assert linear.rounds and (linear.format.group == 1 or linear.scales)
        if linear.format.group > 1:
            assert torch.equal(linear.format.decode(*linear.encoded()), linear.weight)

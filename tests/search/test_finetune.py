from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from search import finetune
from search.finetune import FineTuning
from supernet.flops import forward_flops
from supernet.formats import format_named
from supernet.subnet import extract

LENGTH = 12


def settings(**changes):
    values = {
        "steps": 120,
        "equal_flops": True,
        "lr": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "distillation": 0.5,
        "weight_decay": 0.0,
        "learned_scales": False,
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


def test_learned_scales_are_trained_and_come_with_the_weights(tiny_supernet, nets, tmp_path):
    tuning = settings(steps=3, learned_scales=True, lr=1e-2, trainer=finetune_trainer())
    tuned, begun, again = (in_4_bits(tiny_supernet) for _ in range(3))
    for linear in begun.linears():
        plain = (linear.effective().weight - linear.weight).square().sum()
        linear.learn_scales()
        fitted = (linear.effective().weight - linear.weight).square().sum()
        assert fitted < plain
    batch = torch.arange(2 * (LENGTH + 1)).view(2, -1)
    data = SimpleNamespace(config={"sequence_length": LENGTH}, batch=lambda *_: batch)
    tuning.tune(tmp_path, "net", tuned, nets[0], data, 0)
    for before, after in zip(begun.linears(), tuned.linears(), strict=True):
        assert not torch.equal(before.log_factors, after.log_factors)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for one, other in zip(again.freeze_formats().linears(), tuned.freeze_formats().linears(), strict=True):
        assert torch.equal(one.weight, other.weight)


def in_4_bits(supernet):
    decoder = extract(supernet, supernet.space.largest)
    for linear in decoder.linears():
        linear.format = format_named("Q4_0")
    return decoder


def finetune_trainer():
    return {
        "_target_": "lightning.Trainer",
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "checkpoint_every": 100,
    }

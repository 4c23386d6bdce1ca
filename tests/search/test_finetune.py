from types import SimpleNamespace

import pytest

from search import finetune
from search.finetune import FineTuning
from supernet.flops import forward_flops
from supernet.subnet import extract

LENGTH = 12


def settings(**changes):
    values = {
        "steps": 120,
        "trial_steps": 0,
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

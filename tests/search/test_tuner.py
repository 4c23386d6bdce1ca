"""What fine-tuning begins with: of two beginnings the better, found out once."""

import math
from types import SimpleNamespace

import pytest
import torch

from search import tuner as module
from search.tuner import Tuner
from supernet.losses import evaluate
from supernet.subnet import extract

LENGTH = 8


@pytest.fixture
def tuner(tiny_supernet, supernet_of, tmp_path, monkeypatch):
    """Return a tuner whose trials change nothing, and count, of a run whose original is another supernet."""
    monkeypatch.setattr(module, "original_supernet", lambda trained: supernet_of(seed=5))
    rows = torch.randint(50, (40, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(config={"sequence_length": LENGTH}, batch=lambda *_: rows)
    tried = []

    def tune(folder, name, decoder, *_):
        folder.mkdir(parents=True)
        tried.append(name)
        return decoder

    tuning = SimpleNamespace(trial_steps=3, trial=SimpleNamespace(tune=tune, full_precision=0.0), tried=tried)
    return Tuner(SimpleNamespace(supernet=tiny_supernet), data, tuning, None, rows, 8, 0)


def test_the_better_of_two_begins_anew_and_is_found_out_once(tuner, tiny_supernet, tmp_path):
    genome = tiny_supernet.space.smallest
    inherited = extract(tiny_supernet, genome)
    chosen, losses = tuner.choose(tmp_path, genome, inherited)
    assert tuner.tuning.tried == ["try inherited weights", "try original weights"]
    assert set(losses) == {"inherited", "original"}
    assert (chosen is inherited) == (losses["inherited"] <= losses["original"])
    assert all(linear.format.name != "F32" for linear in inherited.linears())  # tried on a copy
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json"]
    again, same = tuner.choose(tmp_path, genome, inherited)
    assert len(tuner.tuning.tried) == 2 and same == losses and (again is inherited) == (chosen is inherited)


def test_what_fits_the_text_better_is_chosen(tuner, tiny_supernet, tmp_path):
    genome = tiny_supernet.space.largest
    inherited = extract(tiny_supernet, genome)
    with torch.no_grad():
        inherited.norm.weight.mul_(20)  # sure of what it gets wrong
    chosen, losses = tuner.choose(tmp_path, genome, inherited)
    assert losses["original"] < losses["inherited"] and chosen is not inherited


def test_a_beginning_that_came_to_nothing_is_the_worst(tuner, tiny_supernet, tmp_path):
    inherited = extract(tiny_supernet, tiny_supernet.space.largest)
    with torch.no_grad():
        inherited.norm.weight.fill_(torch.nan)
    chosen, losses = tuner.choose(tmp_path, tiny_supernet.space.largest, inherited)
    assert chosen is not inherited and losses["original"] < losses["inherited"] < math.inf


@pytest.mark.parametrize("unrounded", [False, True])
def test_trials_are_judged_as_they_were_trained(tuner, tiny_supernet, tmp_path, unrounded):
    genome = tiny_supernet.space.largest
    tuner.tuning.trial.full_precision = float(unrounded)
    _, losses = tuner.choose(tmp_path, genome, extract(tiny_supernet, genome))
    net = extract(tiny_supernet, genome)
    for linear in net.linears():
        linear.rounds = not unrounded
    with torch.inference_mode():
        assert losses["inherited"] == pytest.approx(evaluate(net, tuner.valid, 8)[0], abs=1e-6)


def test_nothing_to_choose_from(tuner, tiny_supernet, tmp_path, monkeypatch):
    inherited = extract(tiny_supernet, tiny_supernet.space.largest)
    tuner.tuning.trial_steps = 0
    assert tuner.choose(tmp_path, tiny_supernet.space.largest, inherited) == (inherited, None)
    tuner.tuning.trial_steps = 3
    monkeypatch.setattr(module, "original_supernet", lambda trained: None)
    assert tuner.choose(tmp_path, tiny_supernet.space.largest, inherited) == (inherited, None)
    assert not any(tmp_path.iterdir())

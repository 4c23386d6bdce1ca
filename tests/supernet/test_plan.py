"""The memory of a training, planned: what is counted is what a real step takes, and a plan leaves nothing behind."""

from contextlib import nullcontext
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from supernet.config import CONF, build, register
from supernet.errors import UserError
from supernet.losses import next_token_loss
from supernet.memory import Rehearsal, n_bytes
from supernet.plan import plan
from supernet.pretrained.hf_llama import HuggingFaceLlama
from supernet.run import build_supernet
from supernet.stage import with_shape
from supernet.training import joint_loss
from tests.scripts import workplace
from tests.supernet.llamas import save_llama

SMALL = (
    "+experiment=smoke",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "batch_size=4",
    "sequence_length=32",
    "data.vocab_size=300",
    "model.n_layers=1",
    "schedule.alone_steps=1",
    "schedule.joint_steps=8",
    "gates.budgets_mb=[0.2]",
)


def composed(*overrides):
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def settings(*overrides):
    return composed(*SMALL, *overrides)


@cache
def planned(*overrides):
    return plan(settings(*overrides))


def real():
    """Return what counts in the same way while tensors are real."""
    counting = Rehearsal()
    counting._fake = nullcontext()
    return counting


def test_storages_are_counted_once_and_until_they_are_dropped():
    with Rehearsal() as rehearsal:
        a = torch.zeros(1000)
        view = a.view(10, 100)[:5]
        assert rehearsal.now == 4000 and n_bytes([a, {"b": view}]) == 4000
        (a + 1).sum()
        assert rehearsal.now == 4000 and rehearsal.peak >= 8000
        assert rehearsal.mark() == rehearsal.peak == 4000
        del a
        assert rehearsal.now == 4000
        del view
        assert rehearsal.now == 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("largest_every", [1, 3])
def test_a_rehearsed_step_takes_what_a_real_one_takes(autocast, largest_every):
    config = settings(f"schedule.largest_every={largest_every}", "model.scales={Q4_0: learned}")
    model, schedule = OmegaConf.to_container(config.model, resolve=True), build(config.schedule)

    def loss_of(supernet, batch, step):
        if step < 3:
            return joint_loss(supernet, batch, schedule.subnets(supernet.space, 0, step), schedule)[0]
        choices = {g.name: torch.ones(len(g.choices), requires_grad=True) for g in supernet.space}
        return next_token_loss(supernet(batch[:, :-1], choices), batch[:, 1:])

    def peaks(counting):
        found = []
        with counting:
            supernet = build_supernet(model, 300)
            batch = torch.zeros(4, 33, dtype=torch.int64)
            for step in range(4):
                before = counting.mark()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
                    loss = loss_of(supernet, batch, step)
                counting.backward(loss)
                found.append(counting.peak - before)
                supernet.zero_grad()
        return found

    rehearsed = peaks(Rehearsal())
    assert min(rehearsed) > 0
    assert rehearsed == pytest.approx(peaks(real()), rel=0.01)  # numbers without a fake counterpart


def test_weights_gradients_and_optimizer_are_counted():
    found = planned()
    assert found.weights == found.gradients == 4 * found.n_parameters
    assert found.optimizer == pytest.approx(8 * found.n_parameters, rel=1e-3)  # and the steps
    assert list(found.beyond) == ["update", "alone", "joint: largest", "joint: sampled", "gates"]
    assert found.activations == max(found.beyond.values())
    logits = 4 * 4 * 32 * 300
    assert found.beyond["alone"] > 3 * logits


def test_states_of_eight_bits():
    with torch.device("meta"):
        supernet = build_supernet(OmegaConf.to_container(settings().model, resolve=True), 300)
    sizes = [parameter.numel() for parameter in supernet.parameters()]
    blocks = [2 * size + 2 * 4 * -(-size // 256) if size >= 4096 else 2 * 4 * size for size in sizes]
    found = planned("optimizer=adamw8bit")
    assert found.optimizer_name == "AdamW8bit"
    assert found.optimizer == sum(blocks) + 2 * 4 * 256  # and two tables of what the codes mean


def test_rows_grow_with_what_they_depend_on():
    small = planned()
    twice = planned("batch_size=8")
    assert twice.weights == small.weights
    assert twice.beyond["alone"] == pytest.approx(2 * small.beyond["alone"], rel=0.2)
    sandwich = planned("schedule.largest_every=1", "schedule.smallest_every=1", "schedule.n_sampled=2")
    name = "joint: largest, smallest, sampled, sampled"
    assert sandwich.beyond[name] > 2 * small.beyond["joint: largest"]


def test_a_teacher_is_counted_and_not_read(tmp_path, monkeypatch):
    llama = save_llama(tmp_path / "llama")
    monkeypatch.setattr(HuggingFaceLlama, "stored", None)
    small = ("batch_size=4", "sequence_length=32", "trainer.accelerator=cpu", "trainer.precision=32-true")
    config = composed("+experiment=compress", "plan=true", f"model.init={tmp_path / 'llama'}", *small)
    found = plan(with_shape(config))
    untaught = plan(with_shape(OmegaConf.merge(config, {"teacher": None})))
    assert found.teacher == 4 * sum(p.numel() for p in llama.parameters()) and untaught.teacher == 0
    assert found.weights == untaught.weights and found.activations > untaught.activations
    assert found.on(4)["teacher"] == found.teacher and "teacher" not in untaught.on(4)


def test_shards():
    found = planned()
    one, four = found.on(1), found.on(4)
    assert one["total"] == found.weights + found.gradients + found.optimizer + found.activations
    assert one["gathered"] == 0 and four["gathered"] == 2 * found.unit
    assert 4 * four["optimizer"] == found.optimizer and four["activations"] == found.activations
    assert found.weights / 2 <= found.unit < found.weights  # the layer, or all but it


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.vocab_size=null", "data.vocab_size is null"),
        ("gates.budgets_mb=[50]", "gates.budgets_mb: 50.0 MB cannot be met"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate"),
        ("sequence_length=300", "exceeds model.context_length=256"),
        ("trainer.precision=3", "Precision 3"),
    ],
)
def test_what_a_training_refuses_a_plan_refuses(override, message):
    with pytest.raises(UserError, match=message):
        plan(settings(override))


@pytest.mark.slow
def test_a_plan_is_printed_and_nothing_is_left_behind(tmp_path_factory):
    place = workplace(tmp_path_factory.getbasetemp())
    before = sorted(place.runs.rglob("*"))
    printed = place.train("plan=true", "name=planned", "data.corpus.paths=???").fine
    for word in ("weights", "gradients", "AdamW", "activations", "1 device", "each of 8, FSDP", "joint: sampled"):
        assert word in printed
    assert sorted(place.runs.rglob("*")) == before
    assert "data.vocab_size is null" in place.train("plan=true", "data.vocab_size=null").error
    assert sorted(place.runs.rglob("*")) == before

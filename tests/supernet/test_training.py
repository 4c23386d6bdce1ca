"""Gates are held to what a net weighs and to what a token takes."""

from dataclasses import replace
from functools import partial

import lightning as L
import pytest
import torch

from supernet.budgets import check_budgets
from supernet.errors import UserError
from supernet.formats import MB
from supernet.gates import Gates
from supernet.hardware import HardwareModel, Probe, probe_genomes
from supernet.run import gates_json
from supernet.training import SupernetTraining, joint_loss
from tests.supernet.schedule import SCHEDULE


@pytest.fixture(scope="module")
def model(tiny_supernet):
    """Return a device on which F16 is slow and each block costs."""

    def decode_ms(inventory):
        slow = inventory.get("F16.weights", 0) + inventory.get("F32.weights", 0)
        return 0.01 + 0.01 * (inventory["attention"] + inventory["mlp"]) + 1e-6 * slow

    inventories = [tiny_supernet.inventory(tiny_supernet.space.decode(g)) for g in genomes(tiny_supernet)]
    return HardwareModel.fit([Probe((), i, {"decode_ms": decode_ms(i)}) for i in inventories])


def genomes(supernet):
    return probe_genomes(supernet.space, 40, 0)


def training_of(supernet, budgets, gate_every=2, entropy_weight=0.1):
    steps = {"alone_steps": 2, "joint_steps": 60, "warmup_steps": 2, "n_sampled": 1}
    gating = {"gate_every": gate_every, "gate_warmup": 0.1, "hard_after": 0.7, "temperature": (5.0, 0.5)}
    schedule = replace(SCHEDULE, order=0, **steps, **gating)
    gates = Gates(supernet.space, len(budgets), 2.0)
    adam = partial(torch.optim.AdamW, lr=1e-3)
    return SupernetTraining(supernet, gates, schedule, adam, 0, budgets, 0.4, 0.1, 1.0, entropy_weight)


def train(training):
    batches = torch.randint(50, (training.schedule.steps, 2, 9), generator=torch.Generator().manual_seed(0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=training.schedule.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, torch.utils.data.DataLoader(list(batches), batch_size=None))


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders
def test_each_set_of_gates_learns_to_meet_its_own_budget(supernet_of, model):
    supernet = supernet_of()
    space = supernet.space
    small = 0.1 * supernet.n_bytes(space.decode(space.largest)) / MB
    budgets = check_budgets(space, supernet, [small], [0.06], model)
    assert [str(budget) for budget in budgets] == [f"{small:g} MB", "0.06 ms"]
    training = training_of(supernet, budgets)
    train(training)
    first, last = training.gate_history[0], training.gate_history[-1]
    assert len(last["expected_mb"]) == len(last["probabilities"]) == 2 and len(last["expected_ms"]) == 1
    assert last["expected_ms"][0] <= 0.06 < first["expected_ms"][0]
    assert last["expected_mb"][0] <= small < first["expected_mb"][0]
    written = gates_json(training.gates, [small], training.gate_history, [0.06])
    assert written["budgets_mb"] == [small] and written["budgets_ms"] == [0.06]
    assert len(written["modes"]) == 2


def test_the_expected_time_is_differentiable(tiny_supernet, model):
    (budget,) = check_budgets(tiny_supernet.space, tiny_supernet, [], [0.05], model)
    gates = Gates(tiny_supernet.space, 1, 0.0)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    for _ in range(300):
        excess = budget.cost(gates.expected(0)) / budget.bound - 1
        optimizer.zero_grad()
        excess.pow(2).backward()
        optimizer.step()
    assert budget.cost(gates.expected(0)).item() == pytest.approx(0.05, rel=0.01)


def test_budgets_that_cannot_be_met(tiny_supernet, model):
    space = tiny_supernet.space
    with pytest.raises(UserError, match=r"gates.budgets_ms: 9.0 ms cannot be met; subnets take 0.0\d+ to 0.\d+ ms"):
        check_budgets(space, tiny_supernet, [], [9.0], model)
    with pytest.raises(UserError, match=r"gates.budgets_mb: 9.0 MB cannot be met"):
        check_budgets(space, tiny_supernet, [9.0], [0.05], model)
    for useless in (None, HardwareModel({}, {})):
        with pytest.raises(UserError, match=r"gates.budgets_ms needs gates.hardware"):
            check_budgets(space, tiny_supernet, [], [0.05], useless)
    assert check_budgets(space, tiny_supernet, []) == []


def test_a_gate_step_leaves_the_other_sets_alone(supernet_of):
    """With a gradient of zeros, instead of none, an optimizer's momentum would move them on."""
    training = training_of(supernet := supernet_of(), check_budgets(supernet.space, supernet, [0.05, 0.06]))
    training._show = lambda name, value: None
    training._gate_loss(torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))).backward()
    trained = [logits.grad is not None for logits in training.gates.logits]
    assert trained == [True, False]


@pytest.mark.filterwarnings("ignore")  # as above
def test_a_bonus_for_low_entropy_decides_the_gates(supernet_of, model):
    found = []
    for weight in (0.0, 3.0):
        supernet = supernet_of()
        training = training_of(supernet, check_budgets(supernet.space, supernet, [], [0.06], model), 2, weight)
        train(training)
        found.append(training.gates.entropy(0).item())
    assert found[1] < 0.9 * found[0]


def test_a_hopeless_net_weighs_less(tiny_supernet):
    space, batch = tiny_supernet.space, torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    subnets = [("largest", space.decode(space.largest)), ("smallest", space.decode(space.smallest))]
    schedule = replace(SCHEDULE, student_weight=1.0, distillation=False)
    for parameter in tiny_supernet.layers[0].parameters():  # so that the two differ
        torch.nn.init.normal_(parameter, std=0.5)

    def loss(subnets, schedule):
        return joint_loss(tiny_supernet, batch, subnets, schedule)

    (alone, _), (plain, shown) = loss(subnets[:1], schedule), loss(subnets, schedule)
    gap = max(0.0, (shown[1] - shown[0]).item())
    narrow = replace(schedule, student_gap=0.01)
    damped, _ = loss(subnets, narrow)
    assert (damped - alone).item() == pytest.approx((plain - alone).item() / (1 + gap / 0.01), rel=1e-4)
    assert loss(subnets[1:], narrow)[0].item() == pytest.approx(shown[1].item())  # by itself
    taught, again = loss(subnets, replace(schedule, distillation=True))
    assert torch.stack(again).allclose(torch.stack(shown)) and taught.item() != plain.item()

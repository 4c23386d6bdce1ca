"""A frozen teacher: its loss is the textbook's, and it is trained and kept nowhere."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from supernet.errors import UserError
from supernet.gates import Gates
from supernet.losses import next_token_loss, stream_error
from supernet.subnet import extract_architecture
from supernet.teacher import Lesson, Teacher
from supernet.training import SupernetTraining, joint_loss
from tests.supernet.schedule import SCHEDULE


@pytest.fixture(scope="module")
def student(supernet_of):
    return supernet_of(seed=1)


@pytest.fixture(scope="module")
def original(supernet_of):
    supernet = supernet_of(seed=2)
    return extract_architecture(supernet, supernet.space.full_precision(supernet.space.largest))


@pytest.fixture(scope="module")
def batch():
    return torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("share", "temperature", "hidden"), [(1.0, 1.0, 0.0), (0.7, 2.0, 0.0), (0.0, 1.0, 0.3)])
def test_the_loss(student, original, batch, share, temperature, hidden):
    tokens, targets = batch[:, :-1], batch[:, 1:]
    states, theirs = [], []
    logits = student(tokens, student.space.decode(student.space.largest), states)
    assert len(states) == 3 and states[0].shape == (2, 12, 64)
    with torch.no_grad():
        taught = (original(tokens, theirs) / temperature).softmax(-1)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1) / temperature, taught.flatten(0, 1))
    text = next_token_loss(logits, targets)
    wanted = share * temperature**2 * cross_entropy + (1 - share) * text + hidden * stream_error(states, theirs)
    loss, shown = Teacher(original, share, temperature, hidden).lesson(tokens).loss(logits, states, targets)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(shown, text.detach())
    gradients = [torch.autograd.grad(x, student.embedding.weight, retain_graph=True)[0] for x in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in original.parameters())


def test_there_is_nothing_to_learn_from_oneself(student, batch):
    whole = student.space.full_precision(student.space.largest)
    lesson = Teacher(extract_architecture(student, whole), 1.0, 1.0, 1.0).lesson(batch[:, :-1])
    states = []
    logits = student(batch[:, :-1], whole, states)
    loss, _ = lesson.loss(logits, states, batch[:, 1:])
    assert stream_error(states, lesson.states) < 1e-10
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-7


def test_a_narrow_stream_is_not_compared(student, original, batch):
    narrow = student.space.decode(student.space.smallest)
    assert narrow["d_model"] == 32
    losses = []
    for hidden in (0.0, 5.0):
        states = []
        logits = student(batch[:, :-1], narrow, states)
        losses.append(Teacher(original, 1.0, 1.0, hidden).lesson(batch[:, :-1]).loss(logits, states, batch[:, 1:])[0])
    assert torch.equal(*losses)


def test_padded_channels_are_not_compared(student, original, batch):
    states: list[torch.Tensor] = []
    logits = student(batch[:, :-1], student.space.decode(student.space.largest), states)
    teacher = Teacher(original, 1.0, 1.0, 5.0)
    predictions = teacher.lesson(batch[:, :-1]).predictions
    for move, equal in ((0.0, True), (1.0, False)):
        lesson = Lesson(teacher, predictions, [state[..., :48] + move for state in states])
        loss, _ = lesson.loss(logits, states, batch[:, 1:])
        assert torch.equal(loss, Lesson(teacher, predictions, []).loss(logits, states, batch[:, 1:])[0]) == equal


def test_all_subnets_of_a_step_learn_from_it_and_not_from_the_largest(student, original, batch):
    space, teacher = student.space, Teacher(original, 1.0, 1.0, 0.0)
    subnets = [(role, space.decode(getattr(space, role))) for role in ("largest", "smallest")]
    both, shown = joint_loss(student, batch, subnets, SCHEDULE, teacher)
    lesson, each = teacher.lesson(batch[:, :-1]), []
    for _, architecture in subnets:
        states = []
        logits = student(batch[:, :-1], architecture, states)
        each.append(lesson.loss(logits, states, batch[:, 1:]))
    assert both.item() == pytest.approx((each[0][0] + SCHEDULE.student_weight * each[1][0]).item(), rel=1e-5)
    torch.testing.assert_close(torch.stack(shown), torch.stack([text for _, text in each]))


def test_the_teacher_is_in_no_checkpoint_and_no_optimizer(student, original):
    gates, adam = Gates(student.space, 1, 0.0), partial(torch.optim.AdamW, lr=1e-3)
    teachers = None, Teacher(original, 1.0, 1.0, 0.0)
    plain, taught = (SupernetTraining(student, gates, SCHEDULE, adam, 0, [], 0.1, 1.0, 1.0, 0.1, t) for t in teachers)
    assert plain.state_dict().keys() == taught.state_dict().keys()
    counts = [sum(len(g["params"]) for g in t.configure_optimizers().param_groups) for t in (plain, taught)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("settings", [(1.1, 1.0, 0.0), (0.5, 0.0, 0.0), (0.5, 1.0, -1.0)])
def test_settings_that_make_no_sense(original, settings):
    with pytest.raises(UserError, match="teacher: share must be"):
        Teacher(original, *settings)

import math

import pytest
import torch
from torch.nn import functional as F

from supernet.losses import distillation_loss, evaluate, next_token_loss


def logits(seed=0, scale=3.0):
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed)) * scale


TARGETS = torch.arange(10).reshape(2, 5)


def distilled(student, teacher):
    return distillation_loss(student, teacher, TARGETS)[0]


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_distillation_is_cross_entropy_with_probabilities(scale):
    teacher = logits(1).softmax(-1)
    ours, reference = (logits(0, scale).requires_grad_() for _ in range(2))
    loss = distilled(ours, teacher)
    wanted = F.cross_entropy(reference.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(loss, wanted)
    (2.5 * loss).backward()
    (2.5 * wanted).backward()
    torch.testing.assert_close(ours.grad, reference.grad)


def test_the_gradient_is_the_slope():
    """The written gradient is that of the student; the teacher gets none."""
    student = logits().double().requires_grad_()
    teacher = logits(1).softmax(-1)
    distilled(student, teacher).backward()
    step, direction = 1e-2, torch.randn(student.shape, generator=torch.Generator().manual_seed(2)).double()
    up = distilled(student.detach() + step * direction, teacher)
    down = distilled(student.detach() - step * direction, teacher)
    slope = ((up - down) / (2 * step)).item()
    assert slope == pytest.approx((student.grad * direction).sum().item(), rel=1e-2)


def test_a_students_minimum_is_its_teacher():
    teacher = logits(1)
    student = teacher.clone().requires_grad_()
    distilled(student, teacher.softmax(-1)).backward()
    assert student.grad.abs().max() < 1e-7


def test_half_precision_logits_give_a_float32_loss():
    student = logits().bfloat16().requires_grad_()
    loss = distilled(student, logits(1).softmax(-1))
    loss.backward()
    assert loss.dtype == torch.float32 and student.grad.dtype == torch.bfloat16


def test_distillation_shows_the_next_token_loss_too():
    student = logits().requires_grad_()
    shown = distillation_loss(student, logits(1).softmax(-1), TARGETS)[1]
    torch.testing.assert_close(shown, next_token_loss(student.detach(), TARGETS))
    assert not shown.requires_grad


def test_next_token_loss():
    targets = torch.arange(10).reshape(2, 5)
    assert next_token_loss(torch.zeros(2, 5, 11), targets).item() == pytest.approx(math.log(11))
    sure = F.one_hot(targets, 11).float() * 100
    assert next_token_loss(sure, targets).item() == pytest.approx(0, abs=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size():
    rows = torch.randint(11, (7, 6), generator=torch.Generator().manual_seed(0))
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(1))

    def network(tokens):
        return table[tokens]

    results = [evaluate(network, rows, batch_size) for batch_size in (1, 3, 7, 100)]
    wanted = next_token_loss(network(rows[:, :-1]), rows[:, 1:]).item()
    for loss, accuracy in results:
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert accuracy == results[0][1]


def test_evaluation_of_a_net_that_knows():
    rows = torch.arange(6).repeat(3, 1)
    loss, accuracy = evaluate(lambda tokens: F.one_hot(tokens + 1, 11).float() * 100, rows, 2)
    assert loss == pytest.approx(0, abs=1e-6) and accuracy == 1

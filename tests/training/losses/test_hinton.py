"""Hinton's loss against a slow loop in float64, its gradient against finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.training.losses.hinton import Hinton


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp((v - max(row)) / temperature) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def slow(student, teacher, targets, temperature, alpha):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += alpha * temperature**2 * kl + (1 - alpha) * -math.log(softmax(s, 1.0)[y])
    return total / len(targets)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 7), classes=st.integers(2, 11), seed=st.integers(0, 999),
    temperature=st.floats(0.5, 10), alpha=st.floats(0, 1),
)  # fmt: skip
def test_equals_the_slow_loop(batch, classes, seed, temperature, alpha):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, classes, dtype=torch.float64, generator=generator)
    teacher = 3 * torch.randn(batch, classes, dtype=torch.float64, generator=generator)
    targets = torch.randint(classes, (batch,), generator=generator)
    got = Hinton(temperature, alpha)(student, teacher, targets).item()
    assert got == pytest.approx(slow(student, teacher, targets, temperature, alpha), rel=1e-9)


def test_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    targets = torch.tensor([0, 4, 2])
    loss = Hinton(3.0, 0.7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, targets), (student,))


def test_a_student_equal_to_its_teacher_has_no_distillation_loss():
    logits = torch.randn(4, 3, dtype=torch.float64)
    assert Hinton(2.0, 1.0)(logits, logits, torch.zeros(4, dtype=torch.int64)).abs() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"temperature": -1.0}, "above 0, got -1.0"),
        ({"temperature": float("nan")}, "above 0, got nan"),
        ({"temperature": "hot"}, "must be a number above 0, got 'hot'"),
        ({"alpha": 1.5}, r"alpha must be a number in \[0, 1\], got 1.5"),
        ({"alpha": True}, r"alpha must be a number in \[0, 1\], got True"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Hinton(**options)

"""DKD and logit regression against slow loops in float64; gradients against finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.training.losses.dkd import Dkd, decoupled
from compressbench.training.losses.hinton import Hinton
from compressbench.training.losses.logits import Logits


def softmax(row):
    exponentials = [math.exp(v - max(row)) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_dkd(student, teacher, targets, temperature, alpha, beta):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        p, q = (softmax([v / temperature for v in row]) for row in (t, s))
        target = divergence([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        rest_p, rest_q = ([v / (1 - r[y]) for i, v in enumerate(r) if i != y] for r in (p, q))
        others = divergence(rest_p, rest_q)
        total += temperature**2 * (alpha * target + beta * others) - math.log(softmax(s)[y])
    return total / len(targets)


def batch_of(batch, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, classes, dtype=torch.float64, generator=generator)
    teacher = 2 * torch.randn(batch, classes, dtype=torch.float64, generator=generator)
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 7), classes=st.integers(2, 11), seed=st.integers(0, 999),
    temperature=st.floats(0.5, 10), alpha=st.floats(0, 3), beta=st.floats(0, 9),
)  # fmt: skip
def test_dkd_equals_the_slow_loop(batch, classes, seed, temperature, alpha, beta):
    student, teacher, targets = batch_of(batch, classes, seed)
    got = Dkd(temperature, alpha, beta)(student, teacher, targets).item()
    expected = slow_dkd(student, teacher, targets, temperature, alpha, beta)
    assert got == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 6), classes=st.integers(2, 9), seed=st.integers(0, 999))
def test_hintons_divergence_is_made_of_the_two_parts(batch, classes, seed):
    """Zhao et al. 2022, equation 6: KD = TCKD + (1 - p) NCKD."""
    student, teacher, targets = batch_of(batch, classes, seed)
    target, others = decoupled(student, teacher, targets)
    sure = teacher.softmax(1).gather(1, targets[:, None])[:, 0]
    whole = Hinton(1.0, 1.0)(student, teacher, targets)
    assert torch.allclose((target + (1 - sure) * others).mean(), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_logit_regression_equals_the_slow_loop(norm):
    student, teacher, targets = batch_of(5, 7, 3)
    power, hard, soft = {"l1": 1, "l2": 2}[norm], 0.0, 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        soft += sum(abs(a - b) ** power for a, b in zip(s, t, strict=True)) / 7
        hard -= math.log(softmax(s)[y])
    got = Logits(norm, 0.3)(student, teacher, targets).item()
    assert got == pytest.approx((0.3 * soft + 0.7 * hard) / 5, rel=1e-9)


def test_hintons_loss_at_a_high_temperature_is_logit_regression():
    """Hinton et al. 2015, section 2.1: T² KL -> |s - t|² / 2K of logits of mean zero."""
    student, teacher, targets = batch_of(6, 5, 1)
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    hot = Hinton(1e4, 1.0)(student, teacher, targets)
    assert hot.item() == pytest.approx(
        Logits("l2", 1.0)(student, teacher, targets).item() / 2, rel=1e-3
    )


@pytest.mark.parametrize("loss", [Dkd(3.0, 0.5, 2.0), Logits("l2", 0.6), Logits("l1", 0.6)])
def test_gradient_equals_finite_differences(loss):
    student, teacher, targets = batch_of(3, 5, 0)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, targets), (student,))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize(
    "loss", [Hinton(3.0, 0.7), Dkd(3.0, 0.5, 2.0), Logits("l2", 0.6), Logits("l1", 0.6)]
)
def test_positions_without_a_label_are_left_out(loss, sequences, seed):
    """Token classification, [B, L, K] and [N, K]: the mean over the labelled positions, one by one;
    nothing flows into the others.
    """
    student, teacher, targets = batch_of(21, 5, seed)
    hidden = torch.rand(21, generator=torch.Generator().manual_seed(seed)) < 0.4
    kept = (~hidden).nonzero()[:, 0].tolist()
    expected = sum(loss(*(x[[row]] for x in (student, teacher, targets))) for row in kept)
    targets[hidden] = -100
    teacher[hidden] = float("nan")  # whatever stands there
    student.requires_grad_()
    shaped = (x.view(3, 7, *x.shape[1:]) if sequences else x for x in (student, teacher, targets))
    got = loss(*shaped)
    assert got.item() == pytest.approx(expected.item() / len(kept), rel=1e-9)
    got.backward()
    assert not student.grad[hidden].any()
    assert student.grad[~hidden].any(1).all()


@pytest.mark.parametrize("loss", [Logits("l2", 1.0), Logits("l1", 1.0)])
def test_a_student_equal_to_its_teacher_has_no_distillation_loss(loss):
    logits, _, targets = batch_of(4, 3, 2)
    assert loss(logits, logits, targets) == 0
    assert all(part.abs().max() < 1e-12 for part in decoupled(logits, logits, targets))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dkd(temperature=0), "temperature must be a number above 0, got 0"),
        (lambda: Dkd(alpha=-1), "alpha must be a number of at least 0, got -1"),
        (lambda: Dkd(beta=float("inf")), "beta must be a number of at least 0, got inf"),
        (lambda: Logits("l3"), "norm must be l1 or l2, got 'l3'"),
        (lambda: Logits(alpha=1.5), r"alpha must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UserError, match=message):
        make()

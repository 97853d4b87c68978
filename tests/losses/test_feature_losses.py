"""Losses between features against slow loops in float64; gradients against finite differences."""

import math

import pytest
import torch
from torch import nn

from compressbench.errors import UserError
from compressbench.losses.attention import Attention
from compressbench.losses.fitnets import FitNets
from compressbench.losses.mixed import Mixed
from compressbench.losses.rkd import Rkd
from compressbench.losses.similarity import Similarity
from compressbench.methods import FeatureLoss

LOSSES = (Attention(), FitNets(), Rkd(), Similarity())


def maps(seed=0, student=3, teacher=5, positions=(2, 3), batch=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, *positions, dtype=torch.float64, generator=generator)
        for channels in (student, teacher)
    ]


def unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def slow_attention(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        both = []
        for features in (s, t):
            height, width = features.shape[1:]
            squares = [
                sum(float(features[c, i, j]) ** 2 for c in range(len(features))) / len(features)
                for i in range(height)
                for j in range(width)
            ]
            both.append(unit(squares))
        total += sum((a - b) ** 2 for a, b in zip(*both, strict=True))
    return total / len(student)


def slow_similarity(student, teacher):
    size = len(student)
    grams = []
    for features in (student, teacher):
        flat = features.flatten(1).tolist()
        rows = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in flat] for x in flat]
        grams.append([unit(row) for row in rows])
    return (
        sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(size) for j in range(size))
        / size**2
    )


def huber(difference):
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def slow_rkd(student, teacher, distance, angle):
    flat, size = [f.flatten(1).tolist() for f in (student, teacher)], len(student)
    apart = [[[math.dist(x, y) for y in f] for x in f] for f in flat]
    means = [sum(map(sum, d)) / (size * (size - 1)) for d in apart]
    pairs = sum(
        huber(apart[0][i][j] / means[0] - apart[1][i][j] / means[1])
        for i in range(size) for j in range(size)
    ) / size**2  # fmt: skip
    triplets = 0.0
    for j in range(size):
        for i in range(size):
            for k in range(size):
                if i == j or k == j:
                    continue
                cosine = []
                for f in flat:
                    a = unit([p - q for p, q in zip(f[i], f[j], strict=True)])
                    b = unit([p - q for p, q in zip(f[k], f[j], strict=True)])
                    cosine.append(sum(p * q for p, q in zip(a, b, strict=True)))
                triplets += huber(cosine[0] - cosine[1])
    return distance * pairs + angle * triplets / size**3


@pytest.mark.parametrize("seed", range(5))
def test_they_equal_the_slow_loops(seed):
    student, teacher = maps(seed, positions=[(2, 3), (1, 4), (3, 3), (1, 2), (5, 2)][seed])
    assert Attention()(student, teacher).item() == pytest.approx(slow_attention(student, teacher))
    assert Similarity()(student, teacher).item() == pytest.approx(slow_similarity(student, teacher))
    got = Rkd(1.5, 2.5)(student, teacher).item()
    assert got == pytest.approx(slow_rkd(student, teacher, 1.5, 2.5), rel=1e-7)
    same = maps(seed, 5, 5)
    squares = [(a - b) ** 2 for a, b in zip(*(x.flatten().tolist() for x in same), strict=True)]
    assert FitNets()(*same).item() == pytest.approx(sum(squares) / len(squares))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
def test_gradients_equal_finite_differences(loss):
    student, teacher = maps(7, 4, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,), atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
def test_a_student_equal_to_its_teacher_has_no_loss(loss):
    features, _ = maps()
    assert loss(features, features).abs() < 1e-12


def test_each_ignores_what_its_paper_ignores():
    student, teacher = maps(1, 6, 6)
    assert torch.allclose(Attention()(student.flip(1), teacher), Attention()(student, teacher))
    turn = torch.linalg.qr(torch.randn(36, 36, dtype=torch.float64)).Q
    turned = (student.flatten(1) @ turn).view_as(student)
    for loss in (Rkd(), Similarity()):  # relations do not depend on the axes
        assert torch.allclose(loss(turned, teacher), loss(student, teacher))
    assert torch.allclose(Rkd()(3 * student + 1, teacher), Rkd()(student, teacher))
    assert not torch.allclose(FitNets()(turned, teacher), FitNets()(student, teacher))


def test_equal_samples_do_not_break_the_gradient():
    student, teacher = maps(2)
    student = student[:1].repeat(4, 1, 1, 1).requires_grad_()
    Rkd()(student, teacher).backward()
    assert torch.isfinite(student.grad).all()


def test_only_different_widths_get_a_projection():
    loss = FitNets()
    assert loss.connect((8, 4, 4), (8, 4, 4)) is None
    connector = loss.connect((8, 4, 4), (16, 4, 4))
    assert isinstance(connector, nn.Conv2d)
    assert connector(torch.zeros(2, 8, 4, 4)).shape == (2, 16, 4, 4)
    assert loss.connect((8,), (16,))(torch.zeros(2, 8)).shape == (2, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FitNets().connect((8, 4, 4), (8, 2, 2)), r"\[8, 4, 4\] .* \[8, 2, 2\]"),
        (lambda: Attention().connect((8, 4, 4), (8, 4, 2)), r"\[8, 4, 4\] .* \[8, 4, 2\]"),
        (lambda: Attention().connect((8,), (8,)), "positions must be there"),
        (lambda: Attention(layers=[]), "layers must map layers of the student"),
        (lambda: Attention(layers={"a": 3}), "layers must map names to names"),
        (lambda: Attention(weight=0), "weight must be a number above 0, got 0"),
        (lambda: Rkd(0, 0), "both 0"),
        (lambda: Mixed({}), "terms must name at least one loss"),
        (lambda: Mixed({"a": 1.0}), "terms.a must be a distillation loss, got 1.0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_they_are_told_from_losses_between_outputs():
    from compressbench.losses.hinton import Hinton

    assert all(isinstance(loss, FeatureLoss) for loss in LOSSES)
    assert not isinstance(Hinton(), FeatureLoss)

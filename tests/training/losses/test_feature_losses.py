"""Losses between features against slow loops in float64; gradients against finite differences."""

import math

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.protocols import FeatureLoss
from compressbench.training.losses.attention import Attention
from compressbench.training.losses.crd import Crd, contrast, log_noise
from compressbench.training.losses.fitnets import FitNets
from compressbench.training.losses.mixed import Mixed
from compressbench.training.losses.rkd import Rkd
from compressbench.training.losses.similarity import Similarity

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
        (lambda: Attention().connect((8,), (8,)), "both need positions"),
        (lambda: Attention(layers=[]), "layers must map layers of the student"),
        (lambda: Attention(layers={"a": 3}), "layers must map names to names"),
        (lambda: Attention(weight=0), "weight must be a number above 0, got 0"),
        (lambda: Rkd(0, 0), "both 0"),
        (lambda: Crd(0), "temperature must be a number above 0, got 0"),
        (lambda: Crd(dimensions=0), "dimensions must be an integer in .*, got 0"),
        (lambda: Crd().connect((), (8,)), "one axis besides the batch"),
        (lambda: Crd()(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)), "one label per samp"),
        (lambda: Mixed({}), "terms must name at least one loss"),
        (lambda: Mixed({"a": 1.0}), "terms.a must be a distillation loss, got 1.0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UserError, match=message):
        make()


def slow_crd(student, teacher, targets, temperature):
    """Tian et al. 2020, equation 18, from a table of exponentials."""
    size, rows = len(student), range(len(student))
    pairs = [[math.exp(float(s @ t) / temperature) for t in teacher] for s in student]
    far = [[j for j in rows if targets[j] != targets[i]] for i in rows]
    z = sum(pairs[i][j] for i in rows for j in far[i]) / sum(map(len, far))
    total = 0.0
    for table in (pairs, list(zip(*pairs, strict=True))):
        for i in rows:
            noise = len(far[i]) * z
            found = math.log(table[i][i] / (table[i][i] + noise))
            found += sum(math.log(noise / (table[i][j] + noise)) for j in far[i])
            total -= found
    return total / size


def embeddings(seed, batch=6, dimensions=5):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, batch, dimensions, dtype=torch.float64, generator=generator)
    targets = torch.tensor([0, 2, 1, 0, 2, 2, 1])[:batch]
    return *nn.functional.normalize(made, dim=2), targets


@pytest.mark.parametrize(("seed", "batch", "temperature"), [(0, 6, 0.5), (1, 4, 0.2), (2, 7, 2.0)])
def test_crd_equals_the_slow_loop(seed, batch, temperature):
    student, teacher, targets = embeddings(seed, batch)
    expected = slow_crd(student, teacher, targets.tolist(), temperature)
    assert Crd(temperature)(student, teacher, targets).item() == pytest.approx(expected, rel=1e-9)


def test_crds_gradient_equals_finite_differences_at_fixed_noise():
    """The mean over the negatives is a constant: its gradient is not part of the loss's."""
    student, teacher, targets = embeddings(3)
    student.requires_grad_()
    others = targets[:, None] != targets
    noise = log_noise((student @ teacher.T / 0.3).detach(), others)

    def loss(s):
        logits = s @ teacher.T / 0.3
        return contrast(logits, others, noise) + contrast(logits.T, others, noise)

    assert torch.autograd.gradcheck(loss, (student,))
    (expected,) = torch.autograd.grad(loss(student), student)
    (found,) = torch.autograd.grad(Crd(0.3)(student, teacher, targets), student)
    torch.testing.assert_close(found, expected)


def test_crd_pulls_pairs_together_and_other_classes_apart():
    student, teacher, targets = embeddings(4)
    loss = Crd(0.1)
    assert loss(teacher, teacher, targets) < loss(student, teacher, targets)
    assert loss(teacher, teacher, targets) < loss(teacher[[1, 0, 2, 3, 4, 5]], teacher, targets)
    alike = torch.zeros(6, dtype=torch.int64)
    student.requires_grad_()
    loss(student, teacher, alike).backward()
    assert loss(student, teacher, alike) == 0
    assert not student.grad.any()


def test_crd_embeds_the_features_of_both():
    connector = Crd(dimensions=3).connect((8, 4, 4), (16, 2, 2))
    maps = torch.randn(5, 8, 4, 4)
    ours, theirs = connector(maps), connector.of_teacher(torch.randn(5, 16, 2, 2))
    assert ours.shape == theirs.shape == (5, 3)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(theirs.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(ours, connector(maps.mean((2, 3))))
    assert sum(p.numel() for p in connector.parameters()) == 3 * (8 + 1) + 3 * (16 + 1)


def test_they_are_told_from_losses_between_outputs():
    from compressbench.training.losses.hinton import Hinton

    assert all(isinstance(loss, FeatureLoss) for loss in (*LOSSES, Crd()))
    assert not isinstance(Hinton(), FeatureLoss)

"""Every task: its loss, metrics and divergence against slow references, its checks, its guess."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.metrics import metric_of
from compressbench.core.types import DataSpec, Split, Tokens
from compressbench.measure.agreement import agreement, check_agreement
from compressbench.tasks.choice import check_metric, task_of
from compressbench.tasks.classification import Classification
from compressbench.tasks.multilabel import MultiLabel
from compressbench.tasks.reconstruction import Reconstruction
from compressbench.tasks.regression import Regression
from compressbench.tasks.segmentation import Segmentation
from compressbench.tasks.tokens import LanguageModel, TokenClassification

NAMES = ("a", "b", "c")
IMAGE, TEXT = (2, 5, 3), (7,)


def spec_of(task, shape=IMAGE, names=NAMES):
    tokens = Tokens(11, 0, "") if shape == TEXT else None
    return DataSpec("toy", shape, names, (), (), task.metrics[0], tokens, task)


def classes(count, shape, generator, missing=0.2):
    drawn = torch.randint(count, shape, generator=generator)
    gone = torch.rand(shape, generator=generator) < missing
    return torch.where(gone, torch.tensor(-100), drawn)


def case(task, seed, rows=23):
    """(spec, split, random answers) of a task."""
    g = torch.Generator().manual_seed(seed)
    spec = spec_of(task, TEXT if isinstance(task, TokenClassification) else IMAGE)
    inputs = spec.noise(rows, g)
    targets = {
        "classification": lambda: torch.randint(3, (rows,), generator=g),
        "regression": lambda: torch.randn(rows, 3, generator=g) * 4 + 1,
        "multilabel": lambda: (torch.rand(rows, 3, generator=g) < 0.4).float(),
        "segmentation": lambda: classes(3, (rows, 5, 3), g),
        "tokens": lambda: classes(3, (rows, 7), g),
        "language_model": lambda: classes(11, (rows, 7), g),
        "reconstruction": lambda: torch.cat(
            [(torch.rand(rows, 1, generator=g) < 0.3).float(), inputs.flatten(1)], 1
        ),
    }[task.name]()
    answers = torch.randn(rows, *task.shape(spec), generator=g)
    return spec, Split(inputs, targets), answers


TASKS = [Classification(), Regression(), MultiLabel(), Segmentation(), TokenClassification(),
         LanguageModel(), Reconstruction()]  # fmt: skip
every = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)


def perfect(task, spec, split):
    """Answers without any error."""
    targets = split.targets
    if task.name in ("classification", "tokens", "language_model"):
        return 20.0 * torch.nn.functional.one_hot(targets.clamp_min(0), task.outputs(spec)).float()
    if task.name == "segmentation":
        hot = torch.nn.functional.one_hot(targets.clamp_min(0), 3).float()
        return 20.0 * hot.movedim(-1, 1).contiguous()
    if task.name == "multilabel":
        return 40.0 * targets - 20.0
    if task.name == "reconstruction":  # anomalies are far off
        return split.inputs + 3 * targets[:, :1].view(-1, 1, 1, 1)
    return targets


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_perfect_answers_beat_the_best_constant_and_random_ones(task, seed):
    spec, split, answers = case(task, seed)
    task.check(spec, split, "train")
    exact = perfect(task, spec, split)
    assert exact.shape[1:] == task.shape(spec)
    for name in task.metrics:
        form = metric_of(name)
        best, random = (task.score(name, a, split.targets) for a in (exact, answers))
        assert form.better(best, random), name
        guess = task.guess(name, split.targets, spec)
        assert guess is not None
        assert form.better(best, guess), name
        for value in (best, random, guess):
            assert form.low is None or value >= form.low - 1e-9
            assert form.high is None or value <= form.high + 1e-9
        check_metric(replace(spec, metric=name))
    if task.name != "reconstruction":
        assert task.loss(exact, split.targets) < task.loss(answers, split.targets)


@every
def test_the_sum_of_losses_is_that_of_single_samples(task):
    _, split, answers = case(task, 2)
    rows = range(len(answers))
    single = [
        task.loss(answers[i : i + 1], split.targets[i : i + 1], reduction="sum") for i in rows
    ]
    whole = task.loss(answers, split.targets, reduction="sum")
    torch.testing.assert_close(whole, torch.stack(single).sum())
    parts = [task.quality(answers[i : i + 1], split.targets[i : i + 1]) for i in rows]
    good, number = task.quality(answers, split.targets)
    torch.testing.assert_close(good.float(), sum(p[0].float() for p in parts))
    assert float(number) == sum(float(p[1]) for p in parts)
    if task.name not in ("multilabel", "regression", "reconstruction"):
        torch.testing.assert_close(task.loss(answers, split.targets), whole / number)


@every
def test_rows_without_target_are_left_out(task):
    _, split, answers = case(task, 3)
    first, second, targets = task.labelled(answers, 2 * answers, split.targets)
    torch.testing.assert_close(2 * first, second)
    torch.testing.assert_close(task.loss(first, targets), task.loss(answers, split.targets))
    if task.distribution == "classes":
        assert len(first) == int((split.targets != -100).sum())


@every
def test_the_divergence_is_zero_for_equal_answers_only(task):
    _, _, answers = case(task, 4)
    assert float(task.divergence(answers, answers)) == pytest.approx(0, abs=1e-4)
    generator = torch.Generator().manual_seed(5)
    other = answers + torch.randn(answers.shape, generator=generator)
    far = answers + 2 * (other - answers)
    assert 0 < float(task.divergence(answers, other)) < float(task.divergence(answers, far))
    halves = [float(task.divergence(answers[part], other[part]))
              for part in (slice(10), slice(10, None))]  # fmt: skip
    assert float(task.divergence(answers, other)) == pytest.approx(sum(halves), rel=1e-4)


def test_the_divergence_of_labels_is_that_of_two_coins():
    p, q = 0.3, 0.85
    logit = [torch.tensor([[math.log(x / (1 - x))]], dtype=torch.float64) for x in (p, q)]
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(MultiLabel().divergence(*logit)) == pytest.approx(expected)
    at = [1 / (1 + math.exp(-float(x) / 3)) for x in logit]
    warm = at[0] * math.log(at[0] / at[1]) + (1 - at[0]) * math.log((1 - at[0]) / (1 - at[1]))
    assert float(MultiLabel().divergence(*logit, 3.0)) == pytest.approx(warm)


@every
def test_agreement_of_file_and_model(task):
    _, _, answers = case(task, 6, rows=400)
    check_agreement(task, answers, answers, True)
    assert agreement(task, answers, answers) == 1.0
    shuffled = answers[torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))]
    assert agreement(task, shuffled, answers) < 0.9
    with pytest.raises(CheckFailedError, match="the exported file"):
        check_agreement(task, shuffled, answers, True)
    with pytest.raises(CheckFailedError):
        check_agreement(task, 1.2 * answers, answers, True)


def test_metrics_equal_those_of_another_library():
    _, split, answers = case(Regression(), 7)
    y, p = split.targets.double().numpy(), answers.double().numpy()
    expected = {
        "rmse": math.sqrt(reference.mean_squared_error(y, p)),
        "mae": reference.mean_absolute_error(y, p),
        "r2": reference.r2_score(y, p),
    }
    for name, value in expected.items():
        assert Regression().score(name, answers, split.targets) == pytest.approx(value)
    _, split, answers = case(MultiLabel(), 8, rows=61)
    y, p = split.targets.numpy(), answers.numpy()
    expected = {
        "mean_ap": reference.average_precision_score(y, p, average="macro"),
        "micro_f1": reference.f1_score(y, p > 0, average="micro"),
        "exact_match": reference.accuracy_score(y, p > 0),
    }
    for name, value in expected.items():
        assert MultiLabel().score(name, answers, split.targets) == pytest.approx(value, abs=1e-6)
    _, split, answers = case(Segmentation(), 9)
    kept = split.targets != -100
    y, p = split.targets[kept].numpy(), answers.argmax(1)[kept].numpy()
    iou = reference.jaccard_score(y, p, average="macro")
    assert Segmentation().score("mean_iou", answers, split.targets) == pytest.approx(iou)
    _, split, answers = case(LanguageModel(), 10)
    kept = split.targets != -100
    nats = reference.log_loss(split.targets[kept].numpy(), answers[kept].softmax(-1).numpy(),
                              labels=np.arange(11))  # fmt: skip
    score = LanguageModel().score
    assert score("perplexity", answers, split.targets) == pytest.approx(math.exp(nats), rel=1e-5)
    bits = nats / math.log(2)
    assert score("bits_per_token", answers, split.targets) == pytest.approx(bits, rel=1e-5)


def test_the_area_under_the_curve_counts_pairs():
    _, split, answers = case(Reconstruction(), 11, rows=41)
    errors = Reconstruction().errors(answers, split.targets).double().numpy() * 1e6
    expected = reference.roc_auc_score(split.targets[:, 0].numpy(), errors)
    found = Reconstruction().score("auc", 1e3 * answers, split.targets)
    far = reference.roc_auc_score(
        split.targets[:, 0].numpy(),
        Reconstruction().errors(1e3 * answers.double(), split.targets).numpy(),
    )
    assert found == pytest.approx(far)
    assert Reconstruction().score("auc", answers, split.targets) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (Classification(), torch.zeros(4), "must be int64 with 1 axes, got float32"),
        (Classification(), torch.tensor([0, 1, 3, 2]), "sample 2 has the class 3, but there are 3"),
        (Classification(), torch.tensor([0, -1, 0, 2]), "sample 1 has the class -1"),
        (Regression(), torch.zeros(4, 2), r"float32 \[samples, 3\], got float32 \[4, 2\]"),
        (Regression(), torch.full((4, 3), math.nan), "sample 0 is NaN"),
        (MultiLabel(), torch.full((4, 3), 0.5), "must be 0 or 1 per label, sample 0"),
        (Segmentation(), torch.zeros(4, 3, 3, dtype=torch.long), r"masks are \[3, 3\], but images"),
        (Segmentation(), torch.full((4, 5, 3), 9), "sample 0 has the class 9"),
        (TokenClassification(), torch.zeros(4, 6, dtype=torch.long), "one target per token"),
        (LanguageModel(), torch.full((4, 7), 11), r"ids in \[0, 11\)"),
        (Reconstruction(), torch.zeros(4, 30), r"float32 \[samples, 31\]"),
        (Reconstruction(), torch.full((4, 31), 0.5), "must be 0 or 1"),
    ],
)
def test_targets_that_do_not_fit_are_named(task, targets, message):
    spec, split, _ = case(task, 0, rows=4)
    with pytest.raises(UserError, match=message):
        task.check(spec, Split(split.inputs, targets), "train")


def test_a_dataset_without_a_task_is_a_classification():
    spec = DataSpec("toy", (3,), NAMES, (), ())
    assert task_of(spec) == Classification()
    with pytest.raises(UserError, match="must be one of rmse, mae, r2 for regression, got 'acc"):
        check_metric(replace(spec_of(Regression()), metric="accuracy"))
    with pytest.raises(UserError, match="only labels of classes can be smoothed"):
        Regression().loss(torch.zeros(2, 3), torch.zeros(2, 3), label_smoothing=0.1)

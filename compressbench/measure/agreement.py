"""Checks that the exported file and the PyTorch model compute the same answers.

Integer kernels round biases and sums where the model does not, so a value near a tie may round the
other way, and in a deep or barely trained network one such step changes many later values. How far
the logits can move depends on the model, not on the CPU: file and model are two roundings of the
same float computation, so their difference is at most the sum of their two rounding errors. The
same holds for float kernels where a model amplifies what they round (see `rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compressbench.core.errors import CheckFailedError
from compressbench.core.task import Task

# Lowest share of images that must get the same class, and the difference of logits that is always
# attributed to rounding, relative to the mean range of an image's logits; keyed by whether
# activations are quantized. With 8 bits the logits of ResNet-20 move by 0.2 % of their range on
# average; float kernels differ only in the order of their sums.
LEAST_SHARE = {True: 0.995, False: 0.999}
NEAR_TIE = {True: 1e-2, False: 1e-4}


def agreement(task: Task, file: Tensor, model: Tensor) -> float:
    """Share of equal decisions of file and model.

    Answers that are no decisions agree by 1 - |file - model| / |model - mean of model|, both as
    root mean squares and at least 0: 1 if they are equal, 0 if the file knows no more than a mean.
    """
    ours, theirs = task.rows(file), task.rows(model)
    if task.decides:
        return float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    apart = (ours - theirs).double().square().mean().sqrt()
    varies = (theirs - theirs.mean(0)).double().square().mean().sqrt()
    return float((1 - apart / varies.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0))


def check_agreement(
    task: Task,
    file: Tensor,
    model: Tensor,
    activations_quantized: bool,
    rounded_otherwise: Callable[[], Sequence[Tensor]] | None = None,
) -> None:
    """Raise CheckFailedError if `file` and `model` differ by more than rounding explains.

    Two things are checked: the median over the images of the difference of logits, and the number
    of images whose class in the file trails the model's class by more than rounding explains. One
    such image is always allowed.

    Args:
        task: What answers are.
        file: Answers of the exported file, [N, ...].
        model: Answers of the PyTorch model, [N, ...].
        activations_quantized: Whether the model rounds its activations; selects the tolerances.
        rounded_otherwise: Computes the answers of the model with other roundings, one or several
            times: with float activations, or with errors of float32. Called only if the fixed
            tolerance is exceeded; the largest distance to `model` then sets the tolerance.
    """
    file, model = task.rows(file), task.rows(model)
    axis = 1 if task.decides else 0
    spread = (model.amax(axis) - model.amin(axis)).mean()
    explained = (NEAR_TIE[activations_quantized] * spread).expand(len(model))
    problem = _problem(task, file, model, explained, explained, activations_quantized)
    if problem and rounded_otherwise is not None:
        others = [_distances(model, task.rows(answers)) for answers in rounded_otherwise()]
        lost = torch.stack(others).amax(0)
        explained = explained.maximum(2 * lost.maximum(lost.median()))  # the file loses as much
        near_tie = 3 * explained  # two independent errors in two logits: 3 standard deviations
        problem = _problem(task, file, model, explained, near_tie, activations_quantized)
    if problem:
        raise CheckFailedError(problem)


def _problem(
    task: Task, file: Tensor, model: Tensor, explained: Tensor, near_tie: Tensor, quantized: bool
) -> str:
    """Describe the disagreement of rows; "" if rounding explains it.

    Rounding may move the scores of a row by `explained` [N], and the difference between two of
    them by `near_tie` [N].
    """
    other = _other_decisions(file, model, near_tie, quantized) if task.decides else ""
    if other:
        return other
    apart = _distances(file, model)
    if apart.median() > explained.median():
        return (
            f"the answers of the exported file are off by {float(apart.median()):.3g} on the "
            f"median validation sample, rounding explains only {float(explained.median()):.3g}; "
            f"{_example(file, model, apart > explained)}"
        )
    return ""


def _other_decisions(file: Tensor, model: Tensor, near_tie: Tensor, quantized: bool) -> str:
    chosen = model.gather(1, file.argmax(1, keepdim=True)).squeeze(1)
    differs = model.amax(1) - chosen > near_tie
    if int(differs.sum()) > max(1.0, (1 - LEAST_SHARE[quantized]) * len(model)):
        share = 1 - float(differs.double().mean())
        return (
            f"the exported file and the model agree on {share:.4f} of the validation images, "
            f"must be at least {LEAST_SHARE[quantized]}; {_example(file, model, differs)}"
        )
    return ""


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square over a row of the difference of scores, [N]."""
    return (first - second).square().mean(1).sqrt()


def _example(file: Tensor, model: Tensor, wrong: Tensor) -> str:
    first = int(wrong.nonzero()[0])
    return f"first at image {first}: file {_numbers(file[first])}, model {_numbers(model[first])}"


def _numbers(logits: Tensor) -> str:
    shown = ", ".join(f"{value:.4g}" for value in logits[:10].tolist())
    return f"[{shown}{', ...' if len(logits) > 10 else ''}]"

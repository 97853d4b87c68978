"""Whether the exported file computes what the PyTorch model does.

Integer kernels round biases and sums where the model does not, so a value near a tie may fall on
the other side, and in a deep or barely trained network one such step moves many that follow. How
far that can take the logits is a fact about the model, not about the CPU: file and model are two
roundings of one float computation, so they differ by at most the sum of what each lost to it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from compressbench.core.errors import CheckFailedError

# Least share of images that must get the same class, and a difference of logits that is always
# left to rounding, in units of the mean range of the logits of an image. With 8 bits the logits of
# ResNet-20 move by 0.2 % of their range on average; float kernels only add in another order.
LEAST_SHARE = {True: 0.995, False: 0.999}
NEAR_TIE = {True: 1e-2, False: 1e-4}


def agreement(file: Tensor, model: Tensor) -> float:
    """Share of rows of logits [N, K] with the same largest entry."""
    return float((file.argmax(1) == model.argmax(1)).double().mean())


def check_agreement(
    file: Tensor,
    model: Tensor,
    activations_quantized: bool,
    unrounded: Callable[[], Tensor] | None = None,
) -> None:
    """Raise CheckFailedError where `file` and `model` part by more than rounding explains.

    Logits are [N, K]; `unrounded` computes those of the model with its activations left in float,
    and is asked only where a fixed tolerance does not settle it. Two things are judged: the median
    image's difference of logits, and how many images get another class although, for the model,
    the file's class is behind by more than rounding explains. One such image is always allowed.
    """
    spread = (model.amax(1) - model.amin(1)).mean()
    explained = (NEAR_TIE[activations_quantized] * spread).expand(len(model))
    problem = _problem(file, model, explained, explained, activations_quantized)
    if problem and unrounded is not None:
        lost = _distances(model, unrounded())  # the file loses as much, to a rounding of its own
        explained = explained.maximum(2 * lost.maximum(lost.median()))
        near_tie = 3 * explained  # two independent errors in two logits: 3 standard deviations
        problem = _problem(file, model, explained, near_tie, activations_quantized)
    if problem:
        raise CheckFailedError(problem)


def _problem(
    file: Tensor, model: Tensor, explained: Tensor, near_tie: Tensor, quantized: bool
) -> str:
    """What is wrong with the file, where rounding moves an image's logits by `explained` [N], and
    two of them against each other by `near_tie` [N]; empty if nothing is.
    """
    chosen = model.gather(1, file.argmax(1, keepdim=True)).squeeze(1)
    differs = model.amax(1) - chosen > near_tie
    if int(differs.sum()) > max(1.0, (1 - LEAST_SHARE[quantized]) * len(model)):
        share = 1 - float(differs.double().mean())
        return (
            f"the exported file and the model agree on {share:.4f} of the validation images, at "
            f"least {LEAST_SHARE[quantized]} is required; {_example(file, model, differs)}"
        )
    apart = _distances(file, model)
    if apart.median() > explained.median():
        return (
            f"the logits of the exported file are off by {float(apart.median()):.3g} on the median "
            f"validation image, rounding explains {float(explained.median()):.3g}; "
            f"{_example(file, model, apart > explained)}"
        )
    return ""


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square over the classes of each image's difference of logits, [N]."""
    return (first - second).square().mean(1).sqrt()


def _example(file: Tensor, model: Tensor, wrong: Tensor) -> str:
    first = int(wrong.nonzero()[0])
    return f"first at image {first}: file {_numbers(file[first])}, model {_numbers(model[first])}"


def _numbers(logits: Tensor) -> str:
    shown = ", ".join(f"{value:.4g}" for value in logits[:10].tolist())
    return f"[{shown}{', ...' if len(logits) > 10 else ''}]"

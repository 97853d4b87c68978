"""Whether the exported file decides as the PyTorch model does."""

from __future__ import annotations

from torch import Tensor

from compressbench.core import CheckFailedError

# Least share of images that must get the same class, and the gap between two logits below which
# their order is left to rounding, in units of the mean range of the logits of an image. Integer
# kernels round biases and sums where the model does not: measured on ResNet-20 with 8 bits, its
# logits move by 0.2 % of their range on average. Float kernels only add in another order.
LEAST_SHARE = {True: 0.995, False: 0.999}
NEAR_TIE = {True: 1e-2, False: 1e-4}


def agreement(file: Tensor, model: Tensor) -> float:
    """Share of rows of logits [N, K] with the same largest entry."""
    return float((file.argmax(1) == model.argmax(1)).double().mean())


def check_agreement(file: Tensor, model: Tensor, activations_quantized: bool) -> None:
    """Raise CheckFailedError where `file` and `model` part on more images than rounding explains.

    An image counts as different when the classes differ and, for the model, the class that the
    file chose is behind by more than a near-tie. One different image is always allowed.
    """
    spread = (model.amax(1) - model.amin(1)).mean()
    chosen = model.gather(1, file.argmax(1, keepdim=True)).squeeze(1)
    behind = model.amax(1) - chosen
    differs = behind > NEAR_TIE[activations_quantized] * spread
    allowed = max(1.0, (1 - LEAST_SHARE[activations_quantized]) * len(model))
    if int(differs.sum()) > allowed:
        raise CheckFailedError(_describe(file, model, differs, activations_quantized))


def _describe(file: Tensor, model: Tensor, differs: Tensor, quantized: bool) -> str:
    first = int(differs.nonzero()[0])
    share = 1 - float(differs.double().mean())
    return (
        f"the exported file and the model agree on {share:.4f} of the validation images, at least "
        f"{LEAST_SHARE[quantized]} is required; first at image {first}: "
        f"file {_numbers(file[first])}, model {_numbers(model[first])}"
    )


def _numbers(logits: Tensor) -> str:
    shown = ", ".join(f"{value:.4g}" for value in logits[:10].tolist())
    return f"[{shown}{', ...' if len(logits) > 10 else ''}]"

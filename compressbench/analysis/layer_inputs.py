"""Collects the inputs of a layer in the float model and in its partly quantized copy."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.probe import probe_of
from compressbench.core.calls import tensors_in
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.data.calibration import training_images

PASS_BATCH = 256  # images per forward pass, over which BatchNorm also takes its statistics


def layer_moments(
    name: str, models: tuple[nn.Module, nn.Module], context: Context, images: int
) -> Moments:
    """Moments of the layer `name` over `images` training images.

    `models` are the float model and the partly quantized one, from `working_copies`.
    """
    reference, quantized = models
    moments = Moments(reference.get_submodule(name))
    for batch in calibration_batches(context, images):
        moments.add_(input_of(reference, name, batch), input_of(quantized, name, batch))
    moments.reduce_()
    return moments


class _ReachedError(Exception):
    """Stops a forward pass once the input of the requested module is known."""


@torch.no_grad()
def input_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """The first tensor argument of the first call to the module `name` in a forward pass.

    Raises UserError if the forward pass never calls the module.
    """
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        seen.append(tensors_in([*args, *kwargs.values()])[0])
        raise _ReachedError

    handle = model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(images)
    except _ReachedError:
        return seen[0]
    finally:
        handle.remove()
    raise UserError(
        f"{name}: the forward pass never calls this layer, so its rounding cannot be fitted; "
        f"keep it in float with a rule {{layers: {name}, bits: null}}"
    )


def working_copies(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A copy of the float model, and a second copy whose layers are to be quantized in turn.

    The second normalizes each batch by its own statistics (`probe_of`). Stages measure BatchNorm
    statistics again after rounding, so weights must not be fitted to the old ones.
    """
    reference = deepcopy(model).to(device).eval().requires_grad_(False)
    return reference, probe_of(reference, device)


def calibration_batches(context: Context, images: int) -> Iterator[Tensor]:
    """Yield this rank's share of `images` training images, in batches of two or more images.

    BatchNorm needs a variance. Raises UserError if no batch remains.
    """
    usable = 0
    for batch in training_images(context, images, PASS_BATCH):
        if len(batch) > 1:
            usable += 1
            yield batch
    if not usable:
        raise UserError(f"images={images} leaves a process fewer than two images; raise images")

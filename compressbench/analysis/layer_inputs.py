"""The inputs of single layers while later versions of a model run beside the first one."""

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

PASS_BATCH = 256  # images of a forward pass; also those of one BatchNorm statistic


def layer_moments(
    name: str, models: tuple[nn.Module, nn.Module], context: Context, images: int
) -> Moments:
    """The moments of one layer over `images` training images; `models` from `working_copies`."""
    reference, quantized = models
    moments = Moments(reference.get_submodule(name))
    for batch in calibration_batches(context, images):
        moments.add_(input_of(reference, name, batch), input_of(quantized, name, batch))
    moments.reduce_()
    return moments


class _ReachedError(Exception):
    """Ends a forward pass at the module whose input is wanted."""


@torch.no_grad()
def input_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """The first tensor that the module `name` is handed in a forward pass, at its first call."""
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
        f"{name}: its weight is used, but the layer itself is never called, so that its rounding "
        f"cannot be fitted; a rule {{layers: {name}, bits: null}} leaves it in float"
    )


def working_copies(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The float model, and a copy whose layers are quantized one after the other (`probe_of`:
    weights fitted to the old statistics of BatchNorm would be fitted to a model that never runs).
    """
    reference = deepcopy(model).to(device).eval().requires_grad_(False)
    return reference, probe_of(reference, device)


def calibration_batches(context: Context, images: int) -> Iterator[Tensor]:
    """`images` training images of all ranks together, in batches that have a variance."""
    usable = 0
    for batch in training_images(context, images, PASS_BATCH):
        if len(batch) > 1:
            usable += 1
            yield batch
    if not usable:
        raise UserError(f"images={images} gives a process fewer than two images")

"""Collects the inputs of a layer in the float model and in its partly quantized copy."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.probe import probe_of
from compressbench.core.batchnorm import Pairs
from compressbench.core.calls import tensors_in
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.data.calibration import training_images

PASS_BATCH = 256  # images per forward pass, over which BatchNorm also takes its statistics


@dataclass(frozen=True)
class WorkingCopies:
    """A copy of the float model in eval mode, and one whose layers are changed in turn.

    BatchNorm in `changed` normalizes as the finished model will, for `Context.batchnorm`: for
    "shift" by statistics that follow the changes (`pairs`), for "measure" by those of the batch,
    for "keep" by its own.
    """

    reference: nn.Module
    changed: nn.Module
    pairs: Pairs | None = None

    @classmethod
    def of(cls, model: nn.Module, context: Context) -> WorkingCopies:
        device = context.runtime.device
        reference = deepcopy(model).to(device).eval().requires_grad_(False)
        if context.batchnorm == "measure":
            return cls(reference, probe_of(reference, device))
        changed = deepcopy(reference)
        pairs = Pairs(reference, changed) if context.batchnorm == "shift" else None
        return cls(reference, changed, pairs)

    def inputs_of(self, name: str, images: Tensor, drift: bool) -> tuple[Tensor, Tensor]:
        """Inputs of a layer in the reference and in the changed copy; twice the latter's without
        `drift`.
        """
        if not drift and self.pairs is None:
            return (input_of(self.changed, name, images),) * 2
        clean = input_of(self.reference, name, images)
        seen = input_of(self.changed, name, images)
        return clean if drift else seen, seen


def layer_moments(
    name: str, models: WorkingCopies, context: Context, images: int, drift: bool = True
) -> Moments:
    """Moments of the layer `name` over `images` training images; x = x' without `drift`.

    The journal of `context` keeps their sums, of these models and this layer only.
    """
    moments = Moments(models.reference.get_submodule(name))
    batches = calibration_batches(context, images)
    for batch in context.journal.over("moments", batches, moments.sums()):
        moments.add_(*models.inputs_of(name, batch, drift))
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

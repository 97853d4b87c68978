"""Runs calibration images through a model and looks at the values of its activation sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import CHILD, ActivationQuantizers
from compressbench.core.calls import tensors_in
from compressbench.core.digests import named
from compressbench.core.distributed import max_over_ranks
from compressbench.core.errors import CheckFailedError
from compressbench.core.journal import HasState, Journal
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.data.calibration import training_images


@dataclass
class Seen:
    """What was seen at a site: a statistic of this rank's finite values, and facts of all ranks.

    `least` is the smallest number of finite values on a rank, `magnitude` the largest of them.
    """

    statistic: Any
    least: float = 0.0
    magnitude: float = 0.0
    infinite: bool = False
    undefined: bool = False  # held NaN


def site_quantizers(model: nn.Module) -> ActivationQuantizers:
    """The quantizers of a model. Raises CheckFailedError if it has none."""
    quantizers = model.get_submodule(CHILD)
    if not isinstance(quantizers, ActivationQuantizers):
        kind = type(quantizers).__name__
        raise CheckFailedError(f"{CHILD} of the model must be ActivationQuantizers, got {kind}")
    return quantizers


def observe_sites(
    model: nn.Module,
    quantizers: ActivationQuantizers,
    observer: Observer,
    context: Context,
    images: int,
    batch_size: int,
) -> list[Seen]:
    """What each site holds on training images, with float activations.

    Infinities of a mask disappear before the output of the model: others make a site undefined.
    """
    seen = [Seen(observer.start()) for _ in quantizers]
    state = _State(seen)
    asked = [repr([observer, images, batch_size]), *named(model.state_dict())]
    journal = context.journal.within("observer", *asked) if state.can_be_saved else Journal()
    quantizers.observe = lambda number, values: _update(seen[number], observer, values.detach())
    try:
        inner = replace(context, journal=journal)
        finite = run_images(model, inner, images, batch_size, state)
    finally:
        quantizers.observe = None
    _share_(seen, finite, context.runtime.device)
    return seen


def _update(seen: Seen, observer: Observer, values: Tensor) -> None:
    if not values.numel():
        return
    if not all(math.isfinite(bound.item()) for bound in values.aminmax()):
        seen.undefined |= bool(values.isnan().any())
        seen.infinite |= bool(values.isinf().any())
        values = values[values.isfinite()]
    if values.numel():
        seen.statistic = observer.update(seen.statistic, values)
        seen.least += values.numel()
        seen.magnitude = max(seen.magnitude, values.abs().max().item())


def _share_(seen: Sequence[Seen], finite: bool, device: torch.device) -> None:
    """Replace the facts of this rank by those of all ranks."""
    facts = [[-s.least, s.magnitude, s.infinite, s.undefined, not finite] for s in seen]
    shared = max_over_ranks(torch.tensor(facts, dtype=torch.float64, device=device))
    for one, (least, magnitude, infinite, undefined, broken) in zip(
        seen, shared.tolist(), strict=True
    ):
        one.least, one.magnitude, one.infinite = -least, magnitude, bool(infinite)
        one.undefined = bool(undefined) or (bool(infinite) and bool(broken))


def run_images(
    model: nn.Module, context: Context, images: int, batch_size: int, state: HasState
) -> bool:
    """Run `model` on training images; return whether all its outputs are finite.

    `state` is what the quantizers' `observe` changes. The journal of `context` keeps it, for this
    model and this use only.
    """
    whole = _Whole(state)
    with torch.no_grad():
        batches = training_images(context, images, batch_size)
        for inputs in context.journal.over("images", batches, whole):
            outputs = tensors_in([model(inputs)])
            whole.finite &= all(bool(output.isfinite().all()) for output in outputs)
    return whole.finite


@dataclass
class _Whole:
    """The state of a pass: whether all outputs were finite, and what was observed."""

    observed: HasState
    finite: bool = True

    def state_dict(self) -> dict[str, Any]:
        return {"finite": self.finite, "observed": self.observed.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.finite = state_dict["finite"]
        self.observed.load_state_dict(state_dict["observed"])


@dataclass
class Sums:
    """Observed tensors by name, which are replaced or changed in place."""

    tensors: dict[Any, Tensor]

    def state_dict(self) -> dict[Any, Tensor]:
        return self.tensors

    def load_state_dict(self, state_dict: dict[Any, Tensor], /) -> None:
        self.tensors.clear()
        self.tensors.update(state_dict)


@dataclass
class _State:
    """What was seen at all sites; statistics are tensors or dataclasses of tensors and numbers."""

    seen: Sequence[Seen]

    @property
    def can_be_saved(self) -> bool:
        return all(
            isinstance(part, (Tensor, int, float))
            for one in self.seen
            for part in _parts(one.statistic).values()
        )

    def state_dict(self) -> dict[str, Any]:
        return {str(number): _parts(one) | {"statistic": _parts(one.statistic)}
                for number, one in enumerate(self.seen)}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        for number, one in enumerate(self.seen):
            facts = state_dict[str(number)]
            statistic = facts.pop("statistic")
            whole = isinstance(one.statistic, Tensor)
            one.statistic = statistic[""] if whole else replace(one.statistic, **statistic)
            for name, value in facts.items():
                setattr(one, name, value)


def _parts(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, or `value` itself under the name ""."""
    if not is_dataclass(value):
        return {"": value}
    return {part.name: getattr(value, part.name) for part in fields(value)}

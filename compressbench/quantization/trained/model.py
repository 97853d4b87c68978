"""A model that computes with rounded weights and activations while its own stay in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressbench.core.activation_quantizers import (
    CHILD,
    ActivationQuantizers,
    SiteQuantizer,
)
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid
from compressbench.core.layers import weight_owners
from compressbench.core.types import Edit
from compressbench.quantization.grids.scheme import grid_options
from compressbench.quantization.grids.weights import set_weights_
from compressbench.quantization.trained.protocols import (
    ActivationTraining,
    TrainedSite,
    TrainedWeight,
    WeightTraining,
)


class FakeQuantizedModel(nn.Module):
    """`model` with the weights of the layers in `grids` rounded at every call, and with trained
    quantizers in the place of its calibrated ones, until `settle_`. `power_of_two` is about the
    scales of activations; those of weights are as their grids say.

    The weights are handed to the model from outside: what is computed on them makes no calls
    inside, where activation sites are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        grids: Mapping[str, Grid],
        weight: WeightTraining,
        activation: ActivationTraining | None,
        power_of_two: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.grids = model, dict(grids)
        self.owners = weight_owners(model, grids)
        self.names = list(dict.fromkeys(self.owners.values()))  # a tied weight once
        self.weights = nn.ModuleList(
            cast(nn.Module, weight.weight(model.get_parameter(f"{n}.weight"), grids[n]))
            for n in self.names
        )
        self.calibrated: list[SiteQuantizer] = []
        if activation is not None:
            self._replace_sites_(activation, power_of_two)

    def _sites(self) -> ActivationQuantizers | None:
        found = getattr(self.model, CHILD, None)
        return found if isinstance(found, ActivationQuantizers) else None

    def _replace_sites_(self, activation: ActivationTraining, power_of_two: bool) -> None:
        quantizers = self._sites()
        if quantizers is None:
            raise CheckFailedError("the model has no calibrated activation quantizers")
        for number, site in enumerate(quantizers):
            assert isinstance(site, SiteQuantizer)
            self.calibrated.append(site)
            made = activation.activation(site.scale, site.zero_point, site.bits, power_of_two)
            quantizers[number] = cast(nn.Module, made)

    def forward(self, inputs: Tensor) -> Any:
        weights = {
            f"{name}.weight": module(self.model.get_parameter(f"{name}.weight"))
            for name, module in zip(self.names, self.weights, strict=True)
        }
        return functional_call(self.model, weights, (inputs,))

    def groups(self) -> list[dict[str, Any]]:
        """What an optimizer trains: the model's parameters as the optimizer's own options say, and
        one group for each weight decay that trained quantizers name, 0 unless they do.
        """
        learned: dict[float, list[nn.Parameter]] = {}
        sites = self._sites() if self.calibrated else None
        for module in (*self.weights, *(sites or ())):
            decay = float(getattr(module, "decay", 0.0))
            learned.setdefault(decay, []).extend(module.parameters())
        known = {id(p) for found in learned.values() for p in found}
        own = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        grids = [{"params": p, "weight_decay": decay} for decay, p in learned.items() if p]
        return [{"params": own}, *grids]

    def settle_(self) -> Edit:
        """Put the model's own weights on their grids and hand the learned ranges to its calibrated
        quantizers, which take their places again; returns the edit of the weights.

        The model then computes what this module did.
        """
        modules = dict(zip(self.names, self.weights, strict=True))
        results = {}
        for name, owner in self.owners.items():
            weight = self.model.get_parameter(f"{name}.weight")
            if not bool(torch.isfinite(weight).all()):
                raise CheckFailedError(f"{name}.weight holds NaN or infinity after training")
            results[name] = cast(TrainedWeight, modules[owner]).grid_weight(weight)
        set_weights_(self.model, self.grids, results)
        quantizers = self._sites() or nn.ModuleList()
        for number, site in enumerate(self.calibrated):
            site.scale.copy_(cast(TrainedSite, quantizers[number]).scale().detach())
            quantizers[number] = site
        self.calibrated = []
        return {
            "kind": "weight_grid",
            "layers": {n: grid_options(g) for n, g in self.grids.items()},
        }

    def fixed_sites(self) -> list[int]:
        """The activation sites that learn nothing where others do."""
        sites = list(self._sites() or ()) if self.calibrated else []
        fixed = [number for number, site in enumerate(sites) if not list(site.parameters())]
        return fixed if len(fixed) < len(sites) else []

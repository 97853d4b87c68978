"""Wraps a float model so that it computes with rounded weights and activations."""

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
from compressbench.core.layers import parameter_names, weight_owners
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
    """Wraps `model` to round the weights of the layers in `grids` in every call, until `settle_`.

    Calibrated activation quantizers are replaced by trained ones. `power_of_two` applies to the
    scales of activations; the scales of weights follow their grids. Weights are rounded outside
    of the model and passed to it, since calls inside it would be counted as activation sites.
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
        self.names = list(dict.fromkeys(self.owners.values()))  # tied weights once
        self.weights = nn.ModuleList(
            cast(nn.Module, weight.weight(model.get_parameter(f"{n}.weight"), grids[n]))
            for n in self.names
        )
        self.calibrated: list[SiteQuantizer] = []
        if activation is not None:
            self._replace_sites_(activation, power_of_two)

    def _sites(self) -> ActivationQuantizers | None:
        child = getattr(self.model, CHILD, None)
        return child if isinstance(child, ActivationQuantizers) else None

    def _replace_sites_(self, activation: ActivationTraining, power_of_two: bool) -> None:
        quantizers = self._sites()
        if quantizers is None:
            raise CheckFailedError("the model has no calibrated activation quantizers")
        for number, site in enumerate(quantizers):
            assert isinstance(site, SiteQuantizer)
            self.calibrated.append(site)
            trained = activation.activation(site.scale, site.zero_point, site.bits, power_of_two)
            quantizers[number] = cast(nn.Module, trained)

    def forward(self, inputs: Tensor) -> Any:
        rounded: dict[str, Tensor] = {}
        for name, module in zip(self.names, self.weights, strict=True):
            weight = self.model.get_parameter(f"{name}.weight")
            rounded |= dict.fromkeys(parameter_names(self.model, weight), module(weight))
        # ties are resolved here: torch takes a module with two names for two tied modules, and
        # leaves a rounded weight in it
        return functional_call(self.model, rounded, (inputs,), tie_weights=False)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer.

        The first has the parameters of the model, with the optimizer's options. Those of trained
        quantizers are grouped by their attribute `decay`, the weight decay, which is 0 by default.
        """
        learned: dict[float, list[nn.Parameter]] = {}
        sites = self._sites() if self.calibrated else None
        for module in (*self.weights, *(sites or ())):
            decay = float(getattr(module, "decay", 0.0))
            learned.setdefault(decay, []).extend(module.parameters())
        known = {id(p) for parameters in learned.values() for p in parameters}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        grids = [{"params": p, "weight_decay": decay} for decay, p in learned.items() if p]
        return [{"params": rest}, *grids]

    def settle_(self) -> Edit:
        """Quantize the weights of the model itself, and restore its calibrated quantizers.

        These get the learned ranges, so the model then computes the same as this module. Returns
        the edit of the weights. Raises CheckFailedError if a weight is not finite.
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
        """The activation sites without trained parameters; none if no site has any."""
        sites = list(self._sites() or ()) if self.calibrated else []
        fixed = [number for number, site in enumerate(sites) if not list(site.parameters())]
        return fixed if len(fixed) < len(sites) else []

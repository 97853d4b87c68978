"""Importance of channels: the scale of their BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.pruning.criteria.outputs import chain, layer_calls


@dataclass(frozen=True)
class BatchNormScale:
    """|gamma| of the BatchNorm that follows a layer, for each output channel.

    Averaged if a layer is called several times, before different BatchNorms. Each weight has the
    importance of its channel. Raises UserError for a layer that no BatchNorm follows. Liu et al.
    2017 (arXiv:1708.06519) first train with an L1 penalty on gamma; without it the scales are
    less informative.
    """

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        example = context.data.spec.blank(2)
        calls, positions = layer_calls(model, layers, example)
        scores, without = {}, []
        for name, places in positions.items():
            norms = [
                model.get_submodule(calls[step].layer)
                for place in places
                for step in chain(calls, place)
                if calls[step].function == "batch_norm"
            ]
            scales = [
                n.weight.detach().abs() for n in norms if isinstance(n, _BatchNorm) and n.affine
            ]
            if scales:
                scores[name] = torch.stack(scales).mean(0)
            else:
                without.append(name)
        if without:
            raise UserError(
                f"batchnorm_scale: no BatchNorm with a scale follows {', '.join(without[:5])}: "
                "skip it, or choose another criterion"
            )
        return scores

"""Cross-layer equalization: rescales consecutive layers without changing the function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.calls import Call
from compressbench.core.layers import per_output
from compressbench.quantization.preparation.folding import single_calls, unchanged_outputs

# functions with f(s x) = s f(x) for s > 0 in each channel, if the first two axes stay the same
_POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
_HOMOGENEOUS = {"relu", "leaky_relu", "dropout", "flatten", "view", "reshape"} | {
    f"{pool}{axes}d" for pool in _POOLS for axes in (1, 2, 3)
}
_CONVERGED = 1e-4  # largest |s - 1| of the last sweep
_SWEEPS = 500


@dataclass
class _Weights:
    """A layer's weight [O, I, ..] and bias [O] in float64, rescaled by the sweeps."""

    weight: Tensor
    bias: Tensor | None
    groups: int

    def input_view(self) -> Tensor:
        """View of the weight as [groups, O / groups, inputs per group, kernel]."""
        return self.weight.view(self.groups, -1, self.weight.shape[1], self.weight[0, 0].numel())


def equalize_(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Rescale pairs of layers so that each channel between them has equal weight ranges in both.

    For a pair A -> B and channel i, let r_i^A and r_i^B be max|w| over the weights of output
    channel i of A and input channel i of B, and s_i = sqrt(r_i^A r_i^B) / r_i^B. Row i of A and
    its bias are divided by s_i, column i of B is multiplied by s_i. Sweeps over all pairs are
    repeated until all s are close to 1. Channels that are zero on either side keep s = 1. This
    helps grids with one scale per tensor.

    (A, B) is a pair if only B reads the output of A, through positively homogeneous functions
    such as ReLU and pooling. ReLU6 separates layers, since replacing it by ReLU would change the
    function. Grouped and depthwise layers may be in pairs.

    `model` must be in eval mode with BatchNorm folded. Returns the pairs in forward order. Raises
    CheckFailedError if the outputs change. Nagel et al. 2019 (arXiv:1906.04721, section 4.1).
    """
    pairs = find_pairs(model, example)
    if not pairs:
        return []
    with unchanged_outputs(model, example, "cross-layer equalization"):
        names = dict.fromkeys(name for pair in pairs for name in pair)
        layers = {name: _read(model.get_submodule(name)) for name in names}
        for _ in range(_SWEEPS):
            if max(_balance_(layers[a], layers[b]) for a, b in pairs) < _CONVERGED:
                break
        for name, values in layers.items():
            _write_(model.get_submodule(name), values)
    return pairs


def find_pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """The pairs (A, B) of layers that equalization may rescale, in forward order."""
    calls, last, places = single_calls(model, example)
    per_channel = {
        position: name
        for name, position in places.items()
        if calls[position].output.ndim == model.get_parameter(f"{name}.weight").ndim
    }
    pairs = []
    for position, name in per_channel.items():
        reader = _reader(calls, position, last)
        if reader in per_channel and per_channel[reader] != name:
            pairs.append((name, per_channel[reader]))
    return pairs


def channel_scales(outputs: Tensor, inputs: Tensor) -> Tensor:
    """The scales sqrt(r_i^A r_i^B) / r_i^B for the ranges r^A `outputs` and r^B `inputs`, [C]."""
    zero = (outputs == 0) | (inputs == 0)
    return torch.where(zero, 1.0, torch.sqrt(outputs / torch.where(zero, 1.0, inputs)))


def _reader(calls: list[Call], position: int, last: int) -> int:
    """Position of the only call that reads an output, after homogeneous functions; or -1."""
    shape = calls[position].output.shape[:2]
    while position != last and len(calls[position].consumers) == 1:
        position = calls[position].consumers[0]
        call = calls[position]
        if call.function not in _HOMOGENEOUS:
            return position
        if not isinstance(call.output, Tensor) or call.output.shape[:2] != shape:
            return -1
    return -1


def _read(layer: nn.Module) -> _Weights:
    tensors = {name: p.detach().double() for name, p in layer.named_parameters(recurse=False)}
    groups = getattr(layer, "groups", 1)
    return _Weights(tensors["weight"].contiguous(), tensors.get("bias"), groups)


def _write_(layer: nn.Module, values: _Weights) -> None:
    with torch.no_grad():
        layer.get_parameter("weight").copy_(values.weight)
        if values.bias is not None:
            layer.get_parameter("bias").copy_(values.bias)


def _balance_(a: _Weights, b: _Weights) -> float:
    """Equalize one pair; returns the largest |s - 1|."""
    inputs = b.input_view()
    scales = channel_scales(a.weight.abs().flatten(1).amax(1), inputs.abs().amax((1, 3)).flatten())
    a.weight /= per_output(scales, a.weight)
    if a.bias is not None:
        a.bias /= scales
    inputs *= scales.view(b.groups, 1, -1, 1)
    return float((scales - 1).abs().max())

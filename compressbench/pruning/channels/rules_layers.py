"""Labels of layers and normalizations: where channels begin and end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compressbench.core.calls import tensors_in
from compressbench.pruning.channels.rules_elementwise import combine, unknown
from compressbench.pruning.channels.shadows import Call, Operand, Shadows


def layer(shadows: Shadows, call: Call) -> None:
    """A convolution or linear layer: reads its input channels, and gives its output channels."""
    inputs, weight = call.argument(0, "input"), call.argument(1, "weight")
    name = shadows.layer_of(weight)
    if name is None:
        return _computed(shadows, call, inputs, weight)
    axis = inputs.ndim - 1 if call.name == "linear" else inputs.ndim - weight.ndim + 1
    first = name not in shadows.outputs
    outer, inner = shadows.output_labels(name), shadows.input_labels(name)
    if first:
        _tie_groups(shadows, shadows.layers[name], outer, inner)
    reason = f"{name} is applied along another axis than its channels"
    shadows.labels.unite(inner, shadows.vector(shadows.operand(inputs), axis, reason))
    shape = [len(outer) if a == axis else 1 for a in range(call.output.ndim)]
    shadows.put(call.output, outer.reshape(shape))
    return None


def _computed(shadows: Shadows, call: Call, inputs: Tensor, weight: Tensor) -> None:
    """A weight that is computed, or no layer's: its shape cannot follow."""
    if call.owner in shadows.layers:
        reason = f"the weight of {call.owner} is computed from other parameters"
        name = call.owner
        for labels in (shadows.output_labels(name), shadows.input_labels(name)):
            shadows.labels.fix(labels, reason)
    reason = f"its channels meet a weight that no layer holds ({call.what})"
    label = shadows.fix([inputs, weight], reason)
    shadows.constant(call.output, label)


def whole_groups(module: Any) -> bool:
    """Whether groups of a convolution are removed as a whole, since one side has one channel."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and min(module.in_channels, module.out_channels) == groups


def _tie_groups(shadows: Shadows, module: Any, outer: Tensor, inner: Tensor) -> None:
    """Unite the labels of a grouped convolution so that its groups stay equally wide.

    Channels at the same position in every group are removed together; of depthwise convolutions,
    with one channel per group on a side, whole groups are.
    """
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return
    into, out = inner.reshape(groups, -1), outer.reshape(groups, -1)
    if whole_groups(module):
        shadows.unite_along(into, [1])
        shadows.unite_along(out, [1])
        shadows.labels.unite(into[:, :1], out[:, :1])
    else:
        shadows.unite_along(into, [0])
        shadows.unite_along(out, [0])


def channel_norm(shadows: Shadows, call: Call) -> None:
    """BatchNorm and InstanceNorm: channel by channel, along axis 1."""
    inputs: Tensor = call.argument(0, "input")
    operands = [shadows.operand(inputs), *_per_channel(shadows, call, inputs)]
    _normalized(shadows, call, combine(shadows, operands, call))


def group_norm(shadows: Shadows, call: Call) -> None:
    """GroupNorm: the channels of a group share their statistics, and are removed together."""
    inputs, groups = call.argument(0, "input"), call.argument(1, "num_groups")
    if groups == 1:
        shadows.fix([inputs], f"{call.what} normalizes over its channels")
    axis = 1
    labels = shadows.vector(shadows.operand(inputs), axis, f"{call.what} mixes its channels")
    shadows.unite_along(labels.reshape(groups, -1), [1])
    operands = [shadows.operand(inputs), *_per_channel(shadows, call, inputs)]
    _normalized(shadows, call, combine(shadows, operands, call))


def _normalized(shadows: Shadows, call: Call, result: Tensor) -> None:
    shadows.put(call.output, result)
    if result.shape[1] != result.numel():
        return
    labels = result.reshape(-1).expand(call.output.shape[1])
    known = shadows.counted.setdefault(call.owner, labels)
    if len(known) == len(labels):
        shadows.labels.unite(known, labels)


def _per_channel(shadows: Shadows, call: Call, inputs: Tensor) -> list[Operand]:
    """The parameters and statistics [C] among the arguments, along axis 1."""
    tensors = [t for t in tensors_in([*call.args, *call.kwargs.values()]) if t is not inputs]
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    return [
        Operand(shadows.of(t).reshape(shape), (1, t.numel(), *shape[2:]))
        for t in tensors
        if t.numel() > 1
    ]


def slope(shadows: Shadows, call: Call) -> None:
    """PReLU: one slope, or one per channel."""
    inputs: Tensor = call.argument(0, "input")
    operands = [shadows.operand(inputs), *_per_channel(shadows, call, inputs)]
    result = combine(shadows, operands, call)
    if len(operands) > 1:
        return _normalized(shadows, call, result)
    shadows.put(call.output, result)
    return None


def layer_norm(shadows: Shadows, call: Call) -> None:
    """LayerNorm and RMSNorm over the last axes."""
    inputs, last = call.argument(0, "input"), len(call.argument(1, "normalized_shape"))
    operand = shadows.operand(inputs)
    if any(axis >= inputs.ndim - last for axis in shadows.varying(operand.shadow)):
        shadows.fix([inputs], f"{call.what} normalizes over its channels")
    tensors = [t for t in tensors_in([*call.args, *call.kwargs.values()]) if t.numel() > 1]
    result = combine(shadows, [shadows.operand(t) for t in tensors], call)
    shadows.put(call.output, result)


def embedding(shadows: Shadows, call: Call) -> None:
    """Rows of a table: its last axis."""
    table: Tensor = call.argument(1, "weight")
    if id(table) not in {id(p) for p in shadows.model.parameters()}:
        return unknown(shadows, call)
    shadow = shadows.raw(table, [table.ndim - 1])
    shadows.put(call.output, shadow.reshape(*[1] * (call.output.ndim - 1), -1))
    return None


def opaque(shadows: Shadows, call: Call) -> None:
    """A module in one call, whose channels are left: attention and recurrent layers of torch."""
    reason = f"its channels enter {call.what}, whose channels are not pruned"
    label = shadows.fix(tensors_in([*call.args, *call.kwargs.values()]), reason)
    for output in tensors_in([call.output]):
        shadows.constant(output, label)
    for name, module in shadows.model.named_modules():
        if name.startswith(f"{call.owner}.") and isinstance(module, nn.Linear):
            shadows.labels.fix(shadows.output_labels(name), f"it is a part of {call.what}")

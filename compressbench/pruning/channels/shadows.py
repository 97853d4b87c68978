"""Shadows: integer tensors that carry the labels of channels beside a model's activations.

The shadow of a tensor has its number of axes, and along each axis its size or 1 (equal labels
along the axis). Moving data moves its shadow in the same way, and combining values unites their
labels. Labels of layers vary along one axis at most, since only whole slices can be removed;
labels of parameters and buffers that no layer owns may vary along several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from compressbench.core.layers import prunable_layers, tied_modules
from compressbench.pruning.channels.labels import FREE, Labels

RAW_ELEMENTS = 1 << 18  # larger parameters have labels along their last axis only
ELEMENTS = 20_000_000  # larger tensors are not followed where their labels must be written out

Place = tuple[str, int]  # a module, and the number of a reshape that it calls
INPUT = "its channels are combined with the model's input"
CONSTANT = "its channels are combined with a constant of fixed size"


@dataclass(frozen=True)
class Call:
    """One call of a torch function; `owner` is the innermost module that is running."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    owner: str
    module: nn.Module

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def what(self) -> str:
        """The function for messages: its torch module (`GroupNorm`) if that calls it."""
        kind = type(self.module)
        return kind.__name__ if kind.__module__.startswith("torch.nn") else self.name


@dataclass(frozen=True)
class Operand:
    """A shadow with the shape of its tensor."""

    shadow: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Width:
    """A size that the code of `owner` may hold in an attribute: `labels` along one axis."""

    owner: str
    labels: Tensor


@dataclass
class Shadows:
    """The labels of one model, while it is traced."""

    model: nn.Module
    choices: Mapping[Place, int]
    labels: Labels = field(default_factory=Labels)
    outputs: dict[str, Tensor] = field(default_factory=dict)  # of layers, [out channels]
    inputs: dict[str, Tensor] = field(default_factory=dict)  # of layers, [in channels]
    raws: dict[str, Tensor] = field(default_factory=dict)  # of other parameters and buffers
    counted: dict[str, Tensor] = field(default_factory=dict)  # of normalization modules, [C]
    widths: list[Width] = field(default_factory=list)
    places: dict[Place, tuple[int, Tensor]] = field(default_factory=dict)  # options, labels

    def __post_init__(self) -> None:
        self.layers = prunable_layers(self.model)
        self._tied = tied_modules(self.model)
        self._shadows: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._reshapes: defaultdict[str, int] = defaultdict(int)
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}
        self._owners = {
            id(tensor): name
            for name, layer in self.layers.items()
            for leaf, tensor in layer.named_parameters(recurse=False)
            if leaf in ("weight", "bias")
        }

    def begin(self) -> None:
        """Start a pass: reshapes are numbered anew."""
        self._reshapes.clear()

    def layer_of(self, weight: Any) -> str | None:
        """The layer that `weight` is the weight of, or None."""
        name = self._owners.get(id(weight))
        return name if name and getattr(self.layers[name], "weight", None) is weight else None

    def of(self, tensor: Tensor) -> Tensor:
        """The shadow of a tensor."""
        known = tensor in self._shadows
        return self.compress(self._shadows[tensor] if known else self._first(tensor))

    def operand(self, tensor: Tensor) -> Operand:
        return Operand(self.of(tensor), tuple(tensor.shape))

    def put(self, tensor: Tensor, shadow: Tensor) -> None:
        """Set the shadow of a tensor; labels that cover all of it are fixed."""
        small = self.compress(shadow)
        if small.ndim != tensor.ndim or any(
            s not in (1, t) for s, t in zip(small.shape, tensor.shape, strict=True)
        ):
            raise ValueError(f"labels of shape {small.shape} for a tensor of {tensor.shape}")
        if small.numel() == 1 and tensor.numel() > 1 and not self.labels.raw(small):
            self.labels.fix(small, "all its channels can only be removed together")
        self._shadows[tensor] = small

    def constant(self, tensor: Tensor, label: int = FREE) -> None:
        self._shadows[tensor] = torch.full([1] * tensor.ndim, label)

    def fix(self, tensors: Iterable[Tensor], reason: str) -> int:
        """Fix all labels of `tensors`; returns the label of what is computed from them."""
        for tensor in tensors:
            self.labels.fix(self.of(tensor), reason)
        return self.labels.fixed(reason)

    def new(self, count: int, raw: bool = False) -> Tensor:
        return torch.from_numpy(self.labels.new(count, raw))

    def compress(self, shadow: Tensor) -> Tensor:
        """The shadow with size 1 along axes of equal labels."""
        for axis in range(shadow.ndim):
            if shadow.shape[axis] > 1 and shadow.stride(axis) == 0:
                shadow = shadow.narrow(axis, 0, 1)
        classes = torch.from_numpy(self.labels.classes(shadow))
        for axis in range(shadow.ndim):
            if shadow.shape[axis] > 1 and bool((classes == classes.narrow(axis, 0, 1)).all()):
                shadow, classes = shadow.narrow(axis, 0, 1), classes.narrow(axis, 0, 1)
        return shadow.contiguous()

    def varying(self, shadow: Tensor) -> list[int]:
        """The axes along which the labels of a compressed shadow differ."""
        return [axis for axis, size in enumerate(shadow.shape) if size > 1]

    def unite_along(self, shadow: Tensor, axes: Iterable[int]) -> Tensor:
        """Unite labels along axes; the shadow then has size 1 there."""
        for axis in axes:
            first = shadow.narrow(axis, 0, 1)
            if shadow.shape[axis] > 1:
                self.labels.unite(shadow, first)
            shadow = first
        return shadow

    def vector(self, operand: Operand, axis: int, reason: str) -> Tensor:
        """The labels along one axis, [size]; labels that vary along others are fixed."""
        shadow = operand.shadow
        others = [a for a in self.varying(shadow) if a != axis % shadow.ndim]
        if others and self.labels.raw(shadow):
            shadow = self.unite_along(shadow, others)
        elif others:
            self.labels.fix(shadow, reason)
            shadow = torch.full([1] * shadow.ndim, self.labels.fixed(reason))
        return shadow.reshape(-1).expand(operand.shape[axis])

    def place(self, owner: str) -> Place:
        """The place of the next reshape that a module calls."""
        self._reshapes[owner] += 1
        return owner, self._reshapes[owner] - 1

    def raw(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """The shadow of a parameter or buffer, with labels along `axes` if it has none yet."""
        name = self._names[id(tensor)]
        if name not in self.raws:
            shape = [size if a in axes else 1 for a, size in enumerate(tensor.shape)]
            self.raws[name] = self.new(int(torch.Size(shape).numel()), raw=True).reshape(shape)
            if name.rpartition(".")[0] in self._tied:
                self.labels.fix(self.raws[name], f"{name} is shared by several modules")
        return self.compress(self.raws[name])

    def _first(self, tensor: Tensor) -> Tensor:
        """The shadow of a tensor that no traced call has computed."""
        name, shape = self._names.get(id(tensor)), [1] * tensor.ndim
        if tensor.numel() <= 1:
            return torch.full(shape, FREE)
        owner = self._owners.get(id(tensor))
        if owner is not None:
            reason = f"the weight of {owner} is used outside of the layer"
            self.labels.fix(self.output_labels(owner), reason)
            self.labels.fix(self.input_labels(owner), reason)
            return torch.full(shape, self.labels.fixed(reason))
        if name is None:
            return torch.full(shape, self.labels.fixed(CONSTANT))
        axes = range(tensor.ndim) if tensor.numel() <= RAW_ELEMENTS else [tensor.ndim - 1]
        return self.raw(tensor, axes)

    def output_labels(self, name: str) -> Tensor:
        """The labels of a layer's output channels."""
        self._start(name)
        return self.outputs[name]

    def input_labels(self, name: str) -> Tensor:
        """The labels of a layer's input channels."""
        self._start(name)
        return self.inputs[name]

    def _start(self, name: str) -> None:
        if name in self.outputs:
            return
        layer: Any = self.layers[name]
        linear = isinstance(layer, nn.Linear)
        self.inputs[name] = self.new(layer.in_features if linear else layer.in_channels, raw=True)
        self.outputs[name] = self.new(layer.out_features if linear else layer.out_channels)
        if len(self.outputs[name]) == 1:
            self.labels.fix(self.outputs[name], "it has one channel")
        if self.tied(name):
            self.labels.fix(self.outputs[name], self.tied(name))
            self.labels.fix(self.inputs[name], self.tied(name))

    def tied(self, name: str) -> str:
        """That the weight of a layer is tied to another's, or ""."""
        return f"the weight of {name} is tied to another layer's" if name in self._tied else ""

"""Fake quantization of activations at the places where an integer runtime rounds.

Places ("sites") are outputs of torch functions, found by running the model once: after a
convolution with its BatchNorm and clamp-like activation, after an addition, and so on. They are
kept as (function, index of its call), so any model whose sequence of calls does not depend on its
input can be quantized; the parameter names stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core import CheckFailedError, Edit

CHILD = "activation_quantizers"  # the name under which the quantizers hang in a model

_FUSES_BATCHNORM = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"}
_CLAMPS = {"relu", "relu6", "hardtanh", "clamp", "clip"}
_PRODUCERS = _FUSES_BATCHNORM | _CLAMPS | {
    "add", "radd", "sub", "mul", "rmul", "div", "cat", "concat", "concatenate", "batch_norm",
    "layer_norm", "group_norm", "mean", "avg_pool2d", "adaptive_avg_pool2d", "matmul", "bmm",
    "sigmoid", "silu", "hardsigmoid", "hardswish", "gelu", "tanh", "softmax", "leaky_relu", "elu",
    "prelu", "rsub", "rdiv", "scaled_dot_product_attention", "interpolate",
}  # fmt: skip


@dataclass
class Call:
    """One call seen while tracing: who produced its tensors and what it returned."""

    function: str
    index: int
    layer: str
    sources: list[int]
    output: Any  # kept, so that no later tensor gets the id of one of these
    consumers: list[int] = field(default_factory=list)


def function_name(function: Callable[..., Any]) -> str:
    """`torch.Tensor.__iadd__` -> "add": in-place and operator forms are the same operation."""
    name = getattr(function, "__name__", "").strip("_")
    return name[1:] if name in {"iadd", "imul", "isub", "idiv", "itruediv"} else name


class _Recorder(TorchFunctionMode):
    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.producer: dict[int, int] = {}
        self.counts: dict[str, int] = {}
        self.layers = layers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = function_name(func)
        index = self.counts.get(name, 0)
        self.counts[name] = index + 1
        results = [t for t in tensors_in([output]) if t.is_floating_point()]
        if results:
            tensors = tensors_in([*args, *(kwargs or {}).values()])
            sources = [self.producer[id(t)] for t in tensors if id(t) in self.producer]
            if sources:
                position = len(self.calls)
                for source in sources:
                    self.calls[source].consumers.append(position)
                self.calls.append(Call(name, index, self.layers[-1], sources, output))
                self.producer.update((id(t), position) for t in results)
        return output


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among `values` and in the lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found


def find_sites(model: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """The places to quantize, in call order: dicts of `function`, `index` and `layer`.

    The first is the model's input (`function` "input"). The output of the model stays float.
    """
    layers = [""]
    handles = []
    for name, module in model.named_modules():
        if module is not model:
            handles.append(
                module.register_forward_pre_hook(lambda m, a, name=name: layers.append(name))
            )
            handles.append(module.register_forward_hook(lambda m, a, o: layers.pop() and None))
    recorder = _Recorder(layers)
    recorder.calls.append(Call("input", 0, "", [], example))
    recorder.producer[id(example)] = 0
    try:
        with torch.no_grad(), recorder:
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    last = recorder.producer.get(id(output), -1)
    chosen = {0} | {
        _end_of_chain(recorder.calls, position)
        for position, call in enumerate(recorder.calls)
        if call.function in _PRODUCERS
    }
    return [
        {"function": c.function, "index": c.index, "layer": c.layer}
        for position, c in enumerate(recorder.calls)
        if position in chosen and position != last
    ]


def _end_of_chain(calls: list[Call], position: int) -> int:
    """Follow conv -> batch_norm -> relu, which a runtime computes in one integer kernel."""
    call = calls[position]
    if len(call.consumers) != 1:
        return position
    follower = calls[call.consumers[0]]
    fuses = call.function in _FUSES_BATCHNORM and follower.function == "batch_norm"
    if fuses or (follower.function in _CLAMPS and call.function not in _CLAMPS):
        return _end_of_chain(calls, call.consumers[0])
    return position


@torch.library.custom_op("compressbench::fake_quantize", mutates_args=())
def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round `values` to the grid `scale * (q - zero_point)`, q in [0, 2**bits - 1].

    `scale` float32 and `zero_point` uint8 are scalars. The exporter turns this operator into
    QuantizeLinear and DequantizeLinear.
    """
    return torch.fake_quantize_per_tensor_affine(
        values, scale, zero_point.to(torch.int32), 0, 2**bits - 1
    )


@fake_quantize.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    return torch.empty_like(values)


class SiteQuantizer(nn.Module):
    """The grid of one site: `scale` float32 [], `zero_point` uint8 []."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def set_range_(self, low: float, high: float) -> None:
        """Asymmetric grid over [low, high], widened to hold zero exactly.

        A site that was always zero gets [0, 1]: a tiny scale would overflow the integer biases.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < torch.finfo(torch.float32).tiny * 2**self.bits:
            low, high = 0.0, 1.0
        levels = 2**self.bits - 1
        scale = (high - low) / levels
        self.scale.fill_(scale)
        self.zero_point.fill_(max(0, min(levels, round(-low / scale))))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = fake_quantize(values, self.scale, self.zero_point, self.bits)
        return result


class _AtSites(TorchFunctionMode):
    """Applies `act(site number, value)` at every site while a model runs."""

    def __init__(
        self, numbers: Mapping[tuple[str, int], int], act: Callable[[int, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.numbers, self.act = numbers, act
        self.functions = {function for function, _ in numbers}
        self.counts: dict[str, int] = {}
        self.visited = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = function_name(func)
        if name not in self.functions:
            return output
        index = self.counts.get(name, 0)
        self.counts[name] = index + 1
        number = self.numbers.get((name, index))
        if number is None:
            return output
        self.visited += 1
        return self.act(number, output)


class ActivationQuantizers(nn.ModuleList):
    """The site quantizers of a model; hooks of the model put them to work while it runs."""

    def __init__(self, sites: list[dict[str, Any]], bits: int) -> None:
        super().__init__(SiteQuantizer(bits) for _ in sites)
        self.numbers = {(s["function"], s["index"]): n for n, s in enumerate(sites)}
        self.observe: Callable[[int, Tensor], None] | None = None  # set while calibrating
        self._active: list[_AtSites] = []

    def act(self, number: int, values: Tensor) -> Tensor:
        if self.observe is not None:
            self.observe(number, values)
            return values
        result: Tensor = self[number](values)
        return result

    def forward(self, values: Tensor) -> Tensor:
        """The identity: a model that calls all its children in turn (nn.Sequential) calls us."""
        return values

    def enter(self, model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = self.act(self.numbers[("input", 0)], args[0])
        mode = _AtSites(self.numbers, self.act)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._active.append(mode)
        return (first, *args[1:])

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        mode = self._active.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and mode.visited != len(self.numbers) - 1:
            raise CheckFailedError(
                f"{mode.visited} of {len(self.numbers) - 1} activation quantizers were reached: "
                "the model does not make the same calls as when it was calibrated"
            )


def attach_(model: nn.Module, edit: Edit) -> ActivationQuantizers:
    """Hang the quantizers of an `activation_grid` edit into `model`."""
    quantizers = ActivationQuantizers(edit["sites"], edit["bits"])
    model.add_module(CHILD, quantizers)
    model.register_forward_pre_hook(quantizers.enter)
    model.register_forward_hook(quantizers.leave, always_call=True)
    return quantizers

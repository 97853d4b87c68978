"""Fake quantization of activations, where an integer runtime would round them.

Static sites are outputs of torch functions, with ranges from calibration. Dynamic sites are the
inputs of convolutions and linear functions, with the range of each tensor at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.call_stack import CallStack, Places, Site
from compressbench.core.calls import function_name, takes_floats
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Edit

CHILD = "activation_quantizers"  # submodule of a model that holds its quantizers
_INPUT = Site("", "input", 0)


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


@torch.library.custom_op("compressbench::dynamic_fake_quantize", mutates_args=())
def dynamic_fake_quantize(values: Tensor) -> Tensor:
    """Round `values` to 256 levels from min(0, min(values)) to max(0, max(values)).

    Computes what ONNX DynamicQuantizeLinear computes; the whole batch shares one range.
    """
    low, high = (bound.float() for bound in values.aminmax())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale).clamp(0, 255)
    codes = (torch.round(values / scale) + zero_point).clamp_(0, 255)
    return (codes - zero_point) * scale


@dynamic_fake_quantize.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


class DynamicQuantizer(nn.Module):
    """Quantizer of a dynamic site; has no state."""

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = dynamic_fake_quantize(values)
        return result


class SiteQuantizer(nn.Module):
    """Quantizer of a static site, with `scale` float32 [] and `zero_point` uint8 []."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def set_range_(self, low: float, high: float, power_of_two: bool = False) -> None:
        """Set an asymmetric grid over [low, high], widened so that zero is exact.

        `power_of_two` rounds the scale up to a power of two. A site that was always zero gets
        [0, 1], since a tiny scale would overflow the integer biases.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < torch.finfo(torch.float32).tiny * 2**self.bits:
            low, high = 0.0, 1.0
        levels = 2**self.bits - 1
        scale = (high - low) / levels
        if power_of_two:
            scale = 2.0 ** math.ceil(math.log2(scale))
        self.scale.fill_(scale)
        self.zero_point.fill_(max(0, min(levels, round(-low / scale))))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = fake_quantize(values, self.scale, self.zero_point, self.bits)
        return result


class _AtSites(TorchFunctionMode):
    """Applies `act(site number, value)` at every site while a model runs.

    The value is the output of the site's function, or its first argument if `before`. Calls are
    recognized by their site, or by their place if the stack has `known` places.
    """

    def __init__(
        self,
        numbers: Mapping[Site, int],
        act: Callable[[int, Tensor], Tensor],
        before: bool,
        stack: CallStack,
    ) -> None:
        super().__init__()
        self.numbers, self.act, self.before, self.stack = numbers, act, before, stack
        self.functions = {site.function for site in numbers}
        self.visited = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        number = self._number(func, args, kwargs or {})
        if number is not None and self.before:
            args, kwargs = self._act_on_first(number, args, kwargs or {})
        output = func(*args, **(kwargs or {}))
        return output if number is None or self.before else self.act(number, output)

    def _number(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> int | None:
        """The number of the site at this call, or None."""
        name = function_name(func)
        if name not in self.functions or not takes_floats(args, kwargs):
            return None
        number = self._known(name)
        self.visited += number is not None
        return number

    def _known(self, name: str) -> int | None:
        place = self.stack.place(name) if self.stack.locates else None
        if place is not None and self.stack.known is not None:
            return self.stack.known.sites.get(place)
        number = self.numbers.get(self.stack.site(name))
        if self.stack.learnt is not None and place is not None and number is not None:
            self.stack.learnt.sites[place] = number
        return number

    def _act_on_first(self, number: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (self.act(number, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self.act(number, kwargs["input"])}


class ActivationQuantizers(nn.ModuleList):
    """The site quantizers of a model, which hooks of the model apply while it runs.

    In evaluation mode every site must be reached. In training mode a site may be missing, as in a
    block that is skipped at random.
    """

    def __init__(self, sites: list[dict[str, Any]], bits: int, dynamic: bool = False) -> None:
        super().__init__(DynamicQuantizer() if dynamic else SiteQuantizer(bits) for _ in sites)
        self.sites = [Site(s["path"], s["function"], s["index"]) for s in sites]
        self.dynamic = dynamic
        self.observe: Callable[[int, Tensor], None] | None = None  # set while calibrating
        self.places: Places | None = None  # set in the first pass in training mode
        self._learnt: Places | None = None  # set while they are found
        self._active: list[_AtSites] = []

    @property
    def numbers(self) -> dict[Site, int]:
        return {site: number for number, site in enumerate(self.sites)}

    def drop_(self, numbers: Container[int]) -> None:
        """Remove the quantizers of the sites `numbers`."""
        kept = [n for n in range(len(self.sites)) if n not in numbers]
        for number in reversed(range(len(self.sites))):
            if number in numbers:
                del self[number]
        self.sites = [self.sites[n] for n in kept]
        self.places = None

    def act(self, number: int, values: Tensor) -> Tensor:
        if self.observe is not None:
            self.observe(number, values)
            return values
        result: Tensor = self[number](values)
        return result

    def forward(self, values: Tensor) -> Tensor:
        """The identity: an nn.Sequential calls all its children, this one included."""
        return values

    def enter(self, model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if model.training and self.places is None:
            self.find_places_(model, *args)
        numbers = self.numbers
        number = numbers.get(_INPUT)
        first = args[0] if number is None else self.act(number, args[0])
        stack = CallStack(model, CHILD, self._learnt, self.places if model.training else None)
        mode = _AtSites(numbers, self.act, self.dynamic, stack)
        stack.__enter__()
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._active.append(mode)
        return (first, *args[1:])

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        mode = self._active.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        mode.stack.__exit__()
        if output is None:
            return  # the model raised an error
        mode.stack.finish()
        expected = len(self.sites) - (_INPUT in self.sites)  # the input is not a call
        if mode.visited != expected and not model.training:
            raise CheckFailedError(
                f"{mode.visited} of {expected} activation quantizers were reached: "
                "the model does not make the same calls as when it was calibrated"
            )

    def find_places_(self, model: nn.Module, *args: Tensor) -> None:
        """Find the places of the sites, for training, by a pass of `model` in evaluation mode."""
        modes = {module: module.training for module in model.modules()}
        observe, self.observe = self.observe, lambda number, values: None
        self._learnt = Places()
        try:
            with torch.no_grad():
                model.eval()(*args)
            self._learnt.settle_()
            self.places = self._learnt
        finally:
            self._learnt, self.observe = None, observe
            for module, training in modes.items():
                module.training = training


def attach_(model: nn.Module, edit: Edit) -> ActivationQuantizers:
    """Add the quantizers of an `activation_grid` edit to `model`."""
    quantizers = ActivationQuantizers(edit["sites"], edit["bits"], edit.get("dynamic", False))
    model.add_module(CHILD, quantizers)
    model.register_forward_pre_hook(quantizers.enter)
    model.register_forward_hook(quantizers.leave, always_call=True)
    return quantizers


@contextmanager
def activations_in_float(model: nn.Module) -> Iterator[None]:
    """Disable the activation quantizers of `model`, if any, within the block."""
    quantizers = dict(model.named_children()).get(CHILD)
    if not isinstance(quantizers, ActivationQuantizers):
        yield
        return
    quantizers.observe = lambda number, values: None
    try:
        yield
    finally:
        quantizers.observe = None

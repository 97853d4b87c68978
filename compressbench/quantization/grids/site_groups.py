"""Groups of activation sites that may be faster in float together, and the layers at each site."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.call_stack import Site
from compressbench.core.calls import Call, trace
from compressbench.core.layers import layers_with_weights

MOST_RUNS = 8  # parts into which the sites are divided, in call order


@dataclass(frozen=True)
class SiteGroup:
    """Some sites of an `activation_grid` edit, by their numbers there."""

    name: str
    sites: frozenset[int]


class Sites:
    """The activation sites of a quantized model, among the calls of its forward pass."""

    def __init__(
        self, model: nn.Module, sites: Sequence[Mapping[str, Any]], example: Tensor
    ) -> None:
        with activations_in_float(model):
            self._calls, _ = trace(model, example)
        places = {Site(s["path"], s["function"], s["index"]): n for n, s in enumerate(sites)}
        self._number = {
            position: places[call.site]
            for position, call in enumerate(self._calls)
            if call.site in places
        }
        self._layer_of = {
            id(layer.weight): (name, layer) for name, layer in layers_with_weights(model).items()
        }

    def groups(self) -> list[SiteGroup]:
        """All sites; those of one kind; and runs in call order, from halves to eighths."""
        order = list(self._number.values())
        found = [SiteGroup("all", frozenset(order))]
        kinds: dict[str, set[int]] = {}
        for position, number in self._number.items():
            kinds.setdefault(self._kind(position), set()).add(number)
        found += [SiteGroup(kind, frozenset(numbers)) for kind, numbers in kinds.items()]
        parts = 2
        while parts <= min(MOST_RUNS, len(order)):
            found += _runs(order, parts)
            parts *= 2
        unique = {group.sites: group for group in reversed(found)}
        return [group for group in found if unique[group.sites] is group]

    def layers_in_float(self, left: Collection[int]) -> dict[str, int]:
        """Layer -> the site of `left` for which it is computed in float.

        An integer kernel needs a quantized input and, but for a linear function, output.
        """
        found: dict[str, int] = {}
        for position, call in enumerate(self._calls):
            for name in self._layers(call):
                around = [self._before(position)]
                around += [] if call.function == "linear" else [self._after(position)]
                at = [number for number in around if number in left]
                if at and at[0] is not None:
                    found.setdefault(name, at[0])
        return found

    def _layers(self, call: Call) -> list[str]:
        return [self._layer_of[i][0] for i in call.parameters if i in self._layer_of]

    def _before(self, position: int) -> int | None:
        """The site that the first input of a call comes from."""
        while self._calls[position].sources:
            position = self._calls[position].sources[0]
            if position in self._number:
                return self._number[position]
        return None

    def _after(self, position: int) -> int | None:
        """The site that rounds the output of a call, which may follow its normalization."""
        while position not in self._number:
            consumers = self._calls[position].consumers
            if len(consumers) != 1:
                return None
            position = consumers[0]
        return self._number[position]

    def _kind(self, position: int) -> str:
        """What is computed at a site: "pooled" for one value per channel, else the function that
        its chain of calls starts with.
        """
        output = self._calls[position].output
        if isinstance(output, Tensor) and output.ndim > 2 and output[0].numel() == output.shape[1]:
            return "pooled"
        for at in self._chain(position):
            for identity in self._calls[at].parameters:
                layer = self._layer_of.get(identity, ("", None))[1]
                if layer is not None:
                    return _depthwise(layer) or self._calls[at].function
        return self._calls[position].function

    def _chain(self, position: int) -> Iterator[int]:
        """The call of a site, and those before it up to the previous site, along first inputs."""
        yield position
        while self._calls[position].sources:
            position = self._calls[position].sources[0]
            if position in self._number:
                return
            yield position


def _depthwise(layer: nn.Module) -> str:
    groups = getattr(layer, "groups", 1)
    return "depthwise" if groups > 1 and groups == getattr(layer, "in_channels", 0) else ""


def _runs(order: Sequence[int], parts: int) -> Iterator[SiteGroup]:
    cuts = [len(order) * part // parts for part in range(parts + 1)]
    for number, (low, high) in enumerate(pairwise(cuts), start=1):
        yield SiteGroup(f"part {number} of {parts}", frozenset(order[low:high]))

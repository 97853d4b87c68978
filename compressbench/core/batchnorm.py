"""Lets BatchNorm follow a change of the weights: its inputs in two models, matched by channel."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressbench.core.errors import CheckFailedError

BatchNormRule = Literal["shift", "measure", "keep"]
Args = tuple[Any, ...]
KNOWN = 0.01  # least variance, as a share of the running one, from which a ratio is taken


@dataclass(frozen=True)
class Sums:
    """Values of the inputs of a BatchNorm layer, and of their squares, summed by image and channel.

    `first` and `second` are float64 [N, C], each over `count` values.
    """

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Sums:
        """Of inputs [N, C, ...]."""
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        values = wide.reshape(*wide.shape[:2], -1)
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        variance, mean, count = variance.double(), mean.double(), values.shape[2]
        return cls(count, count * mean, count * (variance + mean.square()))

    def part(self, images: Tensor | slice, channels: Tensor | None = None) -> Sums:
        """Of some of the images, and some of the channels."""
        first, second = self.first[images], self.second[images]
        if channels is not None:
            first, second = first[:, channels], second[:, channels]
        return Sums(self.count, first, second)

    @classmethod
    def joined(cls, parts: Sequence[Sums]) -> Sums:
        """Of the images of all parts, in their order."""
        first, second = (torch.cat([getattr(p, n) for p in parts]) for n in ("first", "second"))
        return cls(parts[0].count, first, second)

    def total(self) -> Tensor:
        """Number, sum and sum of squares over all images, float64 [3, C]."""
        number = torch.full_like(self.first[0], float(self.count * len(self.first)))
        return torch.stack([number, self.first.sum(0), self.second.sum(0)])


@dataclass(frozen=True)
class Match:
    """Gives inputs after a change the mean and the variance that they had before it.

    x becomes before + (x - after) / sqrt(ratio), where `before` and `after` are the means, and
    `ratio` is that of the variances; all float64 [C].
    """

    before: Tensor
    after: Tensor
    ratio: Tensor

    @classmethod
    def of(cls, layer: _BatchNorm, before: Tensor, after: Tensor) -> Match:
        """From the totals (`Sums.total`) of the same images.

        A channel that was nearly constant before, compared with its running variance, tells no
        ratio; the change of its variance then counts relative to the running one. No variance
        falls below what the layer's eps alone would divide by.
        """
        (mean, variance), (new_mean, new_variance) = _moments(before), _moments(after)
        running = _statistic(layer.running_var)
        divided_by = running + layer.eps
        ratio = torch.where(
            variance >= KNOWN * running.clamp_min(torch.finfo(running.dtype).tiny),
            new_variance / variance.clamp_min(torch.finfo(variance.dtype).tiny),
            1.0 + (new_variance - variance) / divided_by,
        )
        least = max(layer.eps, torch.finfo(torch.float32).tiny) / divided_by
        return cls(mean, new_mean, torch.maximum(ratio, least.clamp_max(1.0)))

    def apply(self, inputs: Tensor) -> Tensor:
        """The matched inputs [N, C, ...]."""
        shape = (1, -1, *(1,) * (inputs.ndim - 2))
        factor = self.ratio.rsqrt()
        shift = (self.before - self.after) + self.after * (1.0 - factor)
        return inputs * factor.to(inputs.dtype).view(shape) + shift.to(inputs.dtype).view(shape)

    def statistics(self, layer: _BatchNorm) -> tuple[Tensor, Tensor]:
        """Running mean and variance that do the same to inputs after the change, [C].

        mean + (after - before) + (mean - before) (sqrt(ratio) - 1), and
        var + (var + eps) (ratio - 1): exactly those of the layer where nothing changed.
        """
        mean, variance = _statistic(layer.running_mean), _statistic(layer.running_var)
        moved = (self.after - self.before) + (mean - self.before) * (self.ratio.sqrt() - 1.0)
        scaled = variance + (variance + layer.eps) * (self.ratio - 1.0)
        return mean + moved, scaled.clamp_min(0.0)


def _moments(total: Tensor) -> tuple[Tensor, Tensor]:
    count, first, second = total
    mean = first / count
    return mean, (second / count - mean.square()).clamp_min(0.0)


def _statistic(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.double()


def given_to(args: Args, kwargs: Mapping[str, Any]) -> Tensor:
    """The inputs of a call of a layer, which may be given by keyword."""
    inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
    return inputs


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> layer, for all BatchNorm layers with running statistics."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
    }


class Pairs:
    """Matches the BatchNorm inputs of a model to those of the same calls before a change.

    After a pass of `before`, a pass of `after` on the same inputs gives every BatchNorm layer
    inputs of the mean and variance that they had in `before`, so that later layers see what they
    will see once the statistics have followed. Both models are in eval mode.

    Args:
        before: The model before the change.
        after: The model after it.
        kept: Channels of BatchNorm layers of `before` that `after` has as well; missing: all.
        note: Called with the layer's name and both totals (`Sums.total`) at each call.
    """

    def __init__(
        self,
        before: nn.Module,
        after: nn.Module,
        kept: Mapping[str, Tensor] | None = None,
        note: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> None:
        self.waiting: defaultdict[str, deque[Sums]] = defaultdict(deque)
        self.kept, self.note = kept or {}, note
        self.handles = [before.register_forward_pre_hook(lambda *_: self.waiting.clear())]
        earlier = batchnorm_layers(before)
        for name, layer in batchnorm_layers(after).items():
            self._watch(name, earlier[name])
            self._match(name, layer)

    def _watch(self, name: str, layer: _BatchNorm) -> None:
        def watch(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> None:
            sums = Sums.of(given_to(args, kwargs).detach())
            self.waiting[name].append(sums.part(slice(None), self.kept.get(name)))

        self.handles.append(layer.register_forward_pre_hook(watch, with_kwargs=True))

    def _match(self, name: str, layer: _BatchNorm) -> None:
        def match(
            module: nn.Module, args: Args, kwargs: dict[str, Any]
        ) -> tuple[Args, dict[str, Any]]:
            if not self.waiting[name]:
                raise CheckFailedError(
                    f"BatchNorm {name} is called more often after the change than before it"
                )
            inputs = given_to(args, kwargs)
            before, after = self.waiting[name].popleft().total(), Sums.of(inputs).total()
            if self.note is not None:
                self.note(name, before, after)
            matched = Match.of(layer, before, after).apply(inputs)
            if args:
                return (matched, *args[1:]), kwargs
            return args, kwargs | {next(iter(kwargs)): matched}

        self.handles.append(layer.register_forward_pre_hook(match, with_kwargs=True))

    def take(self) -> dict[str, list[Sums]]:
        """What is waiting, by layer in the order of its calls; nothing is left."""
        taken = {name: list(calls) for name, calls in self.waiting.items() if calls}
        self.waiting.clear()
        return taken

    def expect(self, calls: Mapping[str, Sequence[Sums]]) -> None:
        """Let `calls` wait, and nothing else."""
        self.waiting.clear()
        for name, sums in calls.items():
            self.waiting[name].extend(sums)

    def remove(self) -> None:
        """Remove the hooks from both models."""
        for handle in self.handles:
            handle.remove()

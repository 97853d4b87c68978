"""One model with other weights, many times: each trial is computed from the first that differs."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from compressbench.analysis.probe import asked_of, divergence, weight_replaced
from compressbench.core.calls import tensors_in
from compressbench.core.digests import digest, named
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import CheckFailedError
from compressbench.core.memory_format import channels_last
from compressbench.core.types import Context

KEPT = 2**30  # bytes of the outputs of layers that are kept, of one batch
Trial = Callable[[], Mapping[str, Tensor]]  # gives layer -> the weight that it has meanwhile
Look = Callable[[Tensor, Tensor, int], Sequence[Tensor | float]]


def costs(
    probe: nn.Module, batches: Sequence[Tensor], trials: Sequence[Trial], context: Context
) -> list[float]:
    """How far each trial moves the answers of `probe`: the mean KL(own || trial) an image, in
    nats, over the images of all ranks; rounding errors below zero count as zero. Stages that ask
    the same, for other limits and budgets, measure it once.
    """
    parts = {**asked_of(probe, batches), "trials": digest(_told(trials))}
    found: list[float] = context.recall(parts, lambda: _costs(probe, batches, trials, context))
    return found


def _told(trials: Iterable[Trial]) -> Iterator[str | Tensor]:
    """Parts of a digest of all trials, of one after the other."""
    for trial in trials:
        yield from (*named(trial()), "|")


def _costs(
    probe: nn.Module, batches: Sequence[Tensor], trials: Sequence[Trial], context: Context
) -> list[float]:
    def look(own: Tensor, logits: Tensor, batch: int) -> Sequence[Tensor | float]:
        return divergence(own.double().log_softmax(1), logits.double()), len(logits)

    found = [nats / images for nats, images in totals(probe, batches, trials, look, context)]
    if not all(map(math.isfinite, found)):
        raise CheckFailedError("sensitivity: answers on training images are not finite")
    return [max(cost, 0.0) for cost in found]


@torch.no_grad()
def totals(
    probe: nn.Module,
    batches: Sequence[Tensor],
    trials: Sequence[Trial],
    look: Look,
    context: Context,
) -> list[list[float]]:
    """For each trial the sums, over the batches of all ranks, of the figures that `look` takes:
    of the outputs of `probe`, those of the trial, and the number of the batch.
    """
    found: list[list[Tensor]] = [[] for _ in trials]
    with channels_last(probe, batches[0][:2], batches[0].device):
        for number, inputs in enumerate(batches):
            first = _recorded(probe, inputs)
            for position, trial in enumerate(trials):
                done = number * len(trials) + position
                context.progress(done, len(batches) * len(trials), "what changes of layers cost")
                figures = look(first.outputs, first.again(trial()), number)
                found[position].append(torch.tensor([float(f) for f in figures]).double())
            del first  # before the next batch is kept
    if not trials:
        return []
    sums = torch.stack([torch.stack(rows).sum(0) for rows in found]).to(batches[0].device)
    summed: list[list[float]] = sum_over_ranks(sums).tolist()
    return summed


@dataclass
class _Pass:
    """One forward pass: the outputs of its layers in the order in which they ended (None: not
    kept, or changed in place later), and for each parameter how many layers had ended when it was
    first used.
    """

    probe: nn.Module
    inputs: Tensor
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[tuple[nn.Module, Tensor | None]] = field(default_factory=list)
    first_use: dict[int, int] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    kept: int = 0

    def keep(self, layer: nn.Module, output: Tensor) -> None:
        self.kept += output.nbytes
        self.calls.append((layer, output if self.kept <= KEPT else None))
        self.versions.append(output._version)

    def forget_changed(self) -> None:
        """What later calls have changed in place is not what the layer gave."""
        for number, (layer, output) in enumerate(self.calls):
            if output is not None and output._version != self.versions[number]:
                self.calls[number] = (layer, None)

    def again(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The outputs with other weights of layers. What ended before the first of them was used
        is not computed again.
        """
        changed = [self.probe.get_parameter(f"{layer}.weight") for layer in weights]
        same = min((self.first_use.get(id(p), 0) for p in changed), default=len(self.calls))
        with ExitStack() as stack:
            for layer, weight in weights.items():
                stack.enter_context(weight_replaced(self.probe, layer, weight))
            stack.enter_context(_given(self.calls[:same]))
            outputs: Tensor = self.probe(self.inputs)
        return outputs


def _recorded(probe: nn.Module, inputs: Tensor) -> _Pass:
    found = _Pass(probe, inputs)

    def compute(layer: nn.Module, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        output = own(*args, **kwargs)
        found.keep(layer, output)
        return output

    layers = {m: partial(compute, m, m.forward) for m in probe.modules() if _repeats(m)}
    with _forwards(layers), _FirstUse(found):
        found.outputs = probe(inputs)
    found.forget_changed()
    return found


class _FirstUse(TorchFunctionMode):
    """Notes when each parameter is used, by its own layer or by any other function."""

    def __init__(self, found: _Pass) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for tensor in tensors_in([*args, *(kwargs or {}).values()]):
            if isinstance(tensor, nn.Parameter):
                self.found.first_use.setdefault(id(tensor), len(self.found.calls))
        return func(*args, **(kwargs or {}))


def _repeats(layer: nn.Module) -> bool:
    """Whether a layer gives one tensor that depends on its inputs and parameters alone."""
    known = isinstance(layer, (_ConvNd, nn.Linear, _BatchNorm))
    own = "forward" in vars(layer) or any(True for _ in layer.children())
    return known and not own and not isinstance(layer, nn.SyncBatchNorm)


@contextmanager
def _given(calls: Iterable[tuple[nn.Module, Tensor | None]]) -> Iterator[None]:
    """Those calls of layers give those outputs, in their order; without one, they compute."""
    waiting: defaultdict[nn.Module, deque[Tensor | None]] = defaultdict(deque)
    for layer, output in calls:
        waiting[layer].append(output)

    def give(layer: nn.Module, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        output = waiting[layer].popleft() if waiting[layer] else None
        return own(*args, **kwargs) if output is None else output

    with _forwards({layer: partial(give, layer, layer.forward) for layer in waiting}):
        yield


@contextmanager
def _forwards(functions: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Layers compute by other functions inside the block; their hooks are called as ever."""
    for layer, function in functions.items():
        vars(layer)["forward"] = function
    try:
        yield
    finally:
        for layer in functions:
            del vars(layer)["forward"]

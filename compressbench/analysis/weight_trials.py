"""Runs a model with many sets of weights, each from the first layer whose weight differs."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from compressbench.analysis.probe import asked_of, weight_replaced
from compressbench.core.calls import tensors_in
from compressbench.core.digests import digest, named
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import CheckFailedError
from compressbench.core.memory_format import channels_last
from compressbench.core.types import Context
from compressbench.tasks.choice import task_of

KEPT = 2**30  # limit in bytes on the layer outputs kept for one batch
Trial = Callable[[], Mapping[str, Tensor]]  # () -> {layer: its weight in this trial}
# (original outputs, outputs of the trial, index of the batch) -> values to sum over batches
Look = Callable[[Tensor, Tensor, int], Sequence[Tensor | float]]


def costs(
    probe: nn.Module, batches: Sequence[Tensor], trials: Sequence[Trial], context: Context
) -> list[float]:
    """How much each trial changes the outputs of `probe`: mean KL(original || trial) per image.

    In nats, over the images of all ranks; negative rounding errors count as zero. The result is
    cached, so stages that differ only in limits or budgets measure it once. Raises
    CheckFailedError if an output is not finite.
    """
    parts = {**asked_of(probe, batches), "trials": digest(_digest_parts(trials))}
    nats: list[float] = context.recall(
        parts,
        lambda journal: _costs(probe, batches, trials, replace(context, journal=journal)),
    )
    return nats


def _digest_parts(trials: Iterable[Trial]) -> Iterator[str | Tensor]:
    """Yield the parts of a digest of all trials, holding one trial in memory at a time."""
    for trial in trials:
        yield from (*named(trial()), "|")


def _costs(
    probe: nn.Module, batches: Sequence[Tensor], trials: Sequence[Trial], context: Context
) -> list[float]:
    task = task_of(context.data.spec)

    def look(original: Tensor, logits: Tensor, batch: int) -> Sequence[Tensor | float]:
        return task.divergence(original.double(), logits.double()), len(logits)

    means = [nats / images for nats, images in totals(probe, batches, trials, look, context)]
    if not all(map(math.isfinite, means)):
        raise CheckFailedError("sensitivity: outputs on training images are not finite")
    return [max(cost, 0.0) for cost in means]


@torch.no_grad()
def totals(
    probe: nn.Module,
    batches: Sequence[Tensor],
    trials: Sequence[Trial],
    look: Look,
    context: Context,
) -> list[list[float]]:
    """For each trial, the values of `look` summed over the batches of all ranks.

    Args:
        probe: The model with its original weights, from `probe_of`.
        batches: Inputs of this rank.
        trials: Each returns the weights that replace those of some layers.
        look: Called with the original outputs, the trial's outputs and the index of the batch.
        context: Reports progress; its `journal` keeps what was measured, for these arguments only.
    """
    values: list[list[Tensor]] = [[] for _ in trials]
    with channels_last(probe, batches[0][:2], batches[0].device):
        text = f"measuring layer sensitivity{context.journal.before(len(batches) * len(trials))}"
        for number, inputs in enumerate(batches):
            first = cache(partial(_recorded, probe, inputs))  # not needed if all figures are known
            for position, trial in enumerate(trials):
                done = number * len(trials) + position
                context.progress(done, len(batches) * len(trials), text)
                figures = context.journal.once(
                    f"{number} {position}", partial(_figures, first, trial, look, number)
                )
                values[position].append(torch.tensor(figures).double())
            del first  # free its outputs before those of the next batch are kept
    if not trials:
        return []
    sums = torch.stack([torch.stack(rows).sum(0) for rows in values]).to(batches[0].device)
    summed: list[list[float]] = sum_over_ranks(sums).tolist()
    return summed


def _figures(first: Callable[[], _Pass], trial: Trial, look: Look, batch: int) -> list[float]:
    figures = look(first().outputs, first().again(trial()), batch)
    return [float(figure) for figure in figures]


@dataclass
class _Pass:
    """Record of one forward pass with the original weights.

    `calls` has the layers in the order in which they finished, with their outputs (None if not
    kept, or changed in place later); `first_use` maps the id of a parameter to the number of
    layers that had finished when it was first used.
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
        """Drop outputs that later calls have changed in place: they cannot be replayed."""
        for number, (layer, output) in enumerate(self.calls):
            if output is not None and output._version != self.versions[number]:
                self.calls[number] = (layer, None)

    def again(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The outputs of the model with these weights (layer -> weight).

        Layers that had finished before the first replaced weight was used are not run again.
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
    record = _Pass(probe, inputs)

    def compute(
        layer: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        output = forward(*args, **kwargs)
        record.keep(layer, output)
        return output

    layers = {m: partial(compute, m, m.forward) for m in probe.modules() if _repeats(m)}
    with _forwards(layers), _FirstUse(record):
        record.outputs = probe(inputs)
    record.forget_changed()
    return record


class _FirstUse(TorchFunctionMode):
    """Records when each parameter is first used, by its own layer or by any other function."""

    def __init__(self, record: _Pass) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for tensor in tensors_in([*args, *(kwargs or {}).values()]):
            if isinstance(tensor, nn.Parameter):
                self.record.first_use.setdefault(id(tensor), len(self.record.calls))
        return func(*args, **(kwargs or {}))


def _repeats(layer: nn.Module) -> bool:
    """Whether a layer returns one tensor that depends only on its inputs and parameters."""
    known = isinstance(layer, (_ConvNd, nn.Linear, _BatchNorm))
    custom = "forward" in vars(layer) or any(True for _ in layer.children())
    return known and not custom and not isinstance(layer, nn.SyncBatchNorm)


@contextmanager
def _given(calls: Iterable[tuple[nn.Module, Tensor | None]]) -> Iterator[None]:
    """Replay the outputs of these calls, in their order; calls with output None run the layer."""
    waiting: defaultdict[nn.Module, deque[Tensor | None]] = defaultdict(deque)
    for layer, output in calls:
        waiting[layer].append(output)

    def give(layer: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        output = waiting[layer].popleft() if waiting[layer] else None
        return forward(*args, **kwargs) if output is None else output

    with _forwards({layer: partial(give, layer, layer.forward) for layer in waiting}):
        yield


@contextmanager
def _forwards(functions: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Replace the `forward` of layers inside the block; their hooks still run."""
    for layer, function in functions.items():
        vars(layer)["forward"] = function
    try:
        yield
    finally:
        for layer in functions:
            del vars(layer)["forward"]

"""Is a model without some channels the wide model whose consumers ignore them?

Values are drawn anew for every tensor of the wide model, BatchNorm statistics among them, so that
nothing is nearly constant or zero by training; the narrow one gets slices of the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.types import Artifact

TOLERANCE = 2e-3  # of the variation between images
ROUNDING, LEAST = 3e-6, 5e-4  # of the largest output: float sums; the least variation that proves
DRAWS = 5  # of values, until a proof is not empty
FLOOR, SHARE, STEP = 0.1, 0.5, 2  # of the channels of a layer; asked; multiple that is left

Removed = Mapping[str, Mapping[str, Sequence[int]]]


def compaction_problems(
    before: Artifact, after: Artifact, warnings: Sequence[str], inputs: Tensor
) -> Iterator[str]:
    """Objections to a stage that removed channels; none if it removed none."""
    edits = [e for e in after.edits[len(before.edits) :] if e["kind"] == "resize"]
    if not edits:
        return
    (edit,) = edits
    removed: Removed = edit["removed"]
    wide, narrow = deepcopy(before.model).eval(), deepcopy(after.model).eval()
    yield from shares(wide, removed, warnings)
    try:
        slices = Slices(wide, narrow, removed)
        wrong = [*slices.wrong(wide, narrow)]
    except (IndexError, RuntimeError, AttributeError, StopIteration) as error:
        wrong = [f"the removed channels do not explain the shapes: {str(error).splitlines()[:1]}"]
    if wrong:
        yield wrong[0]
        return
    empty: list[str] = []
    for draw in range(DRAWS):
        redraw_(wide, draw)
        slices.keep_ties_(wide)
        slices.copy_(wide, narrow)
        differing = [*_outputs_differ(wide, narrow, removed, inputs)]
        if differing:
            yield differing[0]
            return
        empty = [*_proves_nothing(wide, removed, inputs)]
        if not empty:
            return
    yield from empty


def _outputs_differ(
    wide: nn.Module, narrow: nn.Module, removed: Removed, inputs: Tensor
) -> Iterator[str]:
    ignoring = deepcopy(wide)
    ignore_(ignoring, removed)
    with torch.no_grad():
        expected, found = ignoring(inputs), narrow(inputs)
    largest, varies = float(expected.abs().max()), float(expected.std(0).max())
    apart = float((found - expected).abs().max())
    if not apart <= TOLERANCE * varies + ROUNDING * largest:
        yield (
            f"outputs differ by {apart:.3g} from those of the wide model that ignores the channels,"
            f" which vary by {varies:.3g} between images (cut: {', '.join(removed)})"
        )


def _proves_nothing(wide: nn.Module, removed: Removed, inputs: Tensor) -> Iterator[str]:
    """Why equal outputs say little for these values."""
    ignoring = deepcopy(wide)
    ignore_(ignoring, removed)
    with torch.no_grad():
        expected, whole = ignoring(inputs), wide(inputs)
    largest, varies = float(expected.abs().max()), float(expected.std(0).max())
    if varies < LEAST * largest:
        yield f"the proof is empty: outputs up to {largest:.3g} vary by {varies:.3g} between images"
    if float((whole - expected).abs().max()) < TOLERANCE * varies:
        yield "the proof is empty: the removed channels have no effect"


class Slices:
    """Which part of each tensor of the wide model is left, by the channels that are said to be
    removed; by the values, for tensors of which nothing is said. Equal values do not show which of
    them is left, so they have to stay equal.
    """

    def __init__(self, wide: nn.Module, narrow: nn.Module, removed: Removed) -> None:
        self.removed = {
            name: removed[first] for name, first in _first_names(wide).items() if first in removed
        }
        old = wide.state_dict()
        self.matched = {
            name: _matches(old[name], tensor)
            for name, tensor in narrow.state_dict().items()
            if name.rpartition(".")[0] not in self.removed and tensor.shape != old[name].shape
        }
        self.firsts = {
            name: [(dim, _firsts(old[name], old[name], dim)) for dim, _ in left]
            for name, left in self.matched.items()
        }

    def wrong(self, wide: nn.Module, narrow: nn.Module) -> Iterator[str]:
        """Narrow weights that are no slices of the wide ones; BatchNorm statistics may move."""
        old = wide.state_dict()
        for name, tensor in narrow.state_dict().items():
            leaf = name.rpartition(".")[2]
            if leaf.startswith(("running_", "num_batches")) or not tensor.is_floating_point():
                continue
            expected = self.part(wide, name, old[name])
            if expected.shape != tensor.shape:
                yield f"{name} is {list(tensor.shape)}, its channels leave {list(expected.shape)}"
            elif not torch.equal(expected, tensor):
                yield f"{name} is no slice of the weight before"

    def copy_(self, wide: nn.Module, narrow: nn.Module) -> None:
        old = wide.state_dict()
        names = [*narrow.state_dict()]
        narrow.load_state_dict({name: self.part(wide, name, old[name]) for name in names})

    def keep_ties_(self, wide: nn.Module) -> None:
        """Make equal again what was equal, in the tensors that are matched by their values."""
        state = wide.state_dict()
        for name, firsts in self.firsts.items():
            for dim, first in firsts:
                state[name].copy_(state[name].index_select(dim, first))

    def part(self, wide: nn.Module, name: str, tensor: Tensor) -> Tensor:
        path, _, leaf = name.rpartition(".")
        layer, sides = wide.get_submodule(path), self.removed.get(path, {})
        out, inner = (set(sides.get(side, ())) for side in ("out", "in"))
        if name in self.matched:
            for dim, left in self.matched[name]:
                tensor = tensor.index_select(dim, left)
            return tensor
        if leaf == "weight" and isinstance(layer, _ConvNd):
            return _sliced_convolution(layer, tensor, out, inner)
        if leaf == "weight" and isinstance(layer, nn.Linear):
            return _without(_without(tensor, 0, out), 1, inner)
        if path in self.removed and tensor.numel() > 1:  # one slope of a PReLU is for all
            both = not isinstance(layer, (_ConvNd, nn.Linear)) or _is_depthwise(layer)
            return _without(tensor, 0, out | (inner if both else set()))
        return tensor


def _matches(wide: Tensor, narrow: Tensor) -> list[tuple[int, Tensor]]:
    """(dimension, indices that are left), found by the values; for one narrower dimension."""
    (dim,) = (d for d in range(wide.ndim) if wide.shape[d] != narrow.shape[d])
    return [(dim, _firsts(narrow, wide, dim))]


def _firsts(tensor: Tensor, wide: Tensor, dim: int) -> Tensor:
    """For each index of a dimension, the first one at which `wide` holds the same values."""
    rows = [*wide.unbind(dim)]
    return torch.tensor([next(j for j, row in enumerate(rows) if torch.equal(row, part))
                         for part in tensor.unbind(dim)])  # fmt: skip


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of each module -> the first one."""
    first: dict[int, str] = {}
    named = model.named_modules(remove_duplicate=False)
    return {name: first.setdefault(id(module), name) for name, module in named}


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


def _without(tensor: Tensor, dim: int, gone: set[int]) -> Tensor:
    if not gone:
        return tensor
    left = [i for i in range(tensor.shape[dim]) if i not in gone]
    return tensor.index_select(dim, torch.tensor(left, dtype=torch.long))


def _sliced_convolution(layer: _ConvNd, weight: Tensor, out: set[int], inner: set[int]) -> Tensor:
    """Of a weight [out, in / groups, ...], or [in, out / groups, ...] where it is transposed."""
    if _is_depthwise(layer):  # inputs are outputs
        return _without(weight, 0, out | inner)
    first, second = (inner, out) if layer.transposed else (out, inner)
    rows, columns = weight.shape[:2]
    per = rows // layer.groups
    parts = []
    for row in range(rows):
        start = row // per * columns
        left = [c for c in range(columns) if start + c not in second]
        if row not in first and left:
            parts.append(weight[row, left])
    return torch.stack(parts)


def redraw_(model: nn.Module, draw_number: int = 0) -> None:
    """New values for all parameters and BatchNorm statistics, of a scale that keeps maps alive, and
    of a larger one in later draws.
    """
    generator = torch.Generator().manual_seed(11 + draw_number)
    gain = 1.6 * 1.3**draw_number
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            draw = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            leaf = name.rpartition(".")[2]
            if leaf == "running_var":
                tensor.copy_(0.2 + 0.3 * draw.abs())
            elif leaf in ("running_mean", "bias"):
                tensor.copy_(0.2 * draw)
            elif isinstance(tensor, nn.Parameter):
                fan = tensor[0].numel() if tensor.ndim > 1 else 0
                tensor.copy_(gain * draw / fan**0.5 if fan else 1 + 0.3 * draw)


def ignore_(model: nn.Module, removed: Removed) -> None:
    """Zero the weights that read removed channels."""
    with torch.no_grad():
        for name, sides in removed.items():
            layer = model.get_submodule(name)
            if not isinstance(layer, (_ConvNd, nn.Linear)):
                continue
            for channel in sides.get("in", ()):
                _reading(layer, channel).zero_()


def _reading(layer: _ConvNd | nn.Linear, channel: int) -> Tensor:
    """The weights that are multiplied with one input channel."""
    if isinstance(layer, nn.Linear):
        return layer.weight[:, channel]
    if layer.transposed:
        return layer.weight[channel]
    rows, columns = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
    if _is_depthwise(layer):  # the layer after it reads the channel
        return layer.weight[:0]
    group = channel // columns
    return layer.weight[group * rows : (group + 1) * rows, channel % columns]


def shares(wide: nn.Module, removed: Removed, warnings: Sequence[str]) -> Iterator[str]:
    """Of each layer half is gone, within rounding, and never more than the floor allows."""
    for name, sides in removed.items():
        layer, gone = wide.get_submodule(name), len(sides.get("out", ()))
        if not gone or not isinstance(layer, (_ConvNd, nn.Linear)):
            continue
        total = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
        if total - gone < FLOOR * total - 1e-9:
            yield f"{name}: {total - gone} of {total} channels are left, below the floor"
        elif gone > SHARE * total + max(STEP, total / 6) and not warnings:
            yield f"{name}: {gone} of {total} channels are gone, half was asked for, no warning"
        elif gone < SHARE * total - max(2 * STEP, total / 4) and not warnings:
            yield f"{name}: only {gone} of {total} channels are gone, half was asked for"

"""Captures outputs of inner layers and pairs the layers of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import CHILD
from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest_of_many
from compressbench.core.parametrizations import plain_copy
from compressbench.core.protocols import FeatureLoss

Shape = tuple[int, ...]  # without the batch axis


def as_maps(output: Tensor, inputs: Tensor, pad: int = -1) -> Tensor:
    """The output of a layer, channels first, so that layers of text models are maps too.

    For ids [B, L], an output [B, L, D] becomes [B, D, L], zero where the id is `pad`; any other
    output is returned unchanged.
    """
    if inputs.is_floating_point() or output.ndim != 3 or output.shape[:2] != inputs.shape:
        return output
    kept = inputs != pad
    return (output * kept.unsqueeze(2)).transpose(1, 2)


def shapes(model: nn.Module, example: Tensor) -> dict[str, Shape]:
    """Module name -> shape of its output for one sample, in the order in which modules finish.

    Shapes are those of the outputs that `capture_outputs` passes on for `example` [B, ...];
    modules that do not return a tensor are omitted.
    """
    outputs: dict[str, Shape] = {}
    model = plain_copy(model)
    names = [n for n, _ in model.named_modules() if n and n.partition(".")[0] != CHILD]

    def note(name: str, output: Tensor) -> None:
        outputs.pop(name, None)  # a module that runs again finishes later
        outputs[name] = tuple(output.shape[1:])

    training = model.training
    with capture_outputs(model.eval(), {name: name for name in names}, note), torch.no_grad():
        model(example)
    model.train(training)
    return outputs


@contextmanager
def capture_outputs(
    model: nn.Module, layers: Mapping[str, str], note: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `note(label, output)` whenever one of `layers` (label -> name) returns a tensor.

    Outputs of text models are passed as maps (`as_maps`); the padding id is the model's attribute
    `pad`.
    """
    seen: list[Tensor] = []  # the input of the model
    pad = getattr(model, "pad", -1)

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    def hand(label: str, output: object) -> None:
        if isinstance(output, Tensor):
            note(label, as_maps(output, seen[0], pad))

    handles = [model.register_forward_pre_hook(begin)]
    handles += [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, label=label: hand(label, output)
        )
        for label, name in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def resolutions(outputs: Mapping[str, Shape]) -> dict[Shape, str]:
    """Resolution (H, W) or (L,) -> the last layer whose output has it, in forward order."""
    last: dict[Shape, str] = {}
    for name, shape in outputs.items():
        if len(shape) > 1 and any(size > 1 for size in shape[1:]):
            last[shape[1:]] = name
    return last


def pair(
    loss: FeatureLoss, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
) -> list[tuple[str, str]]:
    """The pairs (student layer, teacher layer) that `loss` compares.

    These are the layers that it names, or else its choice among the resolutions that both models
    have. Raises UserError for an unknown layer, or if the models share no resolution.
    """
    if loss.layers is not None:
        for name, whose, layers in [
            *((n, "student", student) for n in loss.layers),
            *((n, "teacher", teacher) for n in loss.layers.values()),
        ]:
            if name not in layers:
                advice = nearest_of_many(name, layers)
                raise UserError(f"layers: the {whose} has no layer {name!r}{advice}")
        return list(loss.layers.items())
    ours, theirs = resolutions(student), resolutions(teacher)
    common = [
        (layer, theirs[positions]) for positions, layer in ours.items() if positions in theirs
    ]
    if not common:
        raise UserError(
            f"student and teacher have no resolution in common ({_sizes(ours)} and "
            f"{_sizes(theirs)}): name layers={{student layer: teacher layer}}"
        )
    return [common[number] for number in loss.choose(len(common))]


def _sizes(by_resolution: Mapping[Shape, str]) -> str:
    return ", ".join("x".join(map(str, positions)) for positions in by_resolution) or "none"

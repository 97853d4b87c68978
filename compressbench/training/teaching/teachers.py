"""Outputs of frozen teachers: computed for each batch, or cached if images never change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compressbench.core.digests import named
from compressbench.core.distributed import rank, sum_over_ranks, world_size
from compressbench.core.formatting import bytes_text
from compressbench.core.types import ACTIVATION_QUANTIZED, WEIGHT_QUANTIZED, Context, Data
from compressbench.training.teaching.features import capture_outputs

ANSWERS = "answers"  # key of the teachers' mean logits; features have their own keys
LOOK_UP_BYTES = 256 * 2**20  # limit of the memory for cached teacher outputs
BLOCK = 256  # images per forward pass when filling the cache, for any batch size


class Teachers:
    """Frozen models in eval mode whose logits are averaged.

    `layers` maps labels to layers of the first model, whose outputs are returned as well. The
    models run in `dtype`, independently of the student's precision: float32, or a half precision
    under autocast. All outputs are float32.
    """

    def __init__(
        self, models: Sequence[nn.Module], layers: Mapping[str, str], dtype: torch.dtype
    ) -> None:
        self.models = [model.eval().requires_grad_(False) for model in models]
        self.layers, self.dtype = dict(layers), dtype

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """`ANSWERS` -> mean logits [B, ...], and each label of `layers` -> features [B, ...]."""
        seen: dict[str, Tensor] = {}
        half = self.dtype is not torch.float32
        with (
            torch.no_grad(),
            torch.autocast(inputs.device.type, self.dtype if half else None, enabled=half),
            capture_outputs(self.models[0], self.layers, seen.__setitem__),
        ):
            logits = [model(inputs).float() for model in self.models]
        return {ANSWERS: torch.stack(logits).mean(0)} | {n: x.float() for n, x in seen.items()}


def dtype_for(device: torch.device, properties: Iterable[str]) -> torch.dtype:
    """The precision in which a teacher with these `properties` runs on `device`.

    bfloat16 on a GPU, or float16 if the GPU lacks bfloat16. float32 on the CPU, which is slower in
    half precision, and for quantized teachers, whose grids half precision cannot represent.
    """
    if device.type != "cuda" or {WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED} & set(properties):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class LookUp:
    """Teacher outputs for every training image, by row, computed once before the fit.

    They are computed in blocks of `BLOCK` rows, which the processes share, so they do not depend
    on the batch size or the number of processes, to the bit.
    """

    def __init__(self, teachers: Teachers, context: Context) -> None:
        self.tables: dict[str, Tensor] = {}
        images = len(context.data.split("train"))
        starts = range(rank() * BLOCK, images, world_size() * BLOCK)
        empty = _example(teachers, context)
        self.tables = {n: x.new_zeros(images, *x.shape[1:]) for n, x in empty.items()}
        states = (tensor for model in teachers.models for tensor in named(model.state_dict()))
        journal = context.journal.within("teachers", repr(teachers.layers), *states)

        def outputs_of(start: int) -> dict[str, Tensor]:
            return teachers(context.data.prepare(_rows(context, start, start + BLOCK)))

        text = f"teacher outputs, computed once for all epochs{journal.before(len(starts))}"
        for number, start in enumerate(starts):
            context.progress(number, len(starts), text)
            for name, outputs in journal.once(str(start), partial(outputs_of, start)).items():
                self.tables[name][start : start + BLOCK] = outputs
        if world_size() > 1:
            self.tables = {name: sum_over_ranks(table) for name, table in self.tables.items()}

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: table[rows] for name, table in self.tables.items()}


def teacher_outputs(
    teachers: Teachers, looks: int, context: Context
) -> tuple[Callable[[Tensor, Tensor], dict[str, Tensor]], str]:
    """A function (inputs, rows) -> teacher outputs, and a note on how they are computed.

    Outputs are cached if that saves time and cannot change them: augmentation leaves images
    unchanged, the fit processes more images (`looks`) than the training split has, and the cache
    fits into `LOOK_UP_BYTES`. The choice depends only on config and data, so a resumed stage makes
    the same choice.
    """
    images = len(context.data.split("train"))
    size = sum(4 * x[0].numel() for x in _example(teachers, context).values()) * images
    reason = ""
    if looks <= images:
        reason = f"{looks:,} samples drawn from {images:,} images"
    elif size > LOOK_UP_BYTES:
        reason = f"a cache would take {bytes_text(size)}, more than {bytes_text(LOOK_UP_BYTES)}"
    elif not _stays(context):
        reason = "training images are augmented"
    name = str(teachers.dtype).removeprefix("torch.")
    if reason:
        return lambda inputs, rows: teachers(inputs), f"teacher: {name}, at every step ({reason})"
    table = LookUp(teachers, context)
    line = f"teacher: {name}, once for each of {images:,} images ({bytes_text(size)})"
    return lambda inputs, rows: table(rows), line


def _stays(context: Context) -> bool:
    """Whether augmentation draws no random numbers and returns its images unchanged."""
    return all(
        _untouched(context.data, _rows(context, start, start + BLOCK))
        for start in range(0, len(context.data.split("train")), BLOCK)
    )


def _untouched(data: Data, inputs: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    same = torch.equal(data.augment(inputs.clone(), generator), inputs)
    return same and torch.equal(generator.get_state(), before)


def _rows(context: Context, start: int, end: int) -> Tensor:
    return context.data.split("train").inputs[start:end].to(context.runtime.device)


def _example(teachers: Teachers, context: Context) -> dict[str, Tensor]:
    return teachers(context.data.prepare(_rows(context, 0, 2)))

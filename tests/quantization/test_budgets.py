"""A budget that no bits can keep is found before anything runs, and never one that some can."""

from __future__ import annotations

import re

import pytest
import torch

from compressbench.config.instantiate import instantiate
from compressbench.core.errors import LimitError
from compressbench.core.types import TRAINED, Artifact, Context, Runtime
from compressbench.data.digits import Digits
from compressbench.export.onnx import export_onnx
from compressbench.models.mlp import Mlp
from compressbench.models.small_cnn import SmallCnn
from compressbench.quantization.mixed_precision import Allocation
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest

SPEC = Digits().spec


def never(model, candidates, context):
    raise AssertionError("no sensitivity is needed to see this")


def files_of(model, folder, widths, **options) -> tuple[int, int]:
    """Bytes of the files at the largest and at the smallest width."""
    sizes: list[int] = []

    def weigh(artifact: Artifact) -> int:
        export_onnx(artifact, Digits(), folder / "model.onnx")
        sizes.append((folder / "model.onnx").stat().st_size)
        return sizes[-1]

    context = Context(Digits(), Runtime(), 0, folder, instantiate, export_bytes=weigh)
    start = Artifact(model, {"_target_": "x"}, (), frozenset({TRAINED}))
    with pytest.raises(LimitError):
        _stage(1, widths, **options).run({"model": start}, context)
    return sizes[0], sizes[1]


def _stage(budget, widths, **options) -> Quantize:
    allocation = Allocation(never, budget, widths)
    return Quantize(Nearest(MinMax()), allocation=allocation, **options)


MLP, CNN = Mlp([1, 8, 8], 10, [48, 32]), SmallCnn([1, 8, 8], 10)


@pytest.mark.parametrize(
    ("model", "widths", "options"),
    [
        (MLP, (3, 4), {"symmetric": False}),
        pytest.param(CNN, (2, 8), {}, marks=pytest.mark.long),
        pytest.param(CNN, (4, 8), {"granularity": "tensor"}, marks=pytest.mark.long),
    ],
)
def test_the_least_is_below_that_of_the_file_and_not_far(model, tmp_path, widths, options):
    torch.manual_seed(0)
    widest, least = files_of(model.eval(), tmp_path, widths, **options)
    with pytest.raises(LimitError, match="the weights have at least") as refused:
        _stage(1, widths, **options).check_limits(model, SPEC)
    bound = int(re.search(r"at least ([\d,]+) bytes", str(refused.value))[1].replace(",", ""))
    assert 0.2 * least < bound <= least
    assert refused.value.excess == bound - 1
    _stage(least, widths, **options).check_limits(model, SPEC)
    _stage(least / widest, widths, **options).check_limits(model, SPEC)
    with pytest.raises(LimitError, match=r"allocation\.budget=0\.05 is too low"):
        _stage(0.05, widths, **options).check_limits(model, SPEC)

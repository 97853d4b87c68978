"""Integer kernels of this CPU, measured: whether sums saturate, and whether int8 is faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressbench.cli.checks.finding import FINE, LOOK, Finding
from compressbench.engine.environment import machine
from compressbench.measure.integer_products import integer_speedup, products_saturate

_SECONDS = 0.6
_CHOOSING = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp", "sve")


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Run small integer models in ONNX Runtime."""
    has = machine()["instructions"]
    known = ", ".join(name for name in _CHOOSING if name in has) or "no integer extensions"
    if products_saturate():
        found = f"int8 weights times uint8 activations saturate here ({known})"
        advice = (
            "nothing for static quantization: weights that would saturate are stored as uint8; "
            "otherwise recipe.stages.quantize.reduce_range=true"
        )
        yield Finding("integer sums", LOOK, found, advice)
    else:
        yield Finding("integer sums", FINE, f"exact ({known})")
    speedup = integer_speedup(_SECONDS)
    found = f"a convolution of 64 channels takes {1 / speedup:.2f} of its time in float"
    if speedup > 1:
        yield Finding("integer speed", FINE, found)
        return
    advice = "expect smaller files, not faster ones; recipe.stages.quantize.float_where_slower=true"
    yield Finding("integer speed", LOOK, found, advice)

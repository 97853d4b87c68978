"""What integer products are worth on this CPU: whether they saturate, and how fast they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressbench.measure.latency import alternate
from compressbench.measure.session import open_session, options

_PRODUCT = """<ir_version: 10, opset_import: ["": 17]>
product (uint8[64, 64] input) => (int32[64, 64] output) {
  shape = Constant <value = int64[2] {64, 64}> ()
  weight = ConstantOfShape <value = int8[1] {127}> (shape)
  output = MatMulInteger (input, weight)
}"""
_EXACT = 64 * 255 * 127

_FLOAT = """<ir_version: 10, opset_import: ["": 17]>
real (float[1, 64, 28, 28] input) => (float[1, 64, 28, 28] output) {
  shape = Constant <value = int64[4] {64, 64, 3, 3}> ()
  weight = ConstantOfShape <value = float[1] {0.1}> (shape)
  output = Conv <pads = [1, 1, 1, 1]> (input, weight)
}"""
_INTEGER = """<ir_version: 10, opset_import: ["": 17]>
integer (float[1, 64, 28, 28] input) => (float[1, 64, 28, 28] output) {
  shape = Constant <value = int64[4] {64, 64, 3, 3}> ()
  weight = ConstantOfShape <value = int8[1] {10}> (shape)
  scale = Constant <value = float {0.01}> ()
  wide = Constant <value = float {1.0}> ()
  zero = Constant <value = uint8 {0}> ()
  none = Constant <value = int8 {0}> ()
  quantized = QuantizeLinear (input, scale, zero)
  sums = QLinearConv <pads = [1, 1, 1, 1]> (
    quantized, scale, zero, weight, scale, none, wide, zero)
  output = DequantizeLinear (sums, wide, zero)
}"""


def products_saturate() -> bool:
    """Whether ONNX Runtime's products of uint8 activations and int8 weights saturate here.

    64 products 255 * 127 are added exactly with VNNI and on ARM. Kernels for AVX2 add pairs of
    products in 16 bits, where 2 * 255 * 127 does not fit.
    """
    (sums,) = _session(_PRODUCT).run(None, {"input": np.full((64, 64), 255, np.uint8)})
    return bool((sums != _EXACT).any())


def integer_speedup(seconds: float) -> float:
    """How many times as fast as in float a convolution of 64 channels is in int8, timed in pairs.

    The integer graph also quantizes its input and dequantizes its output.
    """
    sample = {"input": np.random.default_rng(0).random((1, 64, 28, 28), np.float32)}
    integer, real = _session(_INTEGER), _session(_FLOAT)
    pairs = alternate(lambda: integer.run(None, sample), lambda: real.run(None, sample), seconds)
    times = np.array(pairs)
    return float(np.median(times[:, 1] / times[:, 0]))


def _session(text: str) -> Any:
    import onnx

    return open_session(onnx.parser.parse_model(text).SerializeToString(), options())

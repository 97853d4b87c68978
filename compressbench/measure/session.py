"""Opens exported files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.errors import CheckFailedError

if TYPE_CHECKING:
    import onnxruntime

ERRORS_ONLY = 3


def options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Session options with all optimizations on and `threads` threads within an operator."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = ERRORS_ONLY
    return chosen


def open_session(onnx_file: Path | bytes, chosen: Any) -> onnxruntime.InferenceSession:
    """Load a file or a serialized model on the CPU. Raises CheckFailedError if that fails."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(onnx_file, chosen, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime share no base class
        name = onnx_file if isinstance(onnx_file, Path) else "the model"
        raise CheckFailedError(f"{name}: ONNX Runtime cannot load it: {error}") from error

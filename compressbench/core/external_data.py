"""Checks that an ONNX file holds all of its tensors: no path in it names another file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressbench.core.errors import CheckFailedError


def check_self_contained(path: Path) -> None:
    """Raise CheckFailedError if a tensor of the file, wherever it stands, is in another file."""
    import onnx

    for tensor in _tensors(onnx.load(path, load_external_data=False)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            places = {entry.key: entry.value for entry in tensor.external_data}
            raise CheckFailedError(
                f"{path}: the tensor {tensor.name!r} is in another file "
                f"({places.get('location', 'unnamed')!r}), which we never write"
            )


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message, in subgraphs, attributes and functions as well."""
    if type(message).__name__ == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                yield from _tensors(part)

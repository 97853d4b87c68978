"""Describes the input of an exported file: pixels, arrays, or token ids."""

from __future__ import annotations

import json
from typing import Any

from compressbench.core.types import DataSpec

TOKENIZER = "tokenizer.json"  # ships with the models of text datasets
AS_GIVEN = "the numbers that the model was trained on, prepared as they were"


def describe_input(spec: DataSpec) -> dict[str, Any]:
    """Name, dtype, layout and shape of the file's input, and the constants of its preprocessing."""
    if spec.tokens is None:
        images = len(spec.input_shape) == 3
        return {
            "name": "input",
            "dtype": "float32",
            "layout": "batch, channels, height, width" if images else "batch, ...",
            "shape": ["batch", *spec.input_shape],
            **({"mean": list(spec.mean), "std": list(spec.std)} if spec.mean else {}),
        }
    return {
        "name": "input",
        "dtype": "int64",
        "layout": "batch, tokens",
        "shape": ["batch", *spec.input_shape],
        "vocabulary": spec.tokens.vocabulary,
        "pad": spec.tokens.pad,
        "tokenizer": TOKENIZER,
        "tokenizer_sha256": spec.tokens.tokenizer,
    }


def preprocessing(spec: DataSpec) -> str:
    """How to prepare an input for the file, in one line."""
    if spec.tokens is None:
        return "(pixels / 255 - mean) / std per channel" if spec.mean else AS_GIVEN
    return f"ids of {TOKENIZER}, cut or padded to {spec.input_shape[0]}"


def input_notes(spec: DataSpec) -> dict[str, str]:
    """The metadata entries of the file that describe its input."""
    about = describe_input(spec)
    notes = {
        "input": f"{about['dtype']} {about['shape']}".replace("'", ""),
        "preprocess": f"x = {preprocessing(spec)}",
    }
    keys = ("mean", "std", "pad", "tokenizer_sha256")
    return notes | {key: _text(about[key]) for key in keys if key in about}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

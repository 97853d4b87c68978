"""Writes the files that ship: the model, a compressed copy, a description, a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressbench.core.atomic import copy_atomic, write_bytes_atomic, write_text_atomic
from compressbench.core.digests import copy_checked, file_digest
from compressbench.core.download import compressed
from compressbench.core.kill_points import reached
from compressbench.core.types import DataSpec
from compressbench.export.inputs import preprocessing
from compressbench.tasks.choice import task_of
from compressbench.tasks.classification import CLASSIFICATION


def write_bundle(
    onnx_path: Path,
    spec: DataSpec,
    report: Mapping[str, Any],
    folder: Path,
    companions: Mapping[str, str] | None = None,
    sha256: str | None = None,
) -> tuple[Path, ...]:
    """Write model.onnx, model.onnx.zst, model.json and predict.py into `folder`; return the paths.

    `report` is the return value of `export_onnx`. `companions` maps names to the contents of
    further text files of the dataset, such as a tokenizer. `sha256` is the digest of the file that
    was measured. Raises CheckFailedError if model.onnx is another, or if decompressing
    model.onnx.zst does not reproduce it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, script = folder / "model.onnx", folder / "predict.py"
    if onnx_path.resolve() != model.resolve():
        copy_checked(onnx_path, model, sha256 or file_digest(onnx_path))
        reached("bundle.model_copied")
    packed = folder / "model.onnx.zst"
    write_bytes_atomic(packed, compressed(model.read_bytes(), model.name))
    reached("bundle.model_packed")
    about = folder / "model.json"
    text = json.dumps(_describe(spec, report), indent=1, ensure_ascii=False)
    write_text_atomic(about, text + "\n")
    copy_atomic(Path(__file__).with_name(_script(spec)), script)
    others = [folder / name for name in companions or {}]
    for path in others:
        write_text_atomic(path, (companions or {})[path.name])
    return model, packed, about, script, *others


def _script(spec: DataSpec) -> str:
    """The example script for the task, and for the kind of input: text, image or array."""
    if task_of(spec).name != CLASSIFICATION.name:
        return "predict_values.py"
    if spec.tokens is not None:
        return "predict_text.py"
    return "predict.py" if spec.mean else "predict_array.py"


def _describe(spec: DataSpec, report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "dataset": spec.name,
        "input": {**report["input"], "preprocess": preprocessing(spec)},
        "output": {"name": "logits", "dtype": "float32", **task_of(spec).describe(spec)},
        "task": task_of(spec).name,
        "classes": list(spec.class_names),
        "opset": report["opset"],
        "min_onnxruntime": report["min_onnxruntime"],
        "layers": report["layers"],
    }

"""Artifact -> one ONNX file that ONNX Runtime loads, integers stored as integers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compressbench.artifact import activation_grid, weight_bits
from compressbench.core import Artifact, CheckFailedError, Data, DataSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from compressbench.export.grids import WeightGrid
    from compressbench.export.lowering.bias import Biases

OPSET, OPSET_INT2 = 21, 25  # INT4 came with 21, INT2 with 25
IR_VERSION = {OPSET: 10, OPSET_INT2: 13}
MIN_ONNXRUNTIME = {OPSET: "1.18", OPSET_INT2: "1.32"}


def export_onnx(artifact: Artifact, data: Data, path: Path) -> dict[str, Any]:
    """Write `artifact` as one .onnx file; the report (plain JSON) says what became of each layer.

    Raise CheckFailedError when a quantized layer is not in the graph or the file does not load.
    The bytes depend on the artifact, the dataset's description and a few training images only.
    """
    import onnx

    from compressbench.export import translate
    from compressbench.export.grids import read_grids
    from compressbench.export.lowering import constants, weights
    from compressbench.export.lowering.strip import strip

    opset = OPSET_INT2 if 2 in weight_bits(artifact.edits).values() else OPSET
    example = data.prepare(data.split("train").inputs[:2].cpu())
    model = translate.to_graph(artifact.model, example, opset)
    model.ir_version = IR_VERSION[opset]
    grids, owners = read_grids(artifact, model.graph)
    grids, biases = _lower(model, grids)
    wide = _wide_weights(artifact, data, model.graph, owners)
    stored = weights.store_integers(model.graph, grids, wide)
    constants.drop_unused(model)
    report = {
        "opset": opset,
        "min_onnxruntime": MIN_ONNXRUNTIME[opset],
        "input": describe_input(data.spec),
        "layers": _layers(artifact, {n: stored[i] for n, i in owners.items()}),
        "activation_sites": len((activation_grid(artifact.edits) or {"sites": []})["sites"]),
        "bias": _describe_biases(biases, owners),
    }
    proto = strip(model)
    _explain_(proto, data.spec, report)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    _check_loads(path)
    return report


def _lower(
    model: ir.Model, grids: Mapping[str, WeightGrid]
) -> tuple[dict[str, WeightGrid], Biases]:
    """The passes, in the one order that works: what later ones look for, earlier ones clear."""
    from compressbench.export.lowering import (
        batchnorm,
        bias,
        clamps,
        constants,
        linear,
        pooling,
        reshape,
    )

    graph = model.graph
    linear.matmul_to_gemm(graph)
    constants.fold_constants(model, grids.keys())
    reshape.static_shapes(graph)
    pooling.mean_to_pool(graph)
    folded = batchnorm.fold_batchnorm(graph, grids)
    constants.drop_zero_biases(graph)
    clamps.drop_clamps(graph)
    return bias.quantize_biases(graph, folded)


def _wide_weights(
    artifact: Artifact, data: Data, graph: ir.Graph, owners: Mapping[str, str]
) -> set[str]:
    """Initializers of 8-bit weights that saturate as int8 on a few images, spread over train."""
    import torch

    from compressbench.export.lowering.integer import reading_grids
    from compressbench.export.saturation import IMAGES, wide_layers

    eight = [layer for layer, bits in weight_bits(artifact.edits).items() if bits == 8]
    grids = {layer: reading_grids(graph, owners[layer]) for layer in eight}
    grids = {layer: found for layer, found in grids.items() if found}
    if not grids:
        return set()
    inputs = data.split("train").inputs
    rows = torch.linspace(0, len(inputs) - 1, min(IMAGES, len(inputs))).long()
    images = data.prepare(inputs[rows].cpu())
    return {owners[layer] for layer in wide_layers(artifact.model, images, grids)}


def describe_input(spec: DataSpec) -> dict[str, Any]:
    """How to make the input of the file: x = (pixels / 255 - mean) / std, per channel."""
    return {
        "name": "input",
        "dtype": "float32",
        "layout": "batch, channels, height, width",
        "shape": ["batch", *spec.input_shape],
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _layers(artifact: Artifact, stored: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each layer with a weight matrix, in the order of the model."""
    bits = weight_bits(artifact.edits)
    rows: list[dict[str, Any]] = []
    for name, module in artifact.model.named_modules():
        weight = getattr(module, "weight", None)
        if name in bits:
            rows.append(_row(name, bits[name], stored[name]))
        elif isinstance(weight, Tensor) and weight.ndim > 1:
            rows.append(_row(name, 32, "float32"))
    return rows


def _row(layer: str, bits: int, storage: str) -> dict[str, Any]:
    reasons = {
        "float32": "not quantized",
        "uint8": "integers + 128: int8 could saturate on x86 CPUs without VNNI",
    }
    reason = reasons.get(storage, f"{bits} bits fit")
    return {"layer": layer, "bits": bits, "storage": storage, "reason": reason}


def _describe_biases(biases: Biases, owners: Mapping[str, str]) -> dict[str, Any]:
    """`widened`: channels per layer whose grid had to be coarser for the bias to fit int32."""
    widened = {
        layer: biases.widened[name] for layer, name in owners.items() if name in biases.widened
    }
    return {"int32": biases.int32, "float32": biases.float32, "widened": widened}


def _explain_(proto: Any, spec: DataSpec, report: Mapping[str, Any]) -> None:
    """Put into the file what a stranger needs to run it."""
    from compressbench import __version__

    pairs = {
        "input": "float32 " + str(report["input"]["shape"]).replace("'", ""),
        "preprocess": "x = (pixels / 255 - mean) / std per channel",
        "mean": json.dumps(list(spec.mean)),
        "std": json.dumps(list(spec.std)),
        "classes": json.dumps(list(spec.class_names), ensure_ascii=False),
        "min_opset": str(report["opset"]),
        "min_onnxruntime": report["min_onnxruntime"],
        "compressbench": __version__,
    }
    for key, value in pairs.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    proto.producer_name, proto.producer_version = "compressbench", ""


def _check_loads(path: Path) -> None:
    import onnxruntime

    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise CheckFailedError(f"{path.name}: ONNX Runtime does not load it: {error}") from error

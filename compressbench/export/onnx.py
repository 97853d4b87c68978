"""Exports an artifact to one ONNX file with quantized weights stored as integers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compressbench.core.edits import activation_grid, codebook_bits, weight_bits, weight_grids
from compressbench.core.grid import Grid
from compressbench.core.types import Artifact, Data, DataSpec
from compressbench.export.inputs import describe_input, input_notes
from compressbench.export.opsets import (
    IR_VERSION,
    MIN_ONNXRUNTIME,
    NATIVE,
    NEWEST,
    check_opset,
    declared_opset,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from compressbench.export.grids import WeightGrid
    from compressbench.export.lowering.bias import Biases
    from compressbench.export.lowering.storage import Storage
    from compressbench.export.optimized import Meant

    Trace = Callable[[nn.Module, Tensor, int], ir.Model]


def export_onnx(
    artifact: Artifact, data: Data, path: Path, opset: int = NEWEST, trace: Trace | None = None
) -> dict[str, Any]:
    """Write `artifact` as one .onnx file and return a report (plain JSON) on each layer.

    The bytes of the file depend only on the artifact, the dataset's description and a few training
    images.

    Args:
        artifact: Trained model and the edits made to it.
        data: Its training images decide where int8 weights would saturate; its description goes
            into the metadata.
        path: File to write.
        opset: In [17, 25], the newest opset that the target runtime supports. The file declares the
            lowest of 20, 21 and 25 that its weights need, or `opset` itself if that is below 20.
        trace: Returns the graph of a model for an example input and an opset; `to_graph` by
            default.

    Raises:
        CheckFailedError: A quantized layer is not in the graph, ONNX Runtime cannot load the file,
            or it runs a layer on other kernels or weights than the report says.
        UserError: The model needs an operator that `opset` does not have.
    """
    import onnx

    from compressbench.export.grids import read_grids, unused_layers
    from compressbench.export.lowered import finish, lower
    from compressbench.export.lowering import bias, storage, weights
    from compressbench.export.optimized import check_kernels, optimized_graph
    from compressbench.export.serialize import to_bytes
    from compressbench.export.translate import to_graph

    check_opset(opset)
    declared = declared_opset(weight_bits(artifact.edits).values(), opset)
    example = data.prepare(data.split("train").inputs[:2].cpu())
    model = (trace or to_graph)(artifact.model, example, max(declared, NATIVE))
    model.ir_version = IR_VERSION[declared]
    unused = unused_layers(artifact.model, model.graph, example)
    grids, owners = read_grids(artifact, model.graph, unused)
    grids = lower(model, grids)
    wide = _wide_weights(artifact, data, model.graph, owners)
    stored = storage.plan_storage(model.graph, grids, wide, opset)
    grids, biases = bias.quantize_biases(model.graph, grids, stored)
    storage.keep_float(model.graph, stored)
    meant = _meant(model.graph, owners, grids, stored)
    weights.store_integers(model.graph, grids, stored)
    newest = any(row.newest for row in stored.values())
    report = {
        "opset": declared,
        "min_onnxruntime": MIN_ONNXRUNTIME[NEWEST if newest else declared],
        "input": describe_input(data.spec),
        "layers": layer_rows(
            artifact, {n: stored[i] for n, i in owners.items()}, owners, wide, unused
        ),
        "activation_sites": len((activation_grid(artifact.edits) or {"sites": []})["sites"]),
        "bias": _describe_biases(biases, owners),
    }
    proto = finish(model, declared)
    _add_metadata(proto, data.spec, report)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(to_bytes(proto))
    check_kernels(optimized_graph(path), meant)
    return report


def _meant(
    graph: ir.Graph,
    owners: Mapping[str, str],
    grids: Mapping[str, WeightGrid],
    stored: Mapping[str, Storage],
) -> list[Meant]:
    """The layers that are to run on integer kernels; layers that share a weight are one."""
    from compressbench.export.lowering.integer import readers
    from compressbench.export.optimized import Meant

    layers = {name: layer for layer, name in owners.items()}
    return [
        Meant(layer, grids[name].steps, grids[name].scale, len(readers(graph, name)))
        for name, layer in layers.items()
        if stored[name].shown == "integer"
    ]


def _wide_weights(
    artifact: Artifact, data: Data, graph: ir.Graph, owners: Mapping[str, str]
) -> set[str]:
    """Initializers of weights that would saturate as int8 on a few training images."""
    import torch

    from compressbench.export.lowering.integer import reading_grids
    from compressbench.export.saturation import IMAGES, may_saturate, wide_layers

    on_grids = weight_grids(artifact.edits)
    large = [n for n in on_grids if n in owners and may_saturate(artifact.model.get_submodule(n))]
    grids = {layer: reading_grids(graph, owners[layer]) for layer in large}
    grids = {layer: found for layer, found in grids.items() if found}
    if not grids:
        return set()
    inputs = data.split("train").inputs
    rows = torch.linspace(0, len(inputs) - 1, min(IMAGES, len(inputs))).long()
    images = data.prepare(inputs[rows].cpu())
    return {owners[layer] for layer in wide_layers(artifact.model, images, grids)}


def layer_rows(
    artifact: Artifact,
    stored: Mapping[str, Storage],
    owners: Mapping[str, str],
    wide: Collection[str],
    unused: Collection[str],
) -> list[dict[str, Any]]:
    """One row per layer with a weight matrix, in the order of the model.

    A row has the layer's `bits`, `storage`, `granularity`, `kernel` ("integer", "float", or
    "lookup" for an embedding whose rows are converted to float when looked up), and the `reason`
    for its storage and kernel. `stored` and `owners` are keyed by layer; `wide` are initializers.
    Layers in `unused` are not in the file: storage and kernel None, 0 bits.
    """
    grids, books = weight_grids(artifact.edits), codebook_bits(artifact.edits)
    rows: list[dict[str, Any]] = []
    for name, module in artifact.model.named_modules():
        weight = getattr(module, "weight", None)
        if name in unused and isinstance(weight, Tensor) and weight.ndim > 1:
            rows.append(
                {"layer": name, "bits": 0, "storage": None, "granularity": None, "kernel": None,
                 "reason": "not in the file: the output does not depend on it"}
            )  # fmt: skip
        elif name in unused:
            continue
        elif name in grids:
            rows.append(_row(name, grids[name], stored[name], owners[name] in wide))
        elif name in books:
            rows.append(
                {"layer": name, "bits": books[name], "storage": stored[name].kind,
                 "granularity": f"codebook of {1 << books[name]}", "kernel": stored[name].shown,
                 "reason": stored[name].reason}
            )  # fmt: skip
        elif isinstance(weight, Tensor) and weight.ndim > 1:
            rows.append(
                {"layer": name, "bits": 32, "storage": "float32", "granularity": None,
                 "kernel": "float", "reason": "not quantized"}
            )  # fmt: skip
    return rows


def _row(layer: str, grid: Grid, stored: Storage, wide: bool) -> dict[str, Any]:
    fits = f"{grid.bits} bits fit" + ("" if stored.zero_point is None else ", with a zero point")
    saturates = "int8 could saturate on x86 CPUs without VNNI"
    size = "" if grid.group_size is None else f" of {grid.group_size}"
    return {
        "layer": layer,
        "bits": grid.bits,
        "storage": stored.kind,
        "granularity": f"{grid.granularity}{size}",
        "kernel": stored.shown,
        "reason": "; ".join(filter(None, (saturates if wide else fits, stored.reason))),
    }


def _describe_biases(biases: Biases, owners: Mapping[str, str]) -> dict[str, Any]:
    """`widened`: channels per layer that got a coarser grid so that the bias fits into int32."""
    widened = {
        layer: biases.widened[name] for layer, name in owners.items() if name in biases.widened
    }
    return {"int32": biases.int32, "float32": biases.float32, "widened": widened}


def _add_metadata(proto: Any, spec: DataSpec, report: Mapping[str, Any]) -> None:
    """Add the metadata needed to run the file without this package."""
    from compressbench import __version__

    pairs = {
        **input_notes(spec),
        "classes": json.dumps(list(spec.class_names), ensure_ascii=False),
        "min_opset": str(report["opset"]),
        "min_onnxruntime": report["min_onnxruntime"],
        "compressbench": __version__,
    }
    for key, value in pairs.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    proto.producer_name, proto.producer_version = "compressbench", ""

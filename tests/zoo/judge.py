"""Judges a finished run from outside: files, masks, removed channels, figures, coverage."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from compressbench.core.types import Data, Step
from tests.zoo.compaction import compaction_problems

INTEGER = {
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
}  # fmt: skip
MATRIX = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
SAMPLES = 32
SPARSITY = 0.7  # that conf/stage/prune.yaml asks for


def problems(steps: Sequence[Step], data: Data) -> list[str]:
    """Objections to the stages of a run, one line each; none if all is right."""
    found: list[str] = []
    inputs = some_inputs(data)
    before: Step | None = None
    for step in steps:
        own = [
            *_file_against_model(step, _before_rounding(steps, step), inputs),
            *_masks(step, inputs),
            *_figures(step),
            *_layers_of_the_file(step),
            *_coverage(before, step),
            *_compaction(before, step, inputs),
            *_share_of_zeros(step),
        ]
        found += [f"{step.name}: {problem}" for problem in own]
        before = step
    return found


def some_inputs(data: Data) -> Tensor:
    """Images of the validation split, brighter and darker, and noise."""
    images = data.prepare(data.split("validation").inputs[:SAMPLES])
    generator = torch.Generator().manual_seed(7)
    scale = 0.5 + 1.5 * torch.rand((SAMPLES, *[1] * (images.ndim - 1)), generator=generator)
    return images * scale + 0.2 * torch.randn(images.shape, generator=generator)


def _before_rounding(steps: Sequence[Step], step: Step) -> Step | None:
    """The stage before activations were quantized; None if they are not."""
    if not any(edit["kind"] == "activation_grid" for edit in step.artifact.edits):
        return None
    return next(
        s for s in reversed(steps[: step.index])
        if not any(edit["kind"] == "activation_grid" for edit in s.artifact.edits)
    )  # fmt: skip


def outputs_of(file: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs)


def _file_against_model(step: Step, before: Step | None, inputs: Tensor) -> Iterator[str]:
    """The file and the model agree: to float precision, or to what rounding did to the model."""
    path = step.files / "model.onnx"
    file, model = outputs_of(path, inputs), outputs(step.artifact.model, inputs)
    if not bool(torch.isfinite(file).all()):
        yield "the file's outputs are not finite"
        return
    spread = float((model.amax(1) - model.amin(1)).mean())
    apart = (file - model).square().mean(1).sqrt()
    bound = 1e-3 * spread
    if before is not None:
        rounding = (model - outputs(before.artifact.model, inputs)).square().mean(1).sqrt()
        bound = max(0.02 * spread, float(rounding.median()))
    if float(apart.median()) > bound:
        yield f"file and model differ by {float(apart.median()):.3g} of {spread:.3g}"
    single = [inputs[i : i + 1] for i in range(4)]
    each = torch.cat([outputs_of(path, one) - outputs(step.artifact.model, one) for one in single])
    if float(each.square().mean().sqrt()) > 2 * bound:
        yield "file and model differ on single images"


def _compaction(before: Step | None, step: Step, inputs: Tensor) -> Iterator[str]:
    if before is not None:
        yield from compaction_problems(before.artifact, step.artifact, step.warnings, inputs)


def _masks(step: Step, inputs: Tensor) -> Iterator[str]:
    """Pruned weights are zero in the model, and in the file where a layer is in it."""
    model = step.artifact.model
    masked = _masked(step)
    for name, layer in masked.items():
        if bool(layer.weight[~layer.weight_mask].any()):
            yield f"{name}: a pruned weight is not zero"
    absent = {row["layer"] for row in _rows(step) if row["kernel"] is None} | _said(step, masked)
    kept = {name: layer for name, layer in masked.items() if name not in absent}
    used = {id(layer.weight): layer for layer in _called(model, kept, inputs[:1])}
    if used:
        graph = onnx.load(step.files / "model.onnx").graph
        zeros = sum(_zeros(t) for t in graph.initializer if len(t.dims) > 1)
        expected = sum(int((~layer.weight_mask).sum()) for layer in used.values())
        if zeros < 0.98 * expected:  # zero points may hide a few
            yield f"the file has {zeros} zeros, the masks of its layers have {expected}"


def _said(step: Step, masked: Mapping[str, nn.Module]) -> set[str]:
    """The layers whose pruned weights a warning says to be other than zero in the file."""
    lines = [w for w in step.warnings if "pruned weights are not zero in the file" in w]
    words = {word.strip(",;:") for line in lines for word in line.split()}
    return words & masked.keys()


def _masked(step: Step) -> dict[str, nn.Module]:
    names = [n for e in step.artifact.edits if e["kind"] == "mask" for n in e["layers"]]
    return {name: step.artifact.model.get_submodule(name) for name in names}


def _called(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> list[nn.Module]:
    """The layers that a forward pass calls."""
    seen: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: seen.append(layer))
        for layer in layers.values()
    ]
    outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


def _rows(step: Step) -> list[dict[str, Any]]:
    """What the export reports of each layer."""
    rows: list[dict[str, Any]] = json.loads((step.files / "export.json").read_text())["layers"]
    return rows


def _zeros(tensor: onnx.TensorProto) -> int:
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.kind == "u":  # zero is the zero point, the commonest value of a pruned layer
        return int(max(np.bincount(values.astype(np.int64).ravel()), default=0))
    return int((values.astype(np.float32) == 0).sum())


def _share_of_zeros(step: Step) -> Iterator[str]:
    masks = [layer.weight_mask for layer in _masked(step).values()]
    if step.name != "prune" or not masks:
        return
    ranked = sum(row.total for row in step.coverage if row.detail.startswith("sparsity"))
    share = sum(int((~m).sum()) for m in masks) / ranked
    if abs(share - SPARSITY) > 0.01 and not step.warnings:
        yield f"{share:.3f} of the weights are zero, {SPARSITY} was asked for, no warning"


def _figures(step: Step) -> Iterator[str]:
    figures, model = step.measurement.figures, step.artifact.model
    unique = {id(p): p for p in model.parameters()}.values()
    counts = {
        "size/params": sum(p.numel() for p in unique),
        "size/nonzero": sum(int((p != 0).sum()) for p in unique),
        "size/onnx_bytes": len((step.files / "model.onnx").read_bytes()),
        "compute/integer_kernels": sum(n.op_type in INTEGER for n in _optimized(step).node),
    }
    for name, count in counts.items():
        if figures[name] != count:
            yield f"{name} is {figures[name]:.0f}, counted {count}"


def _optimized(step: Step) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            step.files / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(options.optimized_model_filepath).graph


def _layers_of_the_file(step: Step) -> Iterator[str]:
    """The report's kernels against the graph that runs: as many with constant integer weights."""
    rows = _rows(step)
    graph = _optimized(step)
    constants = {t.name: t for t in graph.initializer}
    weighted = {name for name, tensor in constants.items() if len(tensor.dims) > 1}
    ran = [n for n in graph.node if n.op_type in INTEGER and weighted & {*n.input}]
    said = [row for row in rows if row["kernel"] == "integer"]
    if len(ran) < len(said):
        yield f"{len(said)} layers are reported as integer, {len(ran)} run so"
    layers = {name for node in ran for name in weighted & {*node.input}}  # called once or often
    if len(layers) > len(said) and len({r["layer"] for r in said}) == len(said):
        names = sorted(r["layer"] for r in rows if r["kernel"] != "integer")
        yield f"{len(layers)} layers run as integer, {len(said)} are reported so (not: {names})"
    for node in ran:
        scale = constants.get(node.input[4] if node.op_type in {"QLinearConv", "QGemm"} else "")
        channels = {row["granularity"] for row in said} == {"channel"}
        if scale is not None and channels and int(np.prod(scale.dims)) == 1:
            weight = constants[node.input[3]]
            if weight.dims[0] > 1:
                yield f"{node.op_type} runs with one scale for a weight {list(weight.dims)}"


def _coverage(before: Step | None, step: Step) -> Iterator[str]:
    """What is said to be touched has changed, what is said to be left has not."""
    if before is None or not _same_shapes(before.artifact.model, step.artifact.model):
        return
    old = dict(before.artifact.model.named_parameters())
    new = dict(step.artifact.model.named_parameters())
    for row in step.coverage:
        names = [f"{row.layer}.weight"]
        changed = any(n in new and not torch.equal(old[n], new[n]) for n in names if n in old)
        if row.touched and row.detail.startswith("trained") and not changed and names[0] in new:
            yield f"{row.layer} is said to be trained, its weight has not changed"
        if row.touched == 0 and changed:
            yield f"{row.layer} is said to be untouched, its weight has changed"


def _same_shapes(first: nn.Module, second: nn.Module) -> bool:
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (first, second)]
    return shapes[0] == shapes[1]

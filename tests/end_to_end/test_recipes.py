"""Every recipe on the digits: the report agrees with the file that it describes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import zstandard
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file

from compressbench.config.groups import config_folder, options
from compressbench.data.digits import Digits

ALIKE = (
    "codebook", "distill_assistant", "distill_early", "distill_mixed", "distill_then_quant",
    "lottery_ticket", "prune_2_4", "prune_blocks", "prune_channels_2x", "prune_gradual",
    "prune_iterative", "prune_mixed", "prune_then_qat", "quantize_mixed", "sensitivity",
)  # fmt: skip
RECIPES = [  # those whose stages other recipes and tests run, too, are for `-m long`
    pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name
    for name in sorted(options("recipe", [config_folder()]))
]
OWN_TRAINING = ("baseline", "lottery_ticket")  # the latter keeps an epoch


def accuracy(run, split):
    """Of the file in the run folder, with nothing of ours but its description and the images."""
    about = json.loads((run.folder / "model.json").read_text())
    data = Digits().split(split)
    pixels = data.inputs.numpy().astype(np.float32) / 255
    inputs = (pixels - np.float32(about["input"]["mean"])) / np.float32(about["input"]["std"])
    session = onnxruntime.InferenceSession(run.folder / "model.onnx")
    (logits,) = session.run(None, {"input": inputs})
    return (logits.argmax(1) == data.targets.numpy()).mean()


def integers(run):
    """The integer weights of the exported file, zero points taken off."""
    graph = onnx.load(run.folder / "model.onnx").graph
    arrays = {t.name: numpy_helper.to_array(t).astype(np.int64) for t in graph.initializer}
    read = [n.input for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]
    weights = [(arrays[i[0]], arrays[i[2]] if len(i) > 2 else np.zeros(1)) for i in read]
    return [w - z.reshape(-1, *[1] * (w.ndim - 1)) for w, z in weights if w.ndim > 1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_report_agrees_with_the_file(digits_run, recipe):
    run = digits_run(recipe)
    first, last = run.report["stages"][0], run.report["stages"][-1]
    assert run.report["status"] == "finished"
    assert first["hit"] == (recipe not in OWN_TRAINING), "recipes share their training"
    assert last["figures"]["val/accuracy"] == accuracy(run, "validation")
    assert last["figures"]["test/accuracy"] == accuracy(run, "test")
    assert last["figures"]["val/accuracy"] > 0.5, "more than guessing"
    assert last["figures"]["size/onnx_bytes"] == len(run.onnx)
    packed = (run.folder / "model.onnx.zst").read_bytes()
    assert last["figures"]["size/download_bytes"] == len(packed)
    assert zstandard.decompress(packed) == run.onnx
    assert run.report["files"]["model.onnx"]["bytes"] == len(run.onnx)


@pytest.mark.parametrize("recipe", RECIPES)
def test_test_data_are_read_at_both_ends_alone(digits_run, recipe):
    stages = digits_run(recipe).report["stages"]
    read = ["test/accuracy" in stage["figures"] for stage in stages]
    assert read == [i in (0, len(stages) - 1) for i in range(len(stages))]


def test_pruned_weights_are_zeros_of_the_integer_file(digits_run):
    run = digits_run("prune_then_quant")
    tensors = load_file(run.folder / "artifact" / "model.safetensors")
    masks = {n.removesuffix(".weight_mask"): m for n, m in tensors.items() if "weight_mask" in n}
    found = integers(run)
    zeros = total = 0
    for name, mask in masks.items():
        steps = tensors[f"{name}.weight"] / tensors[f"{name}.weight_scale"]
        wanted = np.abs(np.rint(steps)).astype(np.int64)
        same = [a for a in found if a.shape == wanted.shape and (np.abs(a) == wanted).all()]
        assert len(same) == 1, f"{name}: its integers are not in the file"
        assert not same[0][~mask].any()
        zeros += np.count_nonzero(~mask)
        total += mask.size
    assert zeros == round(0.7 * total)


def test_pruning_integers_reaches_its_sparsity(digits_run):
    weights = np.concatenate([a.ravel() for a in integers(digits_run("quant_then_prune"))])
    assert np.count_nonzero(weights == 0) == round(0.5 * weights.size)


def test_recipes_make_the_file_smaller(digits_run):
    figures = {
        name: digits_run(name).report["stages"][-1]["figures"]
        for name in ("baseline", "quantize", "prune", "prune_channels", "prune_then_quant")
    }
    onnx_bytes = {name: f["size/onnx_bytes"] for name, f in figures.items()}
    download = {name: f["size/download_bytes"] for name, f in figures.items()}
    macs = {name: f["compute/macs"] for name, f in figures.items()}
    assert onnx_bytes["quantize"] < 0.3 * onnx_bytes["baseline"]
    assert download["prune"] < 0.5 * download["baseline"]
    assert download["prune_then_quant"] < 0.75 * download["quantize"]
    assert onnx_bytes["prune_channels"] < 0.8 * onnx_bytes["baseline"]
    assert macs["prune_channels"] < 0.8 * macs["baseline"]


def test_the_script_beside_the_model_names_the_class_of_a_picture(digits_run, tmp_path):
    run = digits_run("quantize")
    test = Digits().split("test")
    row = int((test.targets == 4).nonzero()[0])
    Image.fromarray(test.inputs[row, 0].numpy()).save(tmp_path / "four.png")
    done = subprocess.run(
        [sys.executable, "-I", str(run.folder / "predict.py"), "four.png"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert rows[0][1] == "4"
    assert 1.01 >= sum(float(probability) for probability, _ in rows) > 0

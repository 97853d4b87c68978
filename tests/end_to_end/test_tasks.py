"""Runs of other tasks than classification, and what they report of the exported file."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import compressbench
from compressbench.data.digit_scenes import digit_masks
from compressbench.data.pictures import pictures
from compressbench.data.vibrations import vibrations
from compressbench.models.small_cnn import SmallCnn
from tests.end_to_end.running import QUIET, run_here

SMALL = tuple(part for part in QUIET if not part.startswith("model="))


def run(tmp_path, *arguments):
    done = run_here((*arguments, *SMALL, "hydra.run.dir=run"), tmp_path, tmp_path / "store")
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    return json.loads((folder / "report.json").read_text()), folder


def answers(folder, inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def test_a_segmentation_reports_what_the_file_answers(tmp_path):
    options = ("dataset=digit_masks", "dataset.scenes=64", "model=small_unet", "model.width=4")
    report, folder = run(tmp_path, "recipe=quantize", *options)
    data = digit_masks(scenes=64)
    split = data.split("test")
    found = answers(folder, data.prepare(split.inputs)).argmax(1)
    overlaps = []
    for number in range(11):
        ours, right = found == number, split.targets == number
        if bool((ours | right).any()):
            overlaps.append(float((ours & right).sum() / (ours | right).sum()))
    assert report["stages"][-1]["figures"]["test/mean_iou"] == pytest.approx(np.mean(overlaps))
    about = json.loads((folder / "model.json").read_text())
    assert about["task"] == "segmentation"
    assert about["output"]["shape"] == ["batch", 11, 16, 16]


def test_an_auto_encoder_is_pruned_and_quantized(tmp_path):
    options = ("dataset=vibrations", "dataset.windows=200", "model=autoencoder")
    report, folder = run(tmp_path, "recipe=prune_then_quant", *options)
    split = vibrations(windows=200).split("test")
    errors = (answers(folder, split.inputs) - split.inputs).square().mean(1)
    odd = split.targets[:, 0] > 0.5
    pairs = (errors[odd][:, None] > errors[~odd][None]).float().mean()
    assert report["stages"][-1]["figures"]["test/auc"] == pytest.approx(float(pairs), abs=1e-6)


def test_a_module_and_numbers_in_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 5)).astype("f4")
    targets = 30 + 7 * inputs[:, 0] - 3 * inputs[:, 1]
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    result = compressbench.compress(
        net, (inputs, targets), recipe="quantize", task="regression", tracking="none", quiet=True,
        overrides={"trainer.threads": 1, "recipe.stages.train.epochs": 12,
                   "recipe.stages.train.batch_size": 16},
    )  # fmt: skip
    assert result.figures["val/rmse"] < 4  # of 7.6
    about = json.loads((result.folder / "model.json").read_text())
    assert about["output"]["offset"][0] == pytest.approx(30, abs=2)
    with pytest.raises(compressbench.UserError, match="no such task; did you mean regression"):
        compressbench.compress(net, (inputs, targets), task="regresion")
    with pytest.raises(compressbench.UserError, match="name the task, such as task='regression'"):
        compressbench.compress(net, (inputs, targets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dataset=diabetes", "model=mlp", "dataset.metric=accuracy"),
         "dataset.metric must be one of rmse, mae, r2 for regression"),
        (("dataset=diabetes", "model=mlp", "recipe=distill"),
         "loss hinton compares probabilities of classes or binary"),
        (("dataset=diabetes", "model=mlp", "recipe.stages.train.label_smoothing=0.1"),
         "only labels of classes can be smoothed"),
        (("dataset=digit_masks", "model=small_cnn"), "but dataset digit_masks has 11 classes"),
        (("dataset=digit_sets", "model=small_unet"), "has the task multilabel"),
        (("dataset=descriptions", "model=small_cnn"), "takes images, but dataset descriptions"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_task_is_one_line_before_training(tmp_path, arguments, message):
    done = run_here((*arguments, *SMALL), tmp_path, tmp_path / "store")
    assert done.code == 1
    assert message in done.err.replace("\n", " ")
    assert done.err.strip().count("\n") == 0
    assert "train done" not in done.out


@pytest.mark.long
def test_a_sweep_minimizes_an_error(tmp_path):
    done = run_here(
        ("-m", "recipe=quantize", "dataset=diabetes", "model=mlp",
         "recipe.stages.quantize.bits=choice(2,8)", "search.n_trials=2", "search.name=d",
         "trainer=debug", "trainer.threads=1", "tracking=none"), tmp_path, tmp_path / "store",
    )  # fmt: skip
    assert done.code == 0, done.err
    sweep = json.loads((tmp_path / "sweeps" / "d" / "sweep.json").read_text())
    assert {"name": "val/rmse", "direction": "minimize"} in sweep["objectives"]
    asked = run_here(("front", "d", "--at-most", "1000"), tmp_path, tmp_path / "store")
    assert "file to ship" in asked.out
    wrong = run_here(("front", "d", "--at-least", "0.9"), tmp_path, tmp_path / "store")
    assert "rmse is better when lower; use --at-most" in wrong.err


@pytest.fixture
def unlabelled(tmp_path):
    """Twenty pictures, and a checkpoint of a small network for them."""
    noise = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    torch.manual_seed(0)
    save_file(SmallCnn((3, 8, 8), 10, width=4).state_dict(), tmp_path / "net.safetensors")
    return ("dataset=pictures", f"dataset.root={tmp_path / 'pictures'}", "dataset.size=8",
            "dataset.resize=8", "model=small_cnn", "model.width=4", "++model.num_classes=10",
            f"model.checkpoint={tmp_path / 'net.safetensors'}")  # fmt: skip


def test_pictures_without_labels_are_judged_by_the_float_file(tmp_path, unlabelled):
    report, folder = run(tmp_path, "recipe=quantize", *unlabelled)
    first, last = (stage["figures"] for stage in report["stages"])
    assert first["val/fidelity"] == first["test/fidelity"] == 1.0
    (export,) = {path for path in tmp_path.glob("store/entries/*/*/model.onnx")
                 if path.stat().st_size == first["size/onnx_bytes"]}  # fmt: skip
    data = pictures(str(tmp_path / "pictures"), size=8, resize=8)
    inputs = data.prepare(data.split("test").inputs)
    same = answers(folder, inputs).argmax(1) == answers(export.parent, inputs).argmax(1)
    assert last["test/fidelity"] == pytest.approx(float(same.float().mean()))
    done = run_here(("explain", "run"), tmp_path, tmp_path / "store")
    assert (done.code, "its data have no labels" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (("recipe=prune",), "recipe.stages.finetune trains, but the data have no labels"),
        (("recipe=sensitivity",), "the data have no labels"),
    ],
)
def test_what_needs_labels_is_refused_without_them(tmp_path, unlabelled, recipe, message):
    done = run_here((*recipe, *unlabelled, *SMALL), tmp_path, tmp_path / "store")
    assert done.code == 1
    assert message in done.err

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.core.errors import UserError
from compressbench.models.resnet import ResNet


def count(model, shape):
    """(weights of convolutions and linear layers, multiply-accumulates of one sample)."""
    macs = []

    def multiply_accumulates(layer, arguments, output):
        per_output = math.prod(layer.weight.shape[1:])
        macs.append(per_output * output[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        layer.register_forward_hook(multiply_accumulates)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return sum(layer.weight.numel() for layer in layers), sum(macs)


def closed_form(depth, width, size, channels, classes):
    """The same from the paper's table: 3x3 layers, two 1x1 shortcuts, the classifier."""
    blocks = (depth - 2) // 6
    weights = 9 * channels * width
    macs = weights * size**2
    inner = width
    for stage in range(3):
        outer, pixels = width * 2**stage, (size // 2**stage) ** 2
        stage_weights = 9 * inner * outer + (2 * blocks - 1) * 9 * outer**2
        stage_weights += inner * outer if stage else 0
        weights, macs, inner = weights + stage_weights, macs + stage_weights * pixels, outer
    return weights + inner * classes, macs + inner * classes


@pytest.mark.parametrize(
    ("depth", "weights", "macs"), [(20, 270_896, 40_813_184), (56, 851_504, 125_747_840)]
)
def test_weights_and_macs_are_those_of_the_paper_with_1x1_shortcuts(depth, weights, macs):
    assert count(ResNet((3, 32, 32), 10, depth=depth), (3, 32, 32)) == (weights, macs)
    assert closed_form(depth, 16, 32, 3, 10) == (weights, macs)


@pytest.mark.parametrize(("depth", "width", "channels", "classes"), [(8, 8, 1, 3), (14, 24, 3, 7)])
def test_other_depths_and_widths(depth, width, channels, classes):
    shape = (channels, 16, 16)
    model = ResNet(shape, classes, depth=depth, base_width=width)
    assert count(model, shape) == closed_form(depth, width, 16, channels, classes)


def test_parameter_names_are_torchvisions():
    names = set(ResNet((3, 32, 32), 10).state_dict())
    block = {f"layer2.0.{n}.weight" for n in ("conv1", "bn1", "conv2", "bn2", "downsample.0")}
    assert {"conv1.weight", "bn1.running_mean", "fc.weight", "fc.bias"} | block <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)
    assert len(names) == 2 + 6 + 18 * 6 + 2 * 6  # fc, stem, 18 conv+bn, shortcuts


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_depths_off_the_form_are_refused(depth):
    with pytest.raises(UserError, match=f"depth must be 6n\\+2 .* got {depth}"):
        ResNet((3, 32, 32), 10, depth=depth)


@pytest.mark.long
@pytest.mark.skipif("COMPRESSBENCH_DATA" not in os.environ, reason="needs COMPRESSBENCH_DATA")
def test_the_reference_checkpoint_scores_as_published(tmp_path, monkeypatch):
    from compressbench.data.batches import batches
    from compressbench.data.cifar10 import Cifar10
    from compressbench.models.checkpoint import load_checkpoint_

    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path))
    folder = Path(os.environ["COMPRESSBENCH_DATA"])
    rows = folder / "reference" / "validation_rows.txt"
    data = Cifar10(str(folder / "data" / "cifar10"), validation_rows=str(rows))
    model = ResNet(data.spec.input_shape, data.spec.num_classes)
    load_checkpoint_(model, folder / "reference" / "resnet20_cifar10.safetensors")
    model.eval()
    for split, accuracy in (("validation", 0.8148), ("test", 0.8033)):
        with torch.inference_mode():
            right = [(model(x).argmax(1) == y).sum().item() for x, y in batches(data, split, 250)]
        assert sum(right) / len(data.split(split)) == pytest.approx(accuracy, abs=2e-4)

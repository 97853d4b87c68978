"""`compressbench.compress`: the runs of the command line, with what the caller holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import compressbench
from compressbench.results.report_file import read_report
from compressbench.results.run_report import comparison_rows
from tests.api.conftest import DATA, Net, compress
from tests.end_to_end.running import finished_run
from tests.engine.odd_models import DeprecatedNorms


def hits(result):
    return {stage["name"]: stage["hit"] for stage in result.report["stages"]}


def onnx_accuracy(result, images, labels):
    session = onnxruntime.InferenceSession(result.path)
    logits = session.run(None, {"input": images.numpy()})[0]
    return float((logits.argmax(1) == labels.numpy()).mean())


def test_names_give_the_files_of_the_command_line(tmp_path, monkeypatch):
    chosen = {"trainer": "debug", "trainer.threads": 1, "recipe.stages.train.epochs": 1}
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "mine"))
    mine = compressbench.compress(
        "small_cnn", "digits", recipe="quantize", overrides=chosen, tracking="none", quiet=True
    )
    line = ["model=small_cnn", "dataset=digits", "recipe=quantize", "tracking=none"]
    line += [f"{key}={value}" for key, value in chosen.items()]
    places = tmp_path / "line", tmp_path / "again"
    for place in places:
        place.mkdir()
    other = finished_run(line, places[0], tmp_path / "other")
    assert mine.path.read_bytes() == other.onnx
    same = ("size/onnx_bytes", "size/download_bytes", "val/accuracy", "test/accuracy")
    assert {n: mine.figures[n] for n in same} == {
        n: other.stage("quantize")["figures"][n] for n in same
    }
    again = finished_run(line, places[1], tmp_path / "mine")
    assert all(again.hits.values()), "both fill one store"
    assert mine.report["config"] == other.report["config"]
    assert mine.report["command"][:2] == ["python", "run.py"]
    assert set(mine.report["command"][2:]) == set(line)


def test_a_trained_module_keeps_its_weights(shipped, trained_net, digits):
    images, labels = digits["test"]
    with torch.no_grad():
        own = float((trained_net(images).argmax(1) == labels).float().mean())
    baseline, last = shipped.report["stages"]
    assert baseline["figures"]["test/accuracy"] == pytest.approx(own, abs=1e-6)
    assert last["figures"]["test/accuracy"] == onnx_accuracy(shipped, images, labels)
    assert last["figures"]["test/accuracy"] > own - 0.02
    assert baseline["history"] == {}


def test_the_result_says_what_the_run_gave(shipped):
    assert shipped.path == shipped.folder / "model.onnx"
    assert shipped.figures["size/onnx_bytes"] == shipped.path.stat().st_size
    assert shipped.report == read_report(shipped.folder)
    assert shipped.table.to_dict("records") == comparison_rows(shipped.report)
    text = repr(shipped)
    assert "\n" not in text and "quantize: download" in text and str(shipped.folder) in text
    assert shipped._repr_html_().count("<tr>") == 3
    assert "<td>quantize</td>" in shipped._repr_html_()


def test_the_classes_of_the_module_are_kept_for_the_record(shipped):
    source = (shipped.folder / "artifact" / "model_source.py").read_text()
    assert source.startswith("# tests.api.conftest.Net\nclass Net(nn.Module):")
    assert "artifact/model_source.py" in shipped.report["files"]
    command = shipped.report["command"]
    assert command[:3] == ["compressbench.compress", "<Net>", "<data in hand>"]
    assert shipped.report["name"].startswith("quantize Net ")


def test_what_ships_says_that_floats_are_taken_as_they_are(shipped, digits, tmp_path):
    about = json.loads((shipped.folder / "model.json").read_text())
    assert "mean" not in about["input"] and "pixels" not in about["input"]["preprocess"]
    images, _ = digits["test"]
    np.save(tmp_path / "inputs.npy", images[:5].numpy())
    script = [sys.executable, "-I", shipped.folder / "predict.py", tmp_path / "inputs.npy"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    session = onnxruntime.InferenceSession(shipped.path)
    odds = torch.tensor(session.run(None, {"input": images[:5].numpy()})[0]).softmax(1)
    assert said == [f"{row.max():.4f} {row.argmax()}" for row in odds]


def test_the_store_knows_a_module_again(shipped, trained_net, digits):
    data = (digits["train"], digits["test"])
    before = {name: value.clone() for name, value in trained_net.state_dict().items()}
    again = compress(deepcopy(trained_net), data, trained=True)
    assert hits(again) == {"train": True, "quantize": True}
    assert again.path.read_bytes() == shipped.path.read_bytes()
    assert all(torch.equal(before[n], v) for n, v in trained_net.state_dict().items())


def test_another_weight_is_another_module(shipped, trained_net, digits):
    other = deepcopy(trained_net)
    with torch.no_grad():
        other.head.weight[0, 0] += 0.5
    result = compress(other, (digits["train"], digits["test"]), "baseline", trained=True)
    assert hits(result) == {"train": False}


class Doubled(Net):
    def forward(self, images):
        return 2 * super().forward(images)


def test_another_forward_is_another_module(shipped, trained_net, digits):
    other = Doubled()
    other.load_state_dict(trained_net.state_dict())
    other.__class__.__name__ = "Net"
    result = compress(other, (digits["train"], digits["test"]), "baseline", trained=True)
    assert hits(result) == {"train": False}


def test_training_starts_from_the_weights_that_a_module_has(trained_net, digits):
    train, test = ((images[:96], labels[:96]) for images, labels in digits.values())
    still = {"recipe.stages.train.epochs": 1, "recipe.stages.train.optimizer.lr": 1e-9}
    result = compress(trained_net, (train, test), "baseline", overrides=still)
    held = dict(trained_net.state_dict())
    made = compressbench.load(result.folder, trained_net).model.state_dict()
    assert all(torch.allclose(made[name], held[name], atol=1e-6) for name in held)
    assert result.report["stages"][0]["history"]["train/loss"]
    moved = {**still, "recipe.stages.train.optimizer.lr": 0.01}
    other = compress(trained_net, (train, test), "baseline", overrides=moved)
    made = compressbench.load(other.folder, trained_net).model.state_dict()
    assert not torch.allclose(made["head.weight"], held["head.weight"], atol=1e-4)


def test_a_module_in_hand_teaches_a_model_of_the_config(shipped, trained_net, digits):
    short = {"model@recipe.stages.distill.model": "mlp", "recipe.stages.distill.epochs": 1}
    data = (digits["train"], digits["test"])
    result = compress(trained_net, data, "distill", trained=True, overrides=short)
    assert hits(result) == {"train": True, "distill": False}
    assert type(compressbench.load(result.folder).model).__name__ == "Mlp"


def test_rows_of_numbers_are_data_too():
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    labels = (rows.sum(1) > 0).long()
    net = nn.Sequential(nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        net[0].weight[:] = torch.stack([-torch.ones(6), torch.ones(6)])
    result = compress(net, (rows.numpy(), labels.numpy()), "baseline", trained=True)
    assert result.figures["val/accuracy"] == result.figures["test/accuracy"] == 1.0
    assert json.loads((result.folder / "model.json").read_text())["input"]["layout"] == "batch, ..."


def test_a_folder_of_images(tmp_path):
    for row in range(24):
        folder = tmp_path / "pictures" / ("dark", "light")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 40 + 150 * (row % 2) + row, np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    short = {"recipe.stages.train.epochs": 1, "recipe.stages.train.batch_size": 8}
    result = compress("mlp", tmp_path / "pictures", "baseline", overrides=short)
    assert json.loads((result.folder / "model.json").read_text())["classes"] == ["dark", "light"]
    assert result.report["config"]["dataset"]["root"] == str(tmp_path / "pictures")


def test_what_a_call_does_to_the_process(shipped, trained_net, digits, capsys):
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    torch.set_num_threads(2)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    state, folder = torch.random.get_rng_state(), Path.cwd()
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    compress(trained_net, (digits["train"], digits["test"]), trained=True)
    assert capsys.readouterr() == ("", "")
    assert torch.get_num_threads() == 2
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(state, torch.random.get_rng_state())
    assert Path.cwd() == folder
    assert GlobalHydra.instance().hydra is hydra and HydraConfig.instance().cfg is config
    compress(trained_net, (digits["train"], digits["test"]), trained=True, quiet=False)
    said = capsys.readouterr().out
    assert "file to ship" in said and "replay" not in said


def test_it_runs_in_a_thread(shipped, trained_net, digits):
    found = []
    data = (digits["train"], digits["test"])
    work = lambda: found.append(compress(trained_net, data, trained=True))  # noqa: E731
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert hits(found[0]) == {"train": True, "quantize": True}


class Interrupting(Net):
    """Presses Ctrl-C in a step of training, on more samples than a trial takes."""

    def forward(self, images):
        if self.training and len(images) > 8:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return super().forward(images)


def test_an_interrupt_comes_out_as_one(digits, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compress(Interrupting(), digits["train"], "baseline", folder=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "killed"


def test_a_wrapped_module_is_taken_out(shipped, trained_net, digits):
    compiled = deepcopy(trained_net)
    compiled.compile()
    for module in (nn.DataParallel(torch.compile(deepcopy(trained_net))), compiled):
        result = compress(module, (digits["train"], digits["test"]), trained=True)
        assert hits(result) == {"train": True, "quantize": True}


class InPlace(nn.Module):
    """Writes into its input, as inplace=True in a first layer does."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(F.relu(images, inplace=True).flatten(1))


def test_the_data_outlive_a_module_that_writes_into_its_input():
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = images.clone()
    compress(InPlace(), (images, DATA[1]), "baseline", trained=True)
    assert torch.equal(images, kept)


def test_a_module_with_deprecated_hooks_stays_with_its_caller(tmp_path, digits):
    """Its copy is trained with weight_norm; the result has plain weights, and can be loaded."""
    net = DeprecatedNorms([1, 8, 8], 10)
    net.train()(digits["train"][0][:4]).sum().backward()  # its weights are no leaves any more
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = compress(net, digits["train"], "baseline", folder=tmp_path / "run",
                      overrides={"recipe.stages.train.epochs": 1})  # fmt: skip
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    assert "stem.weight_g" in before
    run = compressbench.load(result.folder, net)
    names = set(run.model.state_dict())
    assert "stem.weight" in names and not any("parametrizations" in n for n in names)
    images = digits["test"][0][:9]
    logits = torch.from_numpy(run.session.run(None, {"input": images.numpy()})[0])
    assert torch.allclose(run.model(images), logits, atol=1e-4)

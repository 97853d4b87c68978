"""The files to ship, and the script that runs them without us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zstandard
from PIL import Image

from compressbench.export.bundle import write_bundle
from tests.export.export_zoo import Residual, run

pytestmark = pytest.mark.xdist_group("export_zoo")  # they share exports


def test_the_bundle_runs_without_us(export, data, tmp_path):
    _, path, report = export(Residual, 8, static=True)
    folder = tmp_path / "a folder with späces"
    files = write_bundle(path, data.spec, report, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in files)
    packed = (folder / "model.onnx.zst").read_bytes()
    unpacked = zstandard.ZstdDecompressor().decompress(packed)
    assert unpacked == (folder / "model.onnx").read_bytes() == path.read_bytes()
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert about["classes"] == list(data.spec.class_names)

    pixels = data.split("test").inputs[0]
    image = tmp_path / "image.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(image)
    logits = run(path, data.prepare(pixels[None]))[0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = int(probabilities.argmax())
    shown = _predict(folder, image)
    assert shown[0].split() == [f"{probabilities[best]:.4f}", data.spec.class_names[best]]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((40, 30)).convert("L").save(image)
    assert len(_predict(folder, image)) == 3


def _predict(folder, image):
    command = [sys.executable, "-X", "utf8", "-I", str(folder / "predict.py"), str(image)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.splitlines()


def test_writing_the_bundle_where_the_model_lies(export, data, tmp_path):
    _, path, report = export(Residual, 8, static=True)
    there = shutil.copy(path, tmp_path / "model.onnx")
    write_bundle(there, data.spec, report, tmp_path)
    assert there.read_bytes() == path.read_bytes()

"""A stranger's model on a stranger's images, through every recipe, nothing of ours touched."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from compressbench.config.groups import config_folder, options
from tests.end_to_end.running import QUIET, few_epochs, finished_run, run_here

HOME = Path(__file__).parent / "stranger"
RECIPES = sorted(options("recipe", [config_folder()]))
TOYS = ("ball", "brick", "kite")
MINE = (f"--config-dir={HOME / 'conf'}", "model=stranger", "dataset=toys")


def draw(toy: str, random: np.random.Generator) -> bytes:
    """A PNG of 20x24 pixels."""
    picture = Image.fromarray(random.integers(0, 120, (24, 20, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(picture)
    x, y = random.integers(6, 14), random.integers(6, 18)
    colour = tuple(int(c) for c in random.integers(130, 256, 3))
    if toy == "ball":
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    elif toy == "brick":
        pen.rectangle((x - 6, y - 2, x + 6, y + 2), fill=colour)
    else:
        pen.polygon([(x, y - 6), (x + 3, y), (x, y + 6), (x - 3, y)], fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A folder with train.parquet and test.parquet."""
    folder, random = tmp_path_factory.mktemp("toys"), np.random.default_rng(0)
    for name, count in (("train", 300), ("test", 90)):
        labels = [TOYS[i % 3] for i in range(count)]
        pictures = [{"bytes": draw(toy, random), "path": f"{toy}.png"} for toy in labels]
        pq.write_table(pa.table({"picture": pictures, "toy": labels}), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def toy_store(tmp_path_factory):
    return tmp_path_factory.mktemp("toy_store")


@pytest.fixture(scope="module")
def toy_run(toys, toy_store, tmp_path_factory):
    done = {}
    files = [f"dataset.{name}={toys / name}.parquet" for name in ("train", "test")]

    def run(recipe):
        if recipe not in done:
            arguments = [f"recipe={recipe}", *MINE, *files, *QUIET, *few_epochs(recipe, fresh=12)]
            arguments += ["--allow=stranger_net.*", "recipe.stages.train.batch_size=32"]
            place = tmp_path_factory.mktemp(recipe)
            done[recipe] = finished_run(arguments, place, toy_store)
        return done[recipe]

    return run


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(HOME)


def accuracy(run, parquet):
    """Of the file in the run folder over a parquet file, read with nothing of ours."""
    about = json.loads((run.folder / "model.json").read_text())
    rows = pq.read_table(parquet).to_pylist()
    pictures = [Image.open(io.BytesIO(row["picture"]["bytes"])) for row in rows]
    pixels = np.stack([np.asarray(p, np.float32).transpose(2, 0, 1) for p in pictures]) / 255
    mean, std = (np.float32(about["input"][n]).reshape(-1, 1, 1) for n in ("mean", "std"))
    session = onnxruntime.InferenceSession(run.folder / "model.onnx")
    (logits,) = session.run(None, {"input": (pixels - mean) / std})
    chosen = logits.argmax(1)
    return np.mean([about["classes"][k] == r["toy"] for k, r in zip(chosen, rows, strict=True)])


QUICK = {"prune_channels", "prune_distill_quant", "quant_then_prune"}  # with all kinds of stages


@pytest.mark.parametrize(
    "recipe", [r if r in QUICK else pytest.param(r, marks=pytest.mark.long) for r in RECIPES]
)
def test_every_recipe_takes_it(toy_run, toys, recipe):
    run = toy_run(recipe)
    figures = run.report["stages"][-1]["figures"]
    assert figures["test/accuracy"] == accuracy(run, toys / "test.parquet")
    assert figures["test/accuracy"] > 0.5
    assert figures["size/onnx_bytes"] == len(run.onnx)
    for stage in run.report["stages"]:
        if stage["kind"] != "sensitivitycurves":  # it looks, and leaves the model as it is
            assert any(row["touched"] for row in stage["coverage"])


def test_all_its_layers_become_integers(toy_run):
    run = toy_run("quantize")
    figures = [stage["figures"] for stage in run.report["stages"]]
    assert all(row["touched"] == row["total"] for row in run.stage("quantize")["coverage"])
    assert figures[1]["size/onnx_bytes"] < 0.6 * figures[0]["size/onnx_bytes"]


def test_its_channels_are_really_removed(toy_run):
    run = toy_run("prune_channels")
    before, after = (run.stage(name)["figures"] for name in ("train", "prune"))
    assert after["size/params"] < 0.9 * before["size/params"]
    assert after["compute/macs"] < 0.9 * before["compute/macs"]
    assert after["size/onnx_bytes"] < before["size/onnx_bytes"]


def test_the_command_that_replays_it_gives_leave(toy_run, toy_store, tmp_path):
    run = toy_run("baseline")
    (line,) = (text for text in run.out.splitlines() if text.startswith("run it again: "))
    command, *arguments = shlex.split(line.partition(": ")[2])
    assert command == "compressbench"
    assert "--allow=stranger_net.*" in arguments
    done = run_here(arguments, tmp_path, toy_store)
    assert done.code == 0, done.err
    assert "model.onnx has the same bytes as" in done.out


def test_its_code_does_not_run_without_leave(toys, tmp_path):
    arguments = [*MINE, f"dataset.train={toys / 'train.parquet'}", "recipe=baseline", *QUIET]
    done = run_here(arguments, tmp_path, tmp_path / "store")
    assert done.code == 1
    assert "model._target_=stranger_net.StrangerNet is not allowed" in done.line
    assert "--allow=stranger_net.*" in done.line


def test_a_yaml_cannot_give_itself_leave(toys, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sly.yaml").write_text(
        "# sly\n_target_: stranger_net.StrangerNet\n_execution_whitelist_: ['*']\n"
    )
    done = run_here(
        [f"--config-dir={tmp_path}", "model=sly", "recipe=baseline", *QUIET],
        tmp_path, tmp_path / "store",
    )  # fmt: skip
    assert done.code == 1
    assert "not allowed" in done.line

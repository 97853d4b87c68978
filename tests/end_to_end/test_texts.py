"""Texts from the command line: the same recipes, a file of ids, a script that takes words."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from compressbench.data.ag_news import CLASSES, AgNews
from tests.end_to_end.running import QUIET, few_epochs, finished_run, run_here
from tests.sample_texts import text, write_news

SMALL = ("dataset=ag_news", "dataset.vocabulary=320", "dataset.max_tokens=16",
         "dataset.validation_fraction=0.3", "model=text_transformer", "model.width=24",
         "model.depth=1", "model.student={width: 12}", *QUIET)  # fmt: skip
LEARNING = "recipe.stages.train.batch_size=16"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("news")
    write_news(folder / "test.csv", 320)
    return folder


@pytest.fixture(scope="module")
def news_run(root, tmp_path_factory):
    """Run a recipe on the texts, with a few epochs; stages are shared."""
    store = tmp_path_factory.mktemp("store")

    def run(recipe, *more):
        arguments = (f"recipe={recipe}", *SMALL, f"dataset.root={root}", LEARNING,
                     *few_epochs(recipe, fresh=6), *more)  # fmt: skip
        return finished_run(arguments, tmp_path_factory.mktemp(recipe), store)

    return run


@pytest.fixture(scope="module")
def quantized(news_run):
    return news_run("quantize")


def file_logits(folder, ids):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return session.run(None, {"input": ids})[0]


def test_a_quantized_model_of_texts_is_what_the_report_says(quantized, root):
    train, quantize = quantized.report["stages"]
    data = AgNews(str(root), vocabulary=320, max_tokens=16, validation_fraction=0.3)
    for name, figure in (("validation", "val/accuracy"), ("test", "test/accuracy")):
        split = data.split(name)
        found = file_logits(quantized.folder, split.inputs.numpy().astype(np.int64)).argmax(1)
        assert quantize["figures"][figure] == (found == split.targets.numpy()).mean()
    assert train["figures"]["val/accuracy"] > 0.6, "a quarter is guessing"
    assert quantize["figures"]["val/accuracy"] > train["figures"]["val/accuracy"] - 0.03
    small, large = (s["figures"]["size/onnx_bytes"] for s in (quantize, train))
    assert small < 0.5 * large
    rows = {row["layer"]: row for row in quantize["layers"]}
    assert rows["tokens"]["kernel"] == "lookup"
    assert rows["blocks.0.attention.query"]["kernel"] == "integer"
    assert {row["bits"] for row in rows.values()} == {8}


def test_the_file_takes_any_number_of_texts_and_explains_itself(quantized):
    ids = np.random.default_rng(0).integers(0, 300, (7, 16))
    whole = file_logits(quantized.folder, ids)
    single = np.concatenate([file_logits(quantized.folder, row[None]) for row in ids])
    np.testing.assert_allclose(single, whole, atol=1e-5)
    about = json.loads((quantized.folder / "model.json").read_text())
    assert about["input"]["dtype"] == "int64"
    assert about["input"]["shape"] == ["batch", 16]
    assert about["classes"] == list(CLASSES)
    model = onnx.load(quantized.folder / "model.onnx")
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes["input"] == "int64 [batch, 16]"
    assert notes["tokenizer_sha256"] == about["input"]["tokenizer_sha256"]
    assert "mean" not in notes


def test_the_script_beside_the_file_reads_a_sentence(quantized, tmp_path):
    sentence = text(random.Random(5), 1, 12).title()
    command = [sys.executable, "-X", "utf8", "-I", str(quantized.folder / "predict.py"), sentence]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    made = Tokenizer.from_file(str(quantized.folder / "tokenizer.json"))
    (logits,) = file_logits(quantized.folder, np.array([made.encode(sentence).ids], np.int64))
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    best = int(probabilities.argmax())
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert lines[0] == [f"{probabilities[best]:.4f}", CLASSES[best]]


@pytest.mark.long
def test_a_student_of_the_model_is_distilled_and_quantized(news_run):
    stage = "recipe.stages.distill"
    run = news_run("distill_then_quant", f"{stage}.batch_size=16", f"{stage}.optimizer.lr=0.01")
    train, distill, quantize = run.report["stages"]
    sizes = [stage["figures"]["size/onnx_bytes"] for stage in (train, distill, quantize)]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * 1.2 * sizes[2]
    widths = {row["layer"]: row["total"] for row in distill["coverage"]}
    assert widths["blocks.0.attention.query"] == 12 * 12
    assert quantize["figures"]["val/accuracy"] > 0.6


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe",
    ["baseline", "prune_then_quant", "prune_channels", "qat", "prune_then_qat", "codebook",
     "distill_mixed", "quantize_mixed", "prune_mixed", "prune_2_4", "prune_distill_quant",
     "quant_then_prune", "prune_gradual", "sensitivity"],
)  # fmt: skip
def test_the_recipes_of_images_are_those_of_texts(news_run, recipe):
    run = news_run(recipe, *(["recipe.stages.prune.round_to=4"] if "channels" in recipe else []))
    first, last = run.report["stages"][0], run.report["stages"][-1]
    assert run.report["status"] == "finished"
    assert last["figures"]["val/agreement"] > 0.99
    if recipe not in ("baseline", "sensitivity"):
        assert last["figures"]["size/download_bytes"] < first["figures"]["size/download_bytes"]
    if recipe == "prune_channels":
        assert last["figures"]["compute/macs"] < first["figures"]["compute/macs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=small_cnn"], "model: SmallCnn takes images, but dataset ag_news has texts: ch"),
        (["dataset=digits"], "TextTransformer takes texts, but dataset digits has"),
        (["recipe=distill", "model@recipe.stages.distill.model=mlp"],
         r"stages\.distill\.model: Mlp takes images"),
        (["recipe=distill", "model.student=null"], r"model\.student must list .* \{width: 8\}"),
        (["recipe=distill", "+model.student.widht=8"], r"model\.student\.widht: no such option"),
        (["recipe=distill", "model.student={heads: 1}"], r"\+model\.student\.NAME=VALUE adds one"),
        (["recipe=distill", "model.student={width: 9}"], "width must be a multiple of heads=4"),
        (["dataset.vocabulary=100"], r"dataset\.vocabulary must be an integer in \[258"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(root, tmp_path, arguments, message):
    given = {a.partition("=")[0]: a for a in (*SMALL, f"dataset.root={root}", *arguments)}
    if "dataset=digits" in arguments:
        given = {k: v for k, v in given.items() if not k.lstrip("~").startswith("dataset.")}
    if "model=small_cnn" in arguments:
        given = {k: v for k, v in given.items() if not k.startswith("model.")}
    done = run_here(list(given.values()), tmp_path, tmp_path / "store")
    assert done.code == 1
    assert re.search(message, done.line), done.line

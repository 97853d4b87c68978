"""Options of every group: the YAML says what the class says, and a wrong value is one line."""

from __future__ import annotations

import inspect
import io
import math
from importlib import import_module

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from compressbench.config.groups import config_folder
from compressbench.config.instantiate import check, instantiate
from compressbench.core.errors import UserError
from compressbench.engine.runtime import resolve
from tests.sample_texts import write_news

CONF = config_folder()
WRONG = ["abc", "", -7, 0, 2.5, math.nan, math.inf, True, None, [], ["abc"], [-1], {"abc": 1}]
OURS = {"_target_", "_partial_", "defaults", "checkpoint", "student", "teacher", "model"}
OF_THE_RECIPE = {"input_shape": [1, 8, 8], "num_classes": 3}
OF_A_TEXT = {"input_shape": [8], "num_classes": 3, "vocabulary": 50, "pad": 0}


def given_to(path):
    """What the recipe gives to a model, of what its class takes."""
    given = OF_A_TEXT if path.stem.endswith("_transformer") else OF_THE_RECIPE
    parameters = inspect.signature(target(load(path))).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in given.items() if every or name in parameters}


def named(*groups):
    paths = [path for group in groups for path in sorted((CONF / group).glob("*.yaml"))]
    return pytest.mark.parametrize("path", paths, ids=lambda p: f"{p.parent.name}-{p.stem}")


def target(config):
    module, _, name = config["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def load(path):
    """The YAML, on top of another of its group where its defaults name one, with the groups that
    its defaults list names put in; what plan.py takes is out.
    """
    config = yaml.safe_load(path.read_text())
    for entry in config.get("defaults", []):
        if isinstance(entry, dict) and "override" not in str(entry):
            ((group, option),) = entry.items()
            name, _, key = group.partition("@")
            option = str(option).replace("${optimizers@_global_}", "sgd")
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = load(CONF / name.strip("/") / f"{option}.yaml")
        elif isinstance(entry, str) and entry != "_self_":
            config = {**load(path.with_name(f"{entry}.yaml")), **config}
    return {k: v for k, v in config.items() if k not in OURS - {"_target_"}}


@named(
    "criterion",
    "quantizer",
    "trained_quantizer",
    "sensitivity",
    "loss",
    "dataset",
    "model",
    "tracking",
)
def test_a_default_in_the_class_is_the_one_in_the_yaml(path):
    """Who builds the class in Python gets what the command line gets."""
    config = load(path)
    if path.stem == "resnet56":
        config["depth"] = 20
    for name, parameter in inspect.signature(target(config)).parameters.items():
        if parameter.default is not parameter.empty:
            default = parameter.default
            same = list(default) if isinstance(default, tuple) else default
            assert config[name] == same, name


def outcome(action):
    """What a user would read; anything but a UserError is a traceback, and fails the test."""
    try:
        action()
    except UserError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


@named("criterion", "quantizer", "trained_quantizer", "sensitivity", "loss", "stage", "tracking")
def test_a_wrong_value_is_refused_in_one_line(path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load(path)
    for name in config.keys() - {"_target_"}:
        for value in WRONG:
            outcome(lambda n=name, v=value: instantiate({**config, n: v}, "here"))


@named("model")
def test_a_wrong_value_of_a_model_is_refused_in_one_line(path):
    given = given_to(path)
    config = {**load(path), **given}
    for name in config.keys() - {"_target_", *given}:
        for value in WRONG:
            outcome(lambda n=name, v=value: instantiate({**config, n: v}, "model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder that serves every dataset: train.parquet and test.parquet of 8x8 pictures, and
    test.csv of texts.
    """
    folder, file = tmp_path_factory.mktemp("pictures"), io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    for name, count in (("train", 20), ("test", 10)):
        rows = {"img": [{"bytes": file.getvalue()}] * 3 * count, "label": [0, 1, 2] * count}
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    write_news(folder / "test.csv", 40)
    np.savez(folder / "arrays.npz", inputs=np.ones((30, 2)), targets=np.arange(30) % 3)
    return folder


@named("dataset")
def test_a_wrong_value_of_a_dataset_is_refused_in_one_line(path, pictures):
    config = load(path)
    if path.stem in ("cifar10", "ag_news"):
        config["root"] = str(pictures)
    if path.stem == "ag_news":
        config["vocabulary"] = 300
    if path.stem == "images":
        config |= {"train": str(pictures / "train.parquet"), "crop_padding": 1}
    if path.stem == "arrays":
        config["path"] = str(pictures / "arrays.npz")

    def use(changed):
        data = instantiate(changed, "dataset")
        assert data.spec.input_shape
        assert data.manifest()
        assert len(data.split("train"))

    use(config)
    for name in config.keys() - {"_target_"}:
        for value in WRONG:
            outcome(lambda n=name, v=value: use({**config, n: v}))


def test_a_wrong_value_of_the_trainer_is_refused_in_one_line():
    config = yaml.safe_load((CONF / "trainer" / "auto.yaml").read_text())
    for name in config:
        for value in WRONG:
            outcome(lambda n=name, v=value: resolve({**config, n: v}))


@named(
    "criterion",
    "quantizer",
    "trained_quantizer",
    "sensitivity",
    "loss",
    "stage",
    "tracking",
    "dataset",
    "model",
)
def test_an_unknown_option_is_refused(path):
    config = {**load(path), **(given_to(path) if path.parent.name == "model" else {}), "sparsty": 1}
    with pytest.raises(UserError, match=r"here\.sparsty: no such option"):
        check(config, "here")

"""Every option of every group has a type and a range: whatever else is refused in one line.

The options are those of the YAML files, so that a new one is tested by existing.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from compressbench.config.instantiate import instantiate
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import UserError
from compressbench.data.digits import Digits
from compressbench.engine.prepare import prepare
from compressbench.engine.runtime import resolve
from compressbench.search.options import read_constraints, read_objectives, read_options
from tests.contracts.group_options import CONF, given_to, load, named
from tests.end_to_end.running import composed
from tests.sample_texts import write_news

# No option takes these. A seed may be large, though, and a limit of bytes, too.
NEVER = [math.nan, math.inf, -math.inf, -1, -0.5, 1e30, 10**30, {"abc": 1}, [math.nan], [None],
         [-1]]  # fmt: skip
SOME_TAKE = ["abc", "", 0, 2.5, 2**63, True, None, [], {}, ["abc"], "größe", "x" * 5000]
STAGES = sorted(path.stem for path in (CONF / "stage").glob("*.yaml"))


def judge(use, config: Mapping[str, Any], place: tuple[str, ...]) -> None:
    """Give the option at `place` every value; whatever is no UserError of one line fails."""
    for value in [*NEVER, *SOME_TAKE]:
        changed = copy.deepcopy(dict(config))
        section = changed
        for name in place[:-1]:
            section = section[name]
        section[place[-1]] = value
        try:
            use(changed)
        except UserError as error:
            assert str(error).strip()
            assert "\n" not in str(error)
            assert len(str(error)) < 6000
        else:
            assert value not in NEVER, f"{'.'.join(place)}={value!r} was accepted"


def options_in(config: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The places of all options, those of nested configs included."""
    for name, value in config.items():
        if name not in ("_target_", "_partial_"):
            yield (name,)
            if isinstance(value, dict):
                yield from ((name, *more) for more in options_in(value))


@named("criterion", "quantizer", "trained_quantizer", "sensitivity", "loss", "stage", "tracking",
       "sampler")  # fmt: skip
def test_row_34_a_wrong_value_is_refused_in_one_line(path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load(path)
    given = {"seed": 0, "number": 0} if path.parent.name == "sampler" else {}
    for place in options_in(config):
        judge(lambda changed: instantiate(changed, "here", **given), config, place)


@named("model")
def test_row_34_a_wrong_value_of_a_model_is_refused_in_one_line(path):
    given = given_to(path)
    config = {**load(path), **given}
    for name in config.keys() - {"_target_", *given}:
        judge(lambda changed: instantiate(changed, "model"), config, (name,))


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
    for number in range(5):
        Image.new("RGB", (9, 8), (40 * number, 9, 9)).save(folder / f"{number}.png")
    return folder


@named("dataset")
def test_row_34_a_wrong_value_of_a_dataset_is_refused_in_one_line(path, pictures):
    config = load(path)
    if path.stem in ("cifar10", "ag_news"):
        config["root"] = str(pictures)
    if path.stem == "pictures":
        config |= {"root": str(pictures), "size": 8, "resize": 8}
    if path.stem == "arrays":
        config["path"] = str(pictures / "arrays.npz")
    if path.stem == "ag_news":
        config["vocabulary"] = 300
    if path.stem == "images":
        config |= {"train": str(pictures / "train.parquet"), "crop_padding": 1}

    def use(changed):
        data = instantiate(changed, "dataset")
        assert data.spec.input_shape
        assert data.manifest()
        assert len(data.split("train"))

    use(config)
    for name in config.keys() - {"_target_"}:
        judge(use, config, (name,))


def test_row_34_a_wrong_value_of_the_trainer_is_refused_in_one_line():
    config = yaml.safe_load((CONF / "trainer" / "auto.yaml").read_text())
    for name in config:
        judge(resolve, config, (name,))


def searched(section: Mapping[str, Any]) -> None:
    options = read_options(section)
    read_objectives(options.objectives, "accuracy")
    read_constraints(options.constraints, "accuracy")


def test_row_34_a_wrong_value_of_the_search_is_refused_in_one_line():
    config = {**yaml.safe_load((CONF / "search" / "default.yaml").read_text()), "sampler": {}}
    del config["defaults"]
    for name in config.keys() - {"sampler", "space", "enqueue"}:
        judge(searched, config, (name,))


def planned(config: Mapping[str, Any]) -> None:
    """Everything that is checked before a recipe trains."""
    data = Digits() if config["dataset"]["_target_"].endswith("Digits") else None
    prepare(RunConfig.of({k: v for k, v in config.items() if k != "search"}), data)


def config_of_run(*overrides: str) -> dict[str, Any]:
    """As composed, resolved but for the interpolations that only Hydra resolves."""
    quiet = ("name=mine", "tracking=none", "trainer=cpu", "trainer.threads=1", "model=mlp")
    return composed(*quiet, *overrides)


def test_row_34_a_wrong_value_at_the_top_is_refused_in_one_line():
    config = config_of_run("recipe=baseline")
    for name in config.keys() - {"search", "dataset"}:
        judge(planned, config, (name,))


@pytest.mark.parametrize("option", ["teacher", "model", "loss"])
def test_row_34_what_a_stage_refers_to_is_refused_in_one_line(option):
    config = config_of_run("recipe=distill")
    judge(planned, config, ("recipe", "stages", "distill", option))


def test_row_34_a_student_that_no_stage_builds_is_checked_too():
    config = config_of_run("recipe=baseline")
    judge(planned, config, ("model", "student"))
    judge(planned, config, ("model", "student", "hidden"))


def test_row_34_an_optimizer_names_its_option():
    config = config_of_run("recipe=baseline")
    for value in ("fast", -1, math.nan, None, True, 1e30):
        changed = copy.deepcopy(config)
        changed["recipe"]["stages"]["train"]["optimizer"]["lr"] = value
        with pytest.raises(UserError, match=r"recipe\.stages\.train: optimizer\.lr must be"):
            planned(changed)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_row_34_every_option_of_every_stage_is_refused_when_the_recipe_is_planned(stage):
    more = () if stage == "train" else (f"+stage@recipe.stages.other={stage}",)
    more += ("+model@recipe.stages.other.model=mlp",) if stage == "distill" else ()
    more += ("model=small_cnn",) if stage == "recalibrate" else ()
    config = config_of_run("recipe=baseline", *more)
    where = ("recipe", "stages", "train" if stage == "train" else "other")
    for place in options_in(config["recipe"]["stages"][where[-1]]):
        judge(planned, config, (*where, *place))

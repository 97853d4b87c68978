"""Quantization-aware training: its result is a quantized model, computed as it was trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core import artifact, edits
from compressbench.core.activation_quantizers import CHILD
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid
from compressbench.core.types import (
    ACTIVATION_QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Runtime,
    Stage,
)
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.quantization.trained.lsq import Lsq
from compressbench.quantization.trained.model import FakeQuantizedModel
from compressbench.quantization.trained.pact import Pact
from compressbench.quantization.trained.straight_through import StraightThrough
from compressbench.training.losses.hinton import Hinton
from tests.quantization.qat_net import Blobs, Net, context, images, masked, run, stage, start
from tests.two_ranks import on_two_ranks


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (stage(activation=Lsq()), start()),
        (stage(StraightThrough(MinMax()), Pact(), granularity="tensor"), start()),
        (stage(activation=StraightThrough(MinMax()), activation_bits=4, bits=2), masked()),
        (stage(granularity="group", group_size=2, symmetric=False), masked()),
        (stage(power_of_two=True, narrow=False, fold_batchnorm=True), start()),
    ],
    ids=[
        "lsq",
        "straight-through, pact",
        "masks",
        "groups, asymmetric, masks",
        "folded, power of two",
    ],
)
def test_the_quantized_model_computes_what_was_trained(made, given, tmp_path, monkeypatch):
    trained = []
    settle = FakeQuantizedModel.settle_

    def look(self):
        with torch.no_grad():
            trained.append(self.eval()(images()))
        return settle(self)

    monkeypatch.setattr(FakeQuantizedModel, "settle_", look)
    rule = {"layers": "grouped", "granularity": "channel", "group_size": None}
    made = replace(made, rules=[{"layers": ["stem", "fc"], "bits": 8}, rule])
    made.check_model(given.model, Blobs.spec)
    before = artifact.digest(given)
    result = run(made, tmp_path, given).artifact
    assert artifact.digest(given) == before
    assert torch.equal(result.model(images()), trained[0])
    assert not torch.equal(trained[0], given.model(images()))
    artifact.check(result)
    artifact.save(result, tmp_path)
    loaded = artifact.load(tmp_path, lambda config: Net(), "").model
    assert torch.equal(loaded(images()), trained[0])
    for name, layer in edits.masked_layers(result.model).items():
        assert torch.equal(layer.weight_mask, given.model.get_submodule(name).weight_mask)
        assert not layer.weight[~layer.weight_mask].any()
        assert layer.weight[layer.weight_mask].any()


def test_the_result_has_the_form_of_quantization_after_training(tmp_path):
    ours = run(stage(activation=Lsq(), activation_bits=5), tmp_path)
    grid = {"bits": 3, "rules": [], "activation_bits": 5, "calibration_images": 48}
    theirs = Quantize(Nearest(MinMax()), MinMax(), **grid).run(
        {"model": start()}, context(tmp_path)
    )
    ours_state, their_state = (o.artifact.model.state_dict() for o in (ours, theirs))
    assert {n: (t.shape, t.dtype) for n, t in ours_state.items()} == {
        n: (t.shape, t.dtype) for n, t in their_state.items()
    }
    assert ours.artifact.edits == theirs.artifact.edits
    assert ours.artifact.properties == theirs.artifact.properties
    assert ours.coverage == theirs.coverage
    scales = [(s.scale, t.scale) for s, t in zip(
        ours.artifact.model.get_submodule(CHILD), theirs.artifact.model.get_submodule(CHILD),
        strict=True)]  # fmt: skip
    assert all(a != b for a, b in scales), "every range was learned"
    assert list(ours.history) == ["train/loss", "train/accuracy"]
    assert ours.warnings == ()


@pytest.mark.parametrize("method", [Lsq(), StraightThrough(MinMax())])
def test_training_on_the_grid_finds_better_weights_than_rounding(method, tmp_path):
    def loss(model):
        split = Blobs().split("train")
        with torch.no_grad():
            return F.cross_entropy(model(Blobs().prepare(split.inputs)), split.targets).item()

    made = stage(method, epochs=6, bits=2)
    rounded = Quantize(Nearest(MinMax()), None, bits=2, rules=[])
    after = rounded.run({"model": start()}, context(tmp_path)).artifact.model
    assert loss(run(made, tmp_path).artifact.model) < 0.8 * loss(after)


def test_learned_ranges_are_spared_from_weight_decay_and_all_is_trained_once(tmp_path):
    model = run(stage(activation=Lsq(), epochs=0.1), tmp_path).artifact.model
    grids = {"stem": Grid(4), "left": Grid(4), "right": Grid(4)}
    on_grid = FakeQuantizedModel(model, grids, Lsq(), Pact(decay=0.3))
    own, steps, alphas = on_grid.groups()
    assert "weight_decay" not in own
    assert steps["weight_decay"] == 0.0
    assert len(steps["params"]) == 2, "a tied weight has one grid"
    assert alphas["weight_decay"] == 0.3
    found = [id(p) for group in (own, steps, alphas) for p in group["params"]]
    assert len(found) == len(set(found)) == len(list(on_grid.parameters()))


def test_ranges_that_pact_cannot_learn_are_named(tmp_path):
    result = run(stage(activation=Pact()), tmp_path)
    (warning,) = result.warnings
    first, _, names = warning.partition(": ")
    assert first == "6 activation ranges stay as calibrated"
    assert names == ", ".join([
        "input", "grouped:conv2d", ":clamp", ":add", ":mean", ":add:1",
    ]), "all but those of relu and of relu times 0.5"  # fmt: skip


def test_one_scale_per_tensor_or_a_power_of_two_does_not_survive_batchnorm(tmp_path):
    (warning,) = run(stage(granularity="tensor"), tmp_path).warnings
    assert "export folds BatchNorm into 1 layers" in warning
    with pytest.raises(UserError, match="power_of_two: export multiplies the scales of stem"):
        stage(power_of_two=True).check_model(start().model, Blobs.spec)


class KilledError(BaseException):
    pass


@dataclass(frozen=True)
class Dying:
    """Hinton's loss, until it dies at call number `at`."""

    at: int
    calls: list[int] = field(default_factory=list)

    def __call__(self, student, teacher, targets):
        self.calls.append(1)
        if len(self.calls) == self.at:
            raise KilledError
        return Hinton()(student, teacher, targets)


def test_a_stopped_fit_goes_on_to_the_same_bytes(tmp_path):
    def digest(loss, folder):
        made = stage(activation=Lsq(), loss=loss, epochs=3)
        ctx = context(tmp_path / folder, checkpoint_seconds=0.0)
        return artifact.digest(made.run({"model": masked(), "teacher": start()}, ctx).artifact)

    whole = digest(Dying(0), "whole")
    with pytest.raises(KilledError):
        digest(Dying(15), "stopped")
    rest = Dying(0)
    assert digest(rest, "stopped") == whole
    assert len(rest.calls) == 18 - 12


def test_a_teacher_changes_what_is_learned(tmp_path):
    def digest(folder, loss=None, **inputs):
        return artifact.digest(run(stage(loss=loss), tmp_path / folder, **inputs).artifact)

    alone, taught = digest("a"), digest("b", Hinton(), teacher=start())
    assert alone != taught
    assert digest("c", Hinton(alpha=0.0), teacher=start()) == alone
    with pytest.raises(UserError, match="a distillation loss needs a teacher"):
        digest("d", Hinton())


def test_weights_that_diverge_are_no_model(tmp_path):
    optimizer = partial(torch.optim.SGD, lr=1e9)
    with pytest.raises(CheckFailedError, match=r"NaN or infinity|is not finite at step"):
        run(stage(optimizer=optimizer), tmp_path)


def test_a_model_without_layers_to_quantize_is_the_users_mistake(tmp_path):
    given = replace(start(), model=nn.Sequential(nn.Flatten(), nn.Dropout()))
    with pytest.raises(UserError, match="qat found no layer it can quantize"):
        run(stage(), tmp_path, given)


def test_order_words_and_passes():
    weights, both = stage(), stage(activation=Lsq(), loss=Hinton())
    assert isinstance(both, Stage)
    assert weights.needs == {TRAINED}
    assert weights.adds == {WEIGHT_QUANTIZED}
    assert both.adds == both.destroys == {WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED}
    assert weights.passes(1000) == (2000, 0)
    assert both.passes(1000) == (2000, 2 * 48)  # teachers are counted by who knows them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 33}, r"bits must be an integer in \[2, 8\], got 33"),
        ({"activation_bits": 3}, r"activation_bits must be an integer in \[4, 8\], got 3"),
        ({"calibration_images": 0}, "calibration_images must be an integer of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be a number above 0, got 0"),
        ({"label_smoothing": 1}, r"label_smoothing must be a number in \[0, 1\), got 1"),
        ({"weight": Pact()}, "weight must be a trained weight quantizer, got Pact"),
        ({"activation": MinMax()}, "activation must be a trained activation quantizer, got M"),
        ({"weight": Nearest(MinMax())}, "weight must be a trained weight quantizer, got Near"),
        ({"ranges": Lsq()}, "ranges must be an observer, got Lsq"),
        ({"loss": "hinton"}, "loss must be a distillation loss, got 'hinton'"),
    ],
)
def test_refuses_in_one_line(options, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        replace(stage(), **options)
    assert "\n" not in str(error.value)


def one_rank(rank: int, folder: str):
    ctx = replace(context(folder), runtime=Runtime(devices=2))
    made = stage(activation=Lsq(), loss=Hinton())
    result = made.run({"model": masked(), "teacher": start()}, ctx).artifact
    return (artifact.digest(result), result.model(images()).tolist())


@pytest.mark.long
def test_two_ranks_end_with_identical_tensors(tmp_path):
    results = on_two_ranks(one_rank, tmp_path, str(tmp_path))
    assert results[0] == results[1]
    alone = run(stage(loss=Hinton()), tmp_path / "alone", masked(), teacher=start())
    assert alone.artifact.model(images()).tolist() != results[0][1]


def test_layers_in_float_that_are_trained_are_said_to_be(tmp_path):
    outcome = run(stage(rules=[{"layers": "grouped", "bits": None}]), tmp_path, start())
    rows = {row.layer: row for row in outcome.coverage}
    assert (rows["grouped"].touched, rows["grouped"].total) == (8, 8)
    assert rows["grouped"].detail.endswith("; trained")
    assert "trained" not in rows["stem"].detail

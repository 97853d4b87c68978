"""What teachers give: looked up where that changes nothing, in the precision that the rule says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core.types import (
    ACTIVATION_QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    Runtime,
)
from compressbench.data.digits import Digits
from compressbench.models.small_cnn import SmallCnn
from compressbench.training.distill import Distill
from compressbench.training.losses.attention import Attention
from compressbench.training.losses.hinton import Hinton
from compressbench.training.losses.mixed import Mixed
from compressbench.training.teaching import teachers as module
from compressbench.training.teaching.teachers import (
    ANSWERS,
    LookUp,
    Teachers,
    dtype_for,
    teacher_outputs,
)

BOTH = Mixed({"kd": Hinton(), "at": Attention()})
CPU = torch.device("cpu")
FEW = Digits(0.4, 0.45, max_shift=0)
IMAGES = len(FEW.split("train"))


class Watched(nn.Module):
    """A model that counts the images it sees; copies count into the same list."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, _Shared()

    def forward(self, inputs):
        self.seen.append(len(inputs))
        return self.model(inputs)


class _Shared(list):
    def __deepcopy__(self, memo):
        return self


def cnn(width=4, seed=0):
    torch.manual_seed(seed)
    return SmallCnn([1, 8, 8], 10, width=width).eval()


def artifact(model):
    return Artifact(model, {}, (), frozenset({TRAINED}))


def context(folder, data=None, **runtime) -> Context:
    return Context(data or FEW, Runtime(**runtime), 5, folder, instantiate)


def distil(folder, data=None, epochs=2.0, loss=BOTH, teacher=None, **options):
    sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    inputs = {"model": artifact(cnn()), "teacher": artifact(teacher or cnn(8, 1))}
    made = replace(context(folder, data), **options)
    return Distill(loss, epochs=epochs, batch_size=32, optimizer=sgd).run(inputs, made)


def weights(outcome):
    return artifacts.digest(replace(outcome.artifact, edits=()))


def test_a_looked_up_block_is_the_forward_pass_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    model, made = cnn(8), context(tmp_path)
    teachers = Teachers([model], {"t0": "blocks.1"}, torch.float32)
    table = LookUp(teachers, made)
    split = made.data.split("train")
    rows = torch.randperm(IMAGES)[:37]
    found = table(rows)
    for place, row in enumerate(rows.tolist()):
        start = row // module.BLOCK * module.BLOCK
        block = made.data.prepare(split.inputs[start : start + module.BLOCK])
        with torch.no_grad():
            logits = model(block)
        features = model.blocks[1](_features_before(model, block)).detach()
        assert torch.equal(found[ANSWERS][place], logits[row - start])
        assert torch.equal(found["t0"][place], features[row - start])


def _features_before(model, block):
    """What the second group of blocks of `SmallCnn` gets."""
    caught = []
    handle = model.blocks[1].register_forward_pre_hook(lambda m, args: caught.append(args[0]))
    with torch.no_grad():
        model(block)
    handle.remove()
    return caught[0]


def test_ranks_share_the_blocks_and_their_sum_is_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 32)
    teachers = Teachers([cnn(8), cnn(6, 3)], {}, torch.float32)
    whole = LookUp(teachers, context(tmp_path)).tables[ANSWERS]
    parts = []
    monkeypatch.setattr(module, "world_size", lambda: 3)
    monkeypatch.setattr(module, "sum_over_ranks", lambda table: parts.append(table) or table)
    for number in range(3):
        monkeypatch.setattr(module, "rank", lambda n=number: n)
        LookUp(teachers, context(tmp_path))
    assert torch.equal(sum(parts), whole)
    assert all((part == 0).all(1).sum() > IMAGES // 2 for part in parts)


@dataclass(frozen=True)
class Drawing(Digits):
    """Augmentation that draws and, this time, changes nothing."""

    def augment(self, inputs, generator):
        torch.rand(1, generator=generator)
        return inputs


@dataclass(frozen=True)
class Turning(Digits):
    """Augmentation that changes images without drawing."""

    def augment(self, inputs, generator):
        return inputs.flip(0)


@pytest.mark.parametrize(
    ("data", "looks", "bound", "how"),
    [
        (FEW, IMAGES + 1, 2**20, f"once for each of {IMAGES:,} images"),
        (FEW, IMAGES, 2**20, r"at every step \([\d,]+ samples drawn from [\d,]+ images\)"),
        (FEW, 9999, 2**12, r"a cache would take .* kB, more than 4\.10 kB\)"),
        (Digits(max_shift=1), 9999, 2**20, r"at every step \(training images are augmented\)"),
        (Drawing(max_shift=0), 9999, 2**20, "training images are augmented"),
        (Turning(max_shift=0), 9999, 2**20, "training images are augmented"),
    ],
)  # fmt: skip
def test_the_choice_and_the_line_that_says_it(tmp_path, monkeypatch, data, looks, bound, how):
    monkeypatch.setattr(module, "LOOK_UP_BYTES", bound)
    model, made = cnn(8), context(tmp_path, data)
    give, line = teacher_outputs(Teachers([model], {}, torch.float32), looks, made)
    assert re.match("teacher: float32, .*" + how, line)
    rows = torch.tensor([5, 70, 3])
    inputs = data.prepare(data.split("train").inputs[rows])
    with torch.no_grad():
        expected = model(inputs)
    torch.testing.assert_close(give(inputs, rows)[ANSWERS], expected)
    stranger = give(torch.zeros_like(inputs), rows)[ANSWERS]
    assert torch.allclose(stranger, expected, atol=1e-4) == ("once" in how)


def test_a_fit_learns_the_same_and_asks_the_teacher_once(tmp_path, monkeypatch):
    teacher = Watched(cnn(8, 1))
    fast = distil(tmp_path / "a", epochs=2, teacher=teacher, loss=Hinton())
    asked = sum(teacher.seen)
    monkeypatch.setattr(module, "LOOK_UP_BYTES", 0)
    slow = distil(tmp_path / "b", epochs=2, teacher=teacher, loss=Hinton())
    assert asked <= IMAGES + 4
    assert sum(teacher.seen) - asked >= 2 * (IMAGES // 32 * 32)
    assert fast.history["train/loss"] == pytest.approx(slow.history["train/loss"], rel=1e-4)
    for ours, theirs in zip(
        fast.artifact.model.parameters(), slow.artifact.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
    assert "once for each" in fast.notes[0]
    assert "at every step" in slow.notes[0]


def test_a_stopped_fit_with_looked_up_features_ends_on_the_same_bits(tmp_path):
    class Stopped(BaseException):
        pass

    def stop(done, total, text):
        if text.startswith("loss") and done == total:
            raise Stopped

    whole = distil(tmp_path / "whole")
    with pytest.raises(Stopped):
        distil(tmp_path / "broken", progress=stop, checkpoint_seconds=0.0)
    assert (tmp_path / "broken" / "fit.ckpt").exists()
    assert weights(distil(tmp_path / "broken")) == weights(whole)


def test_the_rule_of_precision(monkeypatch):
    for supported, half in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=supported: found)
        assert dtype_for(torch.device("cuda"), {TRAINED}) is half
        for grids in (WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED):
            assert dtype_for(torch.device("cuda"), {TRAINED, grids}) is torch.float32
        assert dtype_for(CPU, {TRAINED}) is torch.float32


def test_half_precision_is_of_the_teacher_alone_and_gives_float32():
    model, inputs = cnn(8), torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        exact = model(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(inputs)
    layers = {"t0": "blocks.1"}
    found = Teachers([model], layers, torch.bfloat16)(inputs)
    assert half.dtype is torch.bfloat16
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert torch.equal(found[ANSWERS], half.float())
    assert not torch.equal(found[ANSWERS], exact)
    torch.testing.assert_close(found[ANSWERS], exact, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):  # the student's training
        found = Teachers([model], layers, torch.float32)(inputs)
    assert torch.equal(found[ANSWERS], exact)

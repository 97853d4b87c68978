"""Learning from a teacher: which layers are compared, what is trained, what is left behind."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core.errors import UserError
from compressbench.core.types import TRAINED, Artifact, Context, Runtime
from compressbench.data.batches import batches
from compressbench.data.digits import Digits
from compressbench.models.mlp import Mlp
from compressbench.models.resnet import ResNet
from compressbench.models.small_cnn import SmallCnn
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.qat import QuantizeAware
from compressbench.quantization.trained.lsq import Lsq
from compressbench.training.distill import Distill
from compressbench.training.finetune import Finetune
from compressbench.training.fits.schedule import Schedule
from compressbench.training.losses.attention import Attention
from compressbench.training.losses.crd import Crd
from compressbench.training.losses.fitnets import FitNets
from compressbench.training.losses.hinton import Hinton
from compressbench.training.losses.mixed import Mixed
from compressbench.training.losses.rkd import Rkd
from compressbench.training.losses.similarity import Similarity
from compressbench.training.teaching.features import pair, resolutions, shapes
from compressbench.training.teaching.objective import lesson
from tests.quantization.preparation_zoo import trained

SPEC = Digits().spec
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ONCE, ROWS = Schedule(epochs=1, batch_size=32, optimizer=SGD), torch.arange(16)


def cnn(width=4, seed=0) -> Artifact:
    torch.manual_seed(seed)
    return Artifact(SmallCnn([1, 8, 8], 10, width=width).eval(), {}, (), frozenset({TRAINED}))


def context(folder, **runtime) -> Context:
    return Context(Digits(), Runtime(**{"max_batches": 4} | runtime), 5, folder, instantiate)


def distill(loss, **options) -> Distill:
    return Distill(loss, **{"epochs": 1, "batch_size": 32, "optimizer": SGD} | options)


def run(loss, folder, student=None, **teachers):
    inputs = {"model": student or cnn(), **(teachers or {"teacher": cnn(8, 1)})}
    return distill(loss).run(inputs, context(folder))


def weights(outcome):
    return artifacts.digest(replace(outcome.artifact, edits=()))


def test_the_last_layer_of_each_resolution_is_found():
    example = torch.zeros(2, 3, 32, 32)
    small = shapes(ResNet([3, 32, 32], 10, 8, 8), example)
    assert resolutions(small) == {(32, 32): "layer1", (16, 16): "layer2", (8, 8): "layer3"}
    large = shapes(SmallCnn([3, 32, 32], 10), example)
    assert pair(Attention(), small, large) == [
        ("layer1", "blocks.0"), ("layer2", "blocks.1"), ("layer3", "blocks.2")]  # fmt: skip
    assert pair(FitNets(), small, large) == [("layer2", "blocks.1")]
    assert pair(Rkd(), small, large) == pair(Similarity(), small, large) == [("layer3", "blocks.2")]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (FitNets({"blocks.0": "blocks.1"}), r"from blocks.1: \[4, 8, 8\] .* \[8, 4, 4\]"),
        (Attention({"blocks.7": "blocks.1"}), "the student has no layer 'blocks.7'; the nearest"),
        (Attention({"blocks.1": "trunk"}), "the teacher has no layer 'trunk'"),
        (Mixed({"at": Attention({"nix": "blocks.1"})}), "loss at: layers: the student"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_compared_are_refused_before_training(loss, message):
    with pytest.raises(UserError, match=message):
        distill(loss).check_teachers(cnn().model, [cnn(4).model], SPEC)


def test_models_without_a_resolution_in_common_are_refused():
    with pytest.raises(UserError, match=r"no resolution in common \(none and 8x8, 4x4, 2x2\)"):
        distill(Rkd()).check_teachers(Mlp([1, 8, 8], 10).eval(), [cnn().model], SPEC)
    distill(Hinton()).check_teachers(Mlp([1, 8, 8], 10).eval(), [cnn().model] * 2, SPEC)


def test_the_first_loss_equals_its_parts_computed_by_hand(tmp_path):
    """Hinton's and attention's, from the features that a plain forward pass gives."""
    student, teacher = cnn(), cnn(8, 1)
    both = Mixed({"kd": Hinton(), "at": Attention(weight=7.0)})
    made, data = context(tmp_path), Digits()
    inputs, targets = next(iter(batches(data, "train", 16)))

    def features(model):
        found, x = [], inputs
        for entry, blocks in zip(model.entries, model.blocks, strict=True):
            x = blocks(F.relu(entry(x)))
            found.append(x)
        return found, model(inputs)

    model = student.model
    with lesson(model, {"teacher": teacher}, both, ONCE, made) as found:
        loss, logits = found(model, inputs, targets, ROWS)
    (ours, own), (theirs, answers) = features(model), features(teacher.model)
    attention = sum(Attention()(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(logits, own)
    expected = {"kd": Hinton()(own, answers, targets), "at": 7.0 * attention}
    for name, value in expected.items():
        assert torch.allclose(found.terms[name], value), name
    assert torch.allclose(loss, sum(expected.values()))
    assert not any(m._forward_hooks for m in [*model.modules(), *teacher.model.modules()])


def test_without_a_loss_between_outputs_the_labels_count(tmp_path):
    student, teacher = cnn(), cnn(8, 1)
    inputs, targets = next(iter(batches(Digits(), "train", 16)))
    with lesson(student.model, {"teacher": teacher}, Rkd(), ONCE, context(tmp_path)) as found:
        found(student.model, inputs, targets, ROWS)
    assert torch.allclose(found.terms["labels"], F.cross_entropy(student.model(inputs), targets))


def test_each_term_is_logged_and_they_add_up(tmp_path):
    terms = {
        "kd": Hinton(),
        "at": Attention(),
        "hints": FitNets(),
        "rkd": Rkd(),
        "sp": Similarity(),
    }
    history = run(Mixed(terms), tmp_path).history
    parts = [history[f"train/{name}"][0] for name in terms]
    assert all(part > 0 for part in parts)
    assert history["train/loss"][0] == pytest.approx(sum(parts), rel=1e-5)
    assert "train/hinton" not in run(Hinton(), tmp_path / "alone").history


def test_both_embeddings_of_crd_are_trained_and_the_labels_get_there(tmp_path):
    student, teacher, loss = cnn(), cnn(8, 1), Crd(dimensions=6, weight=2.0)
    inputs, targets = next(iter(batches(Digits(), "train", 16)))
    with lesson(student.model, {"teacher": teacher}, loss, ONCE, context(tmp_path)) as found:
        found(student.model, inputs, targets, ROWS)[0].backward()
        (embed,) = found.connectors
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.parameters())
        features = [
            embed(_last(student.model, inputs)),
            embed.of_teacher(_last(teacher.model, inputs)),
        ]
        torch.testing.assert_close(found.terms["crd"], 2.0 * loss(*features, targets))


def _last(model, inputs):
    """The last map of a `SmallCnn`."""
    caught = []
    handle = model.blocks[2].register_forward_hook(lambda m, args, output: caught.append(output))
    model(inputs)
    handle.remove()
    return caught[0]


def test_a_projection_is_trained_and_left_behind(tmp_path):
    student, teacher = cnn(), cnn(8, 1)
    loss = FitNets(weight=3.0)
    with lesson(student.model, {"teacher": teacher}, loss, ONCE, context(tmp_path)) as found:
        before = deepcopy(found.connectors[0].state_dict())
        inputs, targets = next(iter(batches(Digits(), "train", 16)))
        found(student.model, inputs, targets, ROWS)[0].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.parameters())
        assert before["weight"].shape == (16, 8, 1, 1)
    made = run(loss, tmp_path)
    assert set(made.artifact.model.state_dict()) == set(student.model.state_dict())


def test_every_term_changes_what_is_learned(tmp_path):
    terms = (Attention(), FitNets(), Rkd(), Similarity(), Crd())
    losses = [Hinton(), *(Mixed({"kd": Hinton(), "more": more}) for more in terms)]
    inputs, targets = next(iter(batches(Digits(), "train", 16)))
    gradients = set()
    for loss in losses:
        model, teacher = cnn().model, cnn(8, 1)
        with lesson(model, {"teacher": teacher}, loss, ONCE, context(tmp_path)) as found:
            found(model, inputs, targets, ROWS)[0].backward()
        gradients.add(float(sum(p.grad.abs().sum() for p in model.parameters())))
    assert len(gradients) == len(losses)


def test_a_resumed_lesson_ends_on_the_same_bits(tmp_path):
    """The projection is part of what a fit saves."""

    class Stopped(BaseException):
        pass

    def stop(done, total, text):
        if done == total:
            raise Stopped

    loss, inputs = FitNets(), {"model": cnn(), "teacher": cnn(8, 1)}
    two = replace(distill(loss), epochs=2)
    whole = two.run(inputs, context(tmp_path / "whole"))
    broken = replace(context(tmp_path / "broken"), checkpoint_seconds=0.0)
    with pytest.raises(Stopped):
        two.run(inputs, replace(broken, progress=stop))
    assert weights(two.run(inputs, broken)) == weights(whole)


def test_the_answers_of_several_teachers_are_averaged(tmp_path):
    one, two = cnn(8, 1), cnn(6, 2)
    with lesson(
        cnn().model, {"teacher": one, "teacher.1": two}, Hinton(), ONCE, context(tmp_path)
    ) as found:
        inputs, targets = next(iter(batches(Digits(), "train", 16)))
        model = cnn().model
        loss, logits = found(model, inputs, targets, ROWS)
    mean = (one.model(inputs) + two.model(inputs)) / 2
    assert torch.allclose(loss, Hinton()(logits, mean, targets))
    with pytest.raises(UserError, match="features of several teachers"):
        run(Rkd(), tmp_path, **{"teacher": one, "teacher.1": two})
    with pytest.raises(UserError, match="features of several teachers"):
        distill(Mixed({"kd": Hinton(), "at": Attention()})).check_teachers(
            model, [model, model], SPEC
        )


def test_finetuning_with_a_teacher_keeps_the_zeros_and_follows_it(tmp_path):
    teacher = Artifact(trained(), {}, (), frozenset({TRAINED}))
    pruned = Prune(Magnitude(), 0.5).run({"model": teacher}, context(tmp_path)).artifact
    gentle = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    options = {"epochs": 2, "batch_size": 32, "optimizer": gentle}
    loss = Mixed({"kd": Hinton(alpha=1.0), "at": Attention(weight=1.0)})
    taught = Finetune(**options, loss=loss).run(
        {"model": pruned, "teacher": teacher}, context(tmp_path / "taught", max_batches=None)
    )
    alone = Finetune(**options).run(
        {"model": pruned}, context(tmp_path / "alone", max_batches=None)
    )
    artifacts.check(taught.artifact)
    inputs, targets = next(iter(batches(Digits(), "validation", 256)))
    with torch.no_grad():
        answers = teacher.model(inputs)
        far, near = (
            Hinton(alpha=1.0)(m.artifact.model(inputs), answers, targets) for m in (alone, taught)
        )
    assert near < 0.7 * far
    with pytest.raises(UserError, match="label_smoothing=0\\.1 has no effect with a loss"):
        Finetune(**options, loss=loss, label_smoothing=0.1)


def test_training_on_grids_takes_features_too(tmp_path):
    inputs = {"model": cnn(), "teacher": cnn()}
    loss = Mixed({"kd": Hinton(), "at": Attention()})
    still = partial(torch.optim.SGD, lr=1e-9)
    stage = QuantizeAware(
        Lsq(), Lsq(), MinMax(), epochs=1, batch_size=32, optimizer=still, loss=loss, bits=8
    )
    outcome = stage.run(inputs, context(tmp_path))
    artifacts.check(outcome.artifact)
    other = replace(distill(loss), optimizer=still)
    strange = other.run({"model": cnn(), "teacher": cnn(4, 1)}, context(tmp_path / "strange"))
    # Its own float self differs by the rounding, and by BatchNorm's statistics of the batch.
    assert 0 < outcome.history["train/at"][0] < strange.history["train/at"][0]


def test_a_loss_that_is_none_is_refused():
    with pytest.raises(UserError, match="loss must be a distillation loss"):
        distill(3)

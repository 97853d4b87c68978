"""The figures of a file, against what can be counted by hand or by another library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import zstandard
from sklearn import metrics

from compressbench.core import activation_quantizers
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import DataSpec
from compressbench.measure import agreement, kernels, latency, predictions, size
from compressbench.measure import figures as measure
from compressbench.tasks.choice import check_metric
from compressbench.tasks.classification import CLASSIFICATION

NAMES = {
    "size/onnx_bytes", "size/download_bytes", "size/params", "size/nonzero",
    "size/theoretical_bits", "compute/macs", "compute/integer_kernels", "latency/p50_ms",
    "latency/p95_ms", "latency/speedup", "val/accuracy", "val/accuracy_torch", "val/agreement",
}  # fmt: skip


def test_every_figure_of_a_quantized_file(exported, data):
    artifact, path = exported(True)
    _, baseline = exported(False)
    measured = measure.measure_model(artifact, path, baseline, data)
    figures = measured.figures
    assert set(figures) == NAMES
    assert figures["size/onnx_bytes"] == path.stat().st_size
    packed = zstandard.ZstdCompressor(level=19).compress(path.read_bytes())
    assert figures["size/download_bytes"] == len(packed)
    assert figures["size/params"] == 18 + 2 + 32 + 4
    assert figures["size/nonzero"] == 18 + 2 + 8  # the eye, twice; no bias in fc
    assert figures["compute/macs"] == 64 * 2 * 9 + 32
    assert figures["compute/integer_kernels"] == 2  # QLinearConv, QGemm
    assert 0 < figures["latency/p50_ms"] <= figures["latency/p95_ms"] < 50
    session = onnxruntime.InferenceSession(path)
    logits = session.run(None, {"input": data.prepare(data.split("validation").inputs).numpy()})[0]
    right = (logits.argmax(1) == data.split("validation").targets.numpy()).mean()
    assert figures["val/accuracy"] == pytest.approx(right)
    assert right > 0.9
    assert not [text for text in measured.warnings if "guessing" in text]


def test_the_baseline_against_itself(exported, data):
    artifact, path = exported(False)
    figures = measure.measure_model(artifact, path, path, data).figures
    assert figures["latency/speedup"] == 1.0
    assert figures["val/agreement"] == 1.0
    assert figures["compute/integer_kernels"] == 0
    stored = 18 + 2 + 32  # the bias of fc is zero and not stored
    assert 32 * stored <= figures["size/theoretical_bits"] <= 32 * stored + 64 * 8


def test_theoretical_bits_follow_the_grid_not_the_storage(exported):
    artifact, path = exported(True)
    at_8 = size.theoretical_bits(artifact, path)
    grid = {n: {**g, "bits": 5} for n, g in artifact.edits[0]["layers"].items()}
    narrower = replace(artifact, edits=({**artifact.edits[0], "layers": grid}, artifact.edits[1]))
    assert at_8 - size.theoretical_bits(narrower, path) == 3 * (18 + 32)


def test_test_split_is_read_by_test_figures_only(exported, data):
    artifact, path = exported(True)

    class Guarded(type(data)):
        def split(self, name):
            assert name != "test", "the test split was read"
            return super().split(name)

    measure.measure_model(artifact, path, path, Guarded())
    with pytest.raises(AssertionError, match="was read"):
        measure.test_figures(path, path, Guarded())
    figures = measure.test_figures(path, path, data)
    logits = predictions.predict_torch(artifact.model, data, "test")
    right = (logits.argmax(1) == data.split("test").targets).double().mean()
    assert figures == {"test/accuracy": pytest.approx(float(right), abs=0.02)}


def test_a_file_that_decides_otherwise_is_refused(exported, data):
    artifact, path = exported(False)
    other = type(artifact.model)().eval()
    with torch.no_grad():
        other.fc.weight.copy_(other.fc.weight.flip(0))
    with pytest.raises(CheckFailedError, match=r"agree on 0\.\d+ .*first at image 0: file \["):
        measure.measure_model(replace(artifact, model=other), path, path, data)


def test_nan_in_the_logits_is_refused(exported, data):
    artifact, path = exported(False)
    other = type(artifact.model)().eval()
    with torch.no_grad():
        other.fc.bias[0] = float("nan")
    with pytest.raises(CheckFailedError, match="NaN"):
        measure.measure_model(replace(artifact, model=other), path, path, data)


def test_chance_accuracy_is_said(exported, data):
    class Blind(type(data)):
        def split(self, name):
            whole = super().split(name)
            return replace(whole, targets=whole.targets.roll(1))  # the model cannot know these

    artifact, path = exported(False)
    measured = measure.measure_model(artifact, path, path, Blind())
    assert any("guessing" in text for text in measured.warnings)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", metrics.accuracy_score),
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("f1", lambda targets, chosen: metrics.f1_score(targets, chosen, average="macro")),
    ],
)
def test_scores_are_those_of_scikit_learn(name, reference):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=generator)
    targets = torch.multinomial(torch.tensor([5.0, 1, 1, 2, 3]), 300, True, generator=generator)
    logits[torch.arange(300), targets] += 1
    expected = reference(targets.numpy(), logits.argmax(1).numpy())
    assert CLASSIFICATION.score(name, logits, targets) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_metric_names_the_choices():
    spec = DataSpec("x", (3,), ("a", "b"), (), (), "acuracy")
    with pytest.raises(UserError, match=r"accuracy, balanced_accuracy, f1 for .*, got 'acuracy'"):
        check_metric(spec)


def test_near_ties_and_one_image_are_left_to_rounding():
    model = torch.tensor([[10.0, 0.0, 9.99]]).repeat(1000, 1)
    tied = model.clone()
    tied[:, 2] += 0.02
    agreement.check_agreement(CLASSIFICATION, tied, model, True)
    with pytest.raises(CheckFailedError):
        agreement.check_agreement(CLASSIFICATION, tied, model, False)
    assert agreement.agreement(CLASSIFICATION, tied, model) == 0.0
    wrong = model.clone()
    wrong[:5, 1] = 99.0
    agreement.check_agreement(CLASSIFICATION, wrong, model, True)
    wrong[:6, 1] = 99.0
    with pytest.raises(CheckFailedError, match=r"0\.9940 .* must be at least 0\.995"):
        agreement.check_agreement(CLASSIFICATION, wrong, model, True)
    agreement.check_agreement(
        CLASSIFICATION, wrong[5:8], model[5:8], False
    )  # one image is always allowed


def test_what_activations_lost_to_rounding_is_left_to_rounding():
    """Numbers, not flipped classes: a net at chance whose logits are all close together."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(360, 10, generator=generator)
    noise = 0.05 * torch.randn(2, 360, 10, generator=generator)
    model, file = exact + noise[0], exact + noise[1]
    with pytest.raises(CheckFailedError, match="agree on"):
        agreement.check_agreement(CLASSIFICATION, file, model, True)
    agreement.check_agreement(CLASSIFICATION, file, model, True, lambda: [exact])
    worse = exact + 4 * noise[1]
    with pytest.raises(CheckFailedError, match="agree on"):
        agreement.check_agreement(CLASSIFICATION, worse, model, True, lambda: [exact])


def test_logits_that_are_off_are_refused_where_no_class_differs():
    model = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    for quantized, otherwise in ((False, None), (True, lambda: [model + 1e-3])):
        with pytest.raises(CheckFailedError, match=r"off by .* on the median .*first at image 0"):
            agreement.check_agreement(CLASSIFICATION, 1.1 * model, model, quantized, otherwise)


def test_a_quantized_file_with_another_bias_is_refused_though_no_class_differs(exported, data):
    """The error is beyond what rounding explains, and all logits have it alike."""
    artifact, path = exported(True)
    bias = artifact.model.fc.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.add_(0.5)
    try:
        with pytest.raises(CheckFailedError, match=r"off by 0\.5 on the median"):
            measure.measure_model(artifact, path, path, data)
    finally:
        with torch.no_grad():
            bias.copy_(before)
    measure.measure_model(artifact, path, path, data)


def test_activations_are_rounded_again_afterwards(exported, data):
    model = exported(True)[0].model
    inputs = data.prepare(data.split("validation").inputs)
    rounded = model(inputs)
    with activation_quantizers.activations_in_float(model):
        exact = model(inputs)
    assert not torch.equal(rounded, exact)
    assert torch.equal(model(inputs), rounded)
    plain = type(model)().eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    assert torch.equal(plain(inputs), exact)


def test_kernels_tell_integers_from_floats(exported):
    assert kernels.integer_kernels(exported(True)[1]) == {"QLinearConv": 1, "QGemm": 1}
    found = kernels.integer_kernels(exported(False)[1])
    assert not set(found) & set(kernels.INTEGER)
    assert sum(found.values()) == 2


def test_latency_tells_a_slow_file_from_a_fast_one(exported, data):
    _, path = exported(False)
    one = np.zeros((1, 1, 8, 8), np.float32)
    timed = latency.measure_latency(path, path, one, seconds=0.05)
    assert timed.pairs >= latency.MIN_PAIRS
    assert 0 < timed.p50_ms <= timed.p95_ms
    calls = iter(range(10**6))
    slow = [latency.alternate(lambda: sum(range(20000)), lambda: next(calls), 0.05)]
    assert np.median([a / b for a, b in slow[0]]) > 5

"""Every kind of model: pruned both ways, finetuned a step, exported, run, stored and read back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from compressbench.core import artifact, edits
from compressbench.core.types import Context, Runtime
from compressbench.export.onnx import export_onnx
from compressbench.measure.macs import macs as exported_macs
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_channels import PruneChannels
from compressbench.store.entries import Store
from compressbench.training.finetune import Finetune
from tests.pruning.channel_zoo import (
    SPEC,
    ZOO,
    CountedHeads,
    Mobile,
    Noise,
    build,
    kept_macs,
    made,
    trained,
)

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Moved(Noise):
    def augment(self, inputs, generator):
        return inputs.flip(-1)


SHORT = (Mobile, CountedHeads)  # exports take seconds each
KINDS = [k if k in SHORT else pytest.param(k, marks=pytest.mark.long) for k in ZOO]


@pytest.mark.parametrize("kind", KINDS)
def test_from_pruning_to_a_file_that_runs_and_back(kind, tmp_path: Path):
    own = Context(Moved(), Runtime(max_batches=1), 3, tmp_path / "scratch", build)
    start = trained(made(kind))
    narrow = PruneChannels(L2(), 0.4).run({"model": start}, own).artifact
    sparse = Prune(Magnitude(), sparsity=0.5).run({"model": narrow}, own).artifact
    tuned = Finetune(epochs=1, batch_size=16, optimizer=SGD).run({"model": sparse}, own).artifact
    artifact.check(tuned)
    weights = dict(sparse.model.named_parameters())
    assert any(not torch.equal(p, weights[n]) for n, p in tuned.model.named_parameters())
    for layer in edits.masked_layers(tuned.model).values():
        assert not bool(layer.weight[~layer.weight_mask].any())

    inputs = torch.randn(3, *SPEC.input_shape)
    file = tmp_path / "model.onnx"
    export_onnx(tuned, own.data, file)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        expected = tuned.model(inputs).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert exported_macs(file) == kept_macs(tuned.model) < kept_macs(start.model)

    store = Store(tmp_path / "store")
    final = replace(tuned, key="k")
    entry, hit = store.get_or_build(
        {"kind": "stage", "model": kind.__name__},
        lambda folder: (artifact.save(final, folder), {})[1],
    )
    loaded = artifact.load(entry.folder, build, "k")
    assert not hit
    assert artifact.digest(loaded) == artifact.digest(final)
    assert torch.equal(loaded.model(inputs), final.model.eval()(inputs))

"""Stages that are no fit keep what they have measured: killed again and again, they still end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressbench.analysis.sensitivity.hessian_trace import HessianTrace
from compressbench.analysis.sensitivity.loss_increase import LossIncrease
from compressbench.core import artifact
from compressbench.core.journal import Journal
from compressbench.core.types import Context, Stage
from compressbench.pruning.criteria.grasp import Grasp
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.criteria.sparsegpt import SparseGpt
from compressbench.pruning.criteria.taylor import Taylor
from compressbench.pruning.criteria.wanda import Wanda
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_channels import PruneChannels
from compressbench.pruning.sensitivity import SensitivityCurves
from compressbench.quantization.mixed_precision import Allocation
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.adaround import AdaRound
from compressbench.quantization.rounding.brecq import Brecq
from compressbench.quantization.rounding.gptq import Gptq
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.training.recalibrate import Recalibrate
from tests.faults.killed import until_ended
from tests.quantization import quantized_net

SMALL = {"batchnorm_images": 32, "calibration_images": 32, "batch_size": 16}
CRITERION = {"images": 32, "batch_size": 16}
# stage, and after how many units a process is killed
QUICK = {
    "mixed precision": (
        lambda: Quantize(
            Nearest(MinMax()), MinMax(), allocation=Allocation(LossIncrease(32, 16), 0.8), **SMALL
        ), 13),
    "gptq": (lambda: Quantize(Gptq(MinMax(), 32), correct_bias=True, batchnorm="keep", **SMALL), 4),
    "sensitivity": (lambda: SensitivityCurves(L2(), (0.5, 0.9), images=32, batch_size=16), 9),
    "sparsegpt": (lambda: Prune(SparseGpt(32), 0.5, batchnorm="measure", batchnorm_images=32), 5),
    "wanda": (lambda: Prune(Wanda(**CRITERION), 0.5, batchnorm_images=32), 2),
    "recalibrate": (lambda: Recalibrate(600), 2),
}  # fmt: skip
SLOW = {
    "mixed precision by curvature": (
        lambda: Quantize(
            AdaRound(MinMax(), 32, 6), allocation=Allocation(HessianTrace(32, 8, 16), 0.8), **SMALL
        ), 13),
    "adaround": (lambda: Quantize(AdaRound(MinMax(), 32, 6), Mse(), **SMALL), 7),
    "brecq": (lambda: Quantize(Brecq(Mse(), 32, 8, 8), **SMALL), 7),
    "prune by sensitivity": (
        lambda: Prune(Taylor(**CRITERION), 0.5, scope="sensitivity", batchnorm_images=32), 10),
    "grasp": (lambda: Prune(Grasp(**CRITERION), 0.5, batchnorm_images=32), 2),
    "channels by sensitivity": (
        lambda: PruneChannels(L2(), 0.3, scope="sensitivity", round_to=2, batchnorm_images=32), 2),
}  # fmt: skip
STAGES = QUICK | SLOW


def bytes_of(made: artifact.Artifact) -> int:
    """As an exporter would count them, as far as the choice of bits needs it."""
    grids = [edit for edit in made.edits if edit["kind"] == "weight_grid"][-1]["layers"]
    sizes = [made.model.get_parameter(f"{name}.weight").numel() for name in grids]
    bits = [options["bits"] for options in grids.values()]
    return 100 + sum(size * width // 8 for size, width in zip(sizes, bits, strict=True))


def context(folder: Path) -> Context:
    kept = Journal.open(folder)
    return replace(
        quantized_net.context(),
        data=quantized_net.Noise(600),
        folder=folder,
        export_bytes=bytes_of,
        recall=lambda parts, compute: compute(kept.within(str(parts))),
        journal=kept,
    )


def run(stage: Stage, folder: Path) -> None:
    torch.set_num_threads(1)
    start = quantized_net.start()
    outcome = stage.run({"model": start}, context(folder))
    (folder / "digest.txt").write_text(f"{artifact.digest(outcome.artifact)} {outcome.tables}")


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory):
    """What PyTorch and SciPy load when they are first used, once for all processes forked here."""
    run(QUICK["mixed precision"][0](), tmp_path_factory.mktemp("loaded"))


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)]
)
def test_row_32_a_stage_that_is_killed_again_and_again_ends_as_undisturbed(name, tmp_path):
    make, every = STAGES[name]
    found = {}
    for place, killed_every in (("undisturbed", 0), ("killed", every)):
        folder = tmp_path / place
        folder.mkdir()
        found[place] = until_ended(lambda folder=folder: run(make(), folder), folder, killed_every)
    undisturbed, killed = found["undisturbed"], found["killed"]
    results = [(tmp_path / place / "digest.txt").read_text() for place in found]
    assert results[0] == results[1]
    kills = killed.lives - 1
    assert kills >= 2, "else nothing was interrupted"
    repeated = Counter(killed.units) - Counter(undisturbed.units)
    assert not Counter(undisturbed.units) - Counter(killed.units)
    assert set(repeated) <= set(undisturbed.units)
    assert repeated.total() <= kills, "of what was measured, only what was not kept is repeated"

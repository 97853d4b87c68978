"""Our static 8-bit file beside those of ONNX Runtime's own quantizer, made from the same float file
and the same calibration images.

python experiments/static_int8/compare.py --root CIFAR10_FOLDER --checkpoint resnet20.safetensors \
    --validation-rows rows.txt
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from compressbench.core.types import Data
from compressbench.data.calibration import training_images
from compressbench.engine.context import RunContext
from compressbench.engine.executor import run
from compressbench.engine.plan import Planned
from compressbench.engine.prepare import Prepared, prepare
from compressbench.measure.kernels import INTEGER, integer_kernels
from compressbench.measure.predictions import predict
from compressbench.measure.session import open_session, options
from compressbench.tasks.classification import class_score

STAGE = "recipe.stages.quantize"
RACES, ROUNDS = 7, 1000


class Reader:
    """The calibration images that our stage takes, one batch at a time, as the runtime asks."""

    def __init__(self, plan: Sequence[Planned], run_context: RunContext, folder: Path) -> None:
        job, stage = plan[-1].job, plan[-1].stage
        context = run_context.context(job, folder)
        images, size = job.config["calibration_images"], job.config["batch_size"]
        assert stage.adds
        self.batches = iter([b.numpy() for b in training_images(context, images, size)])

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def layout(where: Sequence[str], *more: str) -> Prepared:
    """The plan of the checkpoint and an 8-bit quantize stage."""
    from compressbench.config.compose import compose_config
    from compressbench.config.groups import config_folder
    from compressbench.config.run_config import RunConfig

    fixed = ["model=resnet20", "dataset=cifar10", "recipe=quantize", "trainer=cpu",
             "trainer.threads=1", "tracking=none", "name=study"]  # fmt: skip
    config = compose_config([*fixed, *where, *more], [config_folder()])
    return prepare(RunConfig.of(config))


def theirs(source: Path, target: Path, reader: Reader, form: str) -> Path:
    from onnxruntime import quantization as q

    ready = target.with_suffix(".ready.onnx")
    q.shape_inference.quant_pre_process(str(source), str(ready))
    q.quantize_static(
        str(ready), str(target), reader,
        quant_format=getattr(q.QuantFormat, form), per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        calibrate_method=q.CalibrationMethod.MinMax,
    )  # fmt: skip
    return target


def races(files: Mapping[str, Path], sample: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Latency of each file over that of the first, one median for each race.

    In every round of a race each file runs once, in random order, on one thread.
    """
    sessions = [open_session(path, options()) for path in files.values()]
    ratios = [_race(sessions, sample, random.Random(seed)) for seed in range(RACES)]
    return dict(zip(files, np.array(ratios).T, strict=True))


def _race(sessions: Sequence[Any], sample: NDArray[Any], order: random.Random) -> NDArray[Any]:
    seconds = np.zeros((ROUNDS, len(sessions)))
    for round_ in seconds:
        for number in order.sample(range(len(sessions)), len(sessions)):
            start = time.perf_counter()
            sessions[number].run(None, {"input": sample})
            round_[number] = time.perf_counter() - start
    ratios: NDArray[Any] = np.median(seconds / seconds[:, :1], axis=0)
    return ratios


def row(name: str, path: Path, data: Data, ratios: NDArray[Any]) -> str:
    """One line: accuracy over the test split, bytes, integer kernels, latency over float."""
    accuracy = class_score("accuracy", predict(path, data, "test"), data.split("test").targets)
    counts = integer_kernels(path)
    kernels = sum(counts.get(name, 0) for name in INTEGER)
    return (
        f"| {name} | {100 * accuracy:.2f} | {path.stat().st_size:,} | {kernels} | "
        f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--root", "--checkpoint", "--validation-rows"):
        parser.add_argument(name, required=True)
    chosen = parser.parse_args()
    where = [
        f"dataset.root={Path(chosen.root).resolve()}",
        f"dataset.validation_rows={Path(chosen.validation_rows).resolve()}",
        f"model.checkpoint={Path(chosen.checkpoint).resolve()}",
    ]
    prepared = layout(where)
    plan, run_context = prepared.plan, prepared.context
    baseline, ours = (step.files / "model.onnx" for step in run(plan, run_context))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"float": baseline, "compressbench": ours}
        for form in ("QDQ", "QOperator"):
            reader = Reader(plan, run_context, folder)
            files[f"ONNX Runtime, {form}"] = theirs(baseline, folder / f"{form}.onnx", reader, form)
        data = run_context.data
        sample = data.prepare(data.split("validation").inputs[:1]).numpy()
        ratios = races(files, sample)
        print("| file | test accuracy, % | bytes | integer kernels | latency over float |")
        print("|---|---|---|---|---|")
        for label, path in files.items():
            print(row(label, path, data, ratios[label]), flush=True)


if __name__ == "__main__":
    main()

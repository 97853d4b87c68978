"""Killed at each named point of the program; the same command then ends as if nothing had been.

The points are read from the source, so a new one is tested by being there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest

import compressbench
from compressbench.results.sweep_file import read_sweep
from tests.end_to_end.running import stages_in
from tests.faults import forked

pytestmark = pytest.mark.xdist_group("forked")

SOURCES = Path(compressbench.__file__).parent
POINTS = sorted(
    point
    for path in SOURCES.rglob("*.py")
    for point in re.findall(r'^ +reached\("([^"]+)"\)$', path.read_text(), re.M)
)
OF_SWEEPS = ("repeat", "study", "sweep", "trial", "worker")
OF_TRACKING = ("outbox", "tracking")
QUICK = ("fit.saved", "publish.manifest_written", "measure.measured", "run_folder.report_written")

SMALL = ("model=mlp", "trainer=debug", "trainer.threads=1", "checkpoint_seconds=0",
         "recipe.stages.train.epochs=3", "recipe.stages.finetune.epochs=2")  # fmt: skip
RUN = ("recipe=prune_then_quant", *SMALL)
SWEEP = ("-m", "recipe=prune", *SMALL, "tracking=none", "sampler@search.sampler=grid",
         "recipe.stages.prune.sparsity=choice(0.5,0.8)", "search.workers=1",
         "search.name=tiny")  # fmt: skip


def of(*groups: str) -> list[str]:
    return [point for point in POINTS if point.partition(".")[0] in groups]


def turn(point: str) -> int:
    """The first, second or third time that the program comes there, the same at every test."""
    return 1 + zlib.crc32(point.encode()) % 3


def kill(point, arguments, folder, store) -> forked.Ended:
    """Run until the point; for one that is not reached so often, until the first time."""
    ended, reached = forked.killed_at(point, turn(point), arguments, folder, store)
    if not reached:
        assert ended.code == 0, ended.err
        for path in folder.glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        ended, reached = forked.killed_at(point, 1, arguments, folder, store)
    assert reached, f"the program does not come to {point}"
    return ended


def contents(folder: Path) -> dict[str, str]:
    """The files that ship, and the model of every stage."""
    names = ("model.onnx", "model.onnx.zst", "model.json", "artifact/model.safetensors")
    files = {name: folder / name for name in names}
    return {n: hashlib.sha256(path.read_bytes()).hexdigest() for n, path in files.items()}


def models(store: Path) -> dict[str, str]:
    """Key -> digest of the model, of every stage in the store."""
    files = store.glob("entries/*/*/model.safetensors")
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def last_run(folder: Path) -> Path:
    return max(folder.glob("runs/*/*"))


def resume(arguments, folder, store) -> Path:
    """The same command again; the stages that are stored do not run again."""
    stored = set(stages_in(store))
    ended = forked.run(arguments, folder, store)
    assert ended.code == 0, ended.err
    run = last_run(folder)
    stages = json.loads((run / "report.json").read_text())["stages"]
    assert {stage["key"] for stage in stages if stage["hit"]} == stored
    assert "set aside" not in ended.err
    assert not list(store.glob("tmp/*"))
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run leaves that nobody kills: the files that ship, the model of every stage."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = resume([*RUN, "tracking=none"], folder, folder / "store")
    return contents(run), models(folder / "store")


def test_points_have_names_of_their_own():
    assert not [point for point, count in Counter(POINTS).items() if count > 1]
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    calls = sum(len(re.findall(r"(?<![\w.])reached\((?!self)", text)) for text in texts)
    assert calls == len(POINTS) + 2, "the function, its description, and a call a point"


@pytest.mark.long
def test_row_01_a_run_killed_again_and_again_goes_on(undisturbed, tmp_path):
    arguments, store = [*RUN, "tracking=none"], tmp_path / "store"
    for point in QUICK:
        ended, reached = forked.killed_at(point, 1, arguments, tmp_path, store)
        assert reached, point
        assert ended.code == -9
    run = resume(arguments, tmp_path, store)
    assert (contents(run), models(store)) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    of(*{p.partition(".")[0] for p in POINTS} - {*OF_SWEEPS, *OF_TRACKING}),
)
def test_row_01_a_run_killed_at_a_point_goes_on(point, undisturbed, tmp_path):
    arguments, store = [*RUN, "tracking=none"], tmp_path / "store"
    assert kill(point, arguments, tmp_path, store).code == -9
    run = resume(arguments, tmp_path, store)
    assert (contents(run), models(store)) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("point", of(*OF_TRACKING))
def test_row_01_mlflow_has_a_run_killed_at_a_point_once(point, undisturbed, tmp_path):
    from compressbench.tracking.mlflow_client import RUN_TAG, TrackingStore, client_of

    store = tmp_path / "store"
    assert kill(point, RUN, tmp_path, store).code in (0, -9), "the run, or what logs it"
    assert contents(resume(RUN, tmp_path, store)) == undisturbed[0]
    assert forked.run(["sync"], tmp_path, store).code == 0
    client = client_of(TrackingStore(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path.as_uri()))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len({run.data.tags[RUN_TAG] for run in found}) == len(found)
    assert "FINISHED" in {run.info.status for run in found}
    for run in found:
        if run.info.status == "FINISHED":
            steps = client.get_metric_history(run.info.run_id, "size/onnx_bytes")
            assert [metric.step for metric in steps] == [0, 1, 2, 3]


def trials_of(folder: Path) -> dict[int, tuple[object, ...]]:
    sweep = read_sweep(folder / "sweeps" / "tiny")
    return {
        t.number: (
            t.state, t.settings, t.figures["val/accuracy"], t.figures["size/download_bytes"],
            [repeat["test/accuracy"] for repeat in t.repeats],
        ) for t in sweep.trials
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed_sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    assert forked.run(SWEEP, folder, folder / "store").code == 0
    trials = trials_of(folder)
    assert [trial[0] for trial in trials.values()] == ["complete"] * 2
    return trials


@pytest.mark.long
@pytest.mark.parametrize("point", of(*OF_SWEEPS))
def test_row_01_a_sweep_killed_at_a_point_goes_on(point, undisturbed_sweep, tmp_path):
    store = tmp_path / "store"
    assert kill(point, SWEEP, tmp_path, store).code in (0, -9), "the supervisor, or its worker"
    before = sorted(tmp_path.glob("sweeps/tiny/trials/*/report.json"))
    written = [path.stat().st_mtime_ns for path in before]
    ended = forked.run(SWEEP, tmp_path, store)
    assert ended.code == 0, ended.err
    assert trials_of(tmp_path) == undisturbed_sweep
    assert [p.stat().st_mtime_ns for p in before] == written, "a finished trial ran again"
    assert not list(store.glob("tmp/*"))
    assert not (tmp_path / "sweeps" / "tiny" / "running").exists()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_row_01_kills_at_any_moment_cost_no_finished_stage(seed, undisturbed, tmp_path):
    """Over and over, each time after another while."""
    arguments, store, chance = [*RUN, "tracking=none"], tmp_path / "store", Random(seed)
    for _ in range(8):
        running = forked.start(arguments, tmp_path, store)
        running.process.join(chance.uniform(0.3, 3.0))
        running.kill()
    run = resume(arguments, tmp_path, store)
    assert (contents(run), models(store)) == undisturbed

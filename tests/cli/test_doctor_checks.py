"""The checks of `compressbench doctor`, on what is really broken."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from compressbench.cli.checks import (
    config,
    folders,
    libraries,
    machine,
    second_process,
    store,
    variables,
)
from compressbench.cli.checks.finding import BROKEN, FINE, LOOK
from compressbench.cli.checks.processes import run_checks
from tests.cli.findings import only
from tests.end_to_end.running import ROOT
from tests.end_to_end.test_broken_torchvision import REASON, install
from tests.faults.disks import make_read_only, small_disk


def test_a_torchvision_for_another_torch_is_broken(settings, tmp_path, monkeypatch):
    paths = install(tmp_path / "libraries", f"raise RuntimeError({REASON!r})\n")
    monkeypatch.setenv("PYTHONPATH", paths)
    found = run_checks(["torch_build"], settings, time.monotonic() + 60)["torch_build"]
    vision = only(found, "torchvision")
    assert vision.mark == BROKEN
    assert REASON in vision.found
    assert "pip uninstall torchvision" in vision.fix
    assert only(found, "trainer").mark == FINE


def test_a_check_that_a_library_ends_without_a_word_is_broken(settings, tmp_path, monkeypatch):
    (tmp_path / "libraries" / "torch").mkdir(parents=True)
    (tmp_path / "libraries" / "torch" / "__init__.py").write_text("import os; os._exit(0)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'libraries'}{os.pathsep}{ROOT}")
    (found,) = run_checks(["torch_build"], settings, time.monotonic() + 60)["torch_build"]
    assert (found.mark, found.found) == (BROKEN, "failed: no message")


def distribution(folder, name, version, *requires):
    """The metadata of an installed distribution in `folder`."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (place / "METADATA").write_text("\n".join(lines) + "\n")


def test_versions_are_held_against_our_own_metadata(settings, tmp_path, monkeypatch):
    ranges = ["numpy>=2,<3", "hydra-core<1.5,>=1.4.0rc3", "mlflow>=3.15,<4", "torch>=2.11,<2.14",
              "nothing-such>=1", "onnxruntime>=1.32", "timm>=1; extra == 'timm'",
              "absent>=1; extra == 'more'"]  # fmt: skip
    distribution(tmp_path / "l", "compressbench", "0.1.0", *ranges)
    for name, number in (("numpy", "1.26.4"), ("hydra-core", "1.4.0rc3"), ("mlflow", "4.0.0"),
                         ("torch", "2.13.0+cu130"), ("timm", "0.9.1"), ("onnxruntime", "1.32.0"),
                         ("onnxruntime-gpu", "1.32.0")):  # fmt: skip
        distribution(tmp_path / "l", name.replace("-", "_"), number)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "l")])
    for path in (tmp_path / "l").glob("*_*/METADATA"):
        path.write_text(path.read_text().replace("_", "-", 1))
    found = list(libraries.check(settings))
    marks = {f.subject: f.mark for f in found}
    assert [marks[n] for n in ("torch", "hydra-core")] == [FINE, FINE]
    assert marks["mlflow"] == LOOK
    assert [marks[n] for n in ("numpy", "nothing-such", "timm")] == [BROKEN] * 3
    assert only(found, "numpy").fix == "pip install 'numpy<3,>=2'"
    assert marks["onnxruntime"] == BROKEN
    assert "onnxruntime and onnxruntime-gpu install the same files" in found[-1].found


def test_variables_that_weaken_or_change_are_named(settings, monkeypatch):
    for name in [n for n in os.environ if n in {*variables._PURPOSE, *variables.KERNELS}]:
        monkeypatch.delenv(name)
    assert [f.mark for f in variables.check(settings)] == [FINE]
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "yes")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = {f.subject: f for f in variables.check(settings)}
    assert found["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"].mark == BROKEN
    assert found["ONEDNN_MAX_CPU_ISA"].mark == LOOK
    assert found["ONEDNN_MAX_CPU_ISA"].fix.startswith("unset ONEDNN_MAX_CPU_ISA")


def test_targets_that_are_allowed_beyond_the_list_are_named(settings, allow):
    assert next(config.check(settings)).mark == FINE
    allow("mine.* os.system")
    allowed = next(config.check(settings))
    assert allowed.mark == LOOK
    assert "mine.*, os.system" in allowed.found


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "150000 100000", "memory.max": "900000000", "memory.current": "100000000"},
        {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": "900000000", "memory/memory.usage_in_bytes": "100000000"},
    ],
    ids=["cgroup 2", "cgroup 1"],
)  # fmt: skip
def test_limits_of_a_container_count(settings, tmp_path, monkeypatch, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    found = list(machine.check(settings))
    assert only(found, "cores").fix.startswith("give trainer.threads=1")
    assert "trainer.threads=4, but the container may use 1.5 cores" in only(found, "cores").found
    assert only(found, "memory").mark == LOOK
    assert only(found, "memory").found == "800 MB available in the container"


def test_a_machine_without_proc_and_shared_memory_is_survived(settings, tmp_path, monkeypatch):
    for name in ("_PROC", "_CGROUP", "_SHARED"):
        monkeypatch.setattr(machine, name, tmp_path / "none")
    found = list(machine.check(settings))
    assert only(found, "cores").mark == FINE
    assert only(found, "shared memory").mark == LOOK


def test_a_disk_that_is_full_or_read_only_is_broken(settings, tmp_path):
    with small_disk(tmp_path / "store", "64k") as disk:
        full = only(folders.check(settings), "store")
        make_read_only(disk)
        read_only, locks = only(folders.check(settings), "store"), list(store.check(settings))
    assert full.mark == read_only.mark == locks[-1].mark == BROKEN
    assert "No space left on device" in full.found
    assert "Read-only file system" in read_only.found
    assert "Read-only file system" in locks[-1].found
    assert "COMPRESSBENCH_STORE=FOLDER" in full.fix


def test_a_folder_for_temporary_files_that_is_not_there_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = only(folders.check(settings), "temporary files")
    assert found.mark == LOOK
    assert f"TMPDIR={tmp_path / 'none'} cannot be used" in found.found


def test_a_file_in_the_place_of_the_store_is_broken(settings, tmp_path):
    (tmp_path / "store").write_text("")
    assert list(store.check(settings))[-1].mark == BROKEN
    assert only(folders.check(settings), "store").mark == BROKEN


def test_a_sound_store_is_fine_and_left_as_it_was(settings, tmp_path):
    (tmp_path / "store" / "entries").mkdir(parents=True)
    found = list(store.check(settings))
    assert [f for f in found if f.mark != FINE] == []
    assert [p.name for p in (tmp_path / "store").rglob("*")] == ["entries"]


def test_a_store_that_others_can_write_to_is_to_be_looked_at(settings, tmp_path):
    (tmp_path / "store" / "entries").mkdir(parents=True)
    (tmp_path / "store" / "entries").chmod(0o777)
    found = only(itertools.islice(store.check(settings), 2), "permissions")
    assert (found.mark, found.fix) == (LOOK, f"chmod -R go-w {tmp_path / 'store'}")
    assert f"every user may write to {tmp_path / 'store' / 'entries'}" in found.found
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path / "store", 1234, -1)
    found = only(itertools.islice(store.check(settings), 2), "permissions")
    assert "belongs to user 1234" in found.found
    assert found.fix.startswith("chown -R 0 ")


def test_locks_that_a_second_process_does_not_see_are_noticed(tmp_path, monkeypatch):
    """As on a network filesystem whose locks are local."""
    assert second_process.lock_problem(tmp_path) == ""
    local = lambda path, **options: FileLock(f"{path}.{os.getpid()}", **options)  # noqa: E731
    monkeypatch.setattr(second_process, "FileLock", local)
    assert second_process.lock_problem(tmp_path) == "a second process gets a lock that is held"


def test_writes_that_are_seen_in_parts_are_noticed(tmp_path, monkeypatch):
    def rewrite(path: Path, answer: object) -> None:
        for number in range(10):
            with path.open("wb", buffering=0) as file:
                content = second_process._content(number % 2)
                file.write(content[:100])
                time.sleep(0.01)
                file.write(content[100:])

    assert second_process.rename_problem(tmp_path) == ""
    monkeypatch.setattr(second_process, "_rename", rewrite)
    problem = second_process.rename_problem(tmp_path)
    assert problem == "a file that another process replaces is read in parts"


@pytest.mark.long
@pytest.mark.parametrize("older", ["avx2", "avx512"])
def test_sums_saturate_on_cpus_without_vnni_and_there_alone(settings, older):
    if "cpuid_fault" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs cpuid_fault")
    code = "from compressbench.measure.integer_products import products_saturate as s; print(s())"
    done = subprocess.run(
        [ROOT / ".ci" / "on_cpu", older, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"

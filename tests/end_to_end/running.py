"""Run the command line: in this process where a new one adds nothing, or in one of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressbench.cli.main import main
from compressbench.config.boundary import freeze
from compressbench.config.groups import config_folder
from compressbench.core.signals import STOPPING

ROOT = Path(__file__).parents[2]
QUIET = ("trainer=cpu", "trainer.threads=1", "tracking=none")


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *arguments]


def environment(store: Path, **more: str) -> dict[str, str]:
    """That of this process, with the store in `store`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COMPRESSBENCH_", "MLFLOW_"))}
    return {**kept, "COMPRESSBENCH_STORE": str(store), **more}


def run_here(arguments: Sequence[str], folder: Path, store: Path, **more: str) -> Finished:
    """What `compressbench ARGUMENTS` does in `folder`, without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with _borrowed_process(folder, environment(store, **more)):
        sys.argv = ["compressbench", *arguments]
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), err.getvalue())


@contextmanager
def _borrowed_process(folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Put back what a command changes in its process."""
    from hydra.core.global_hydra import GlobalHydra

    place, argv, path, before = Path.cwd(), sys.argv, list(sys.path), dict(os.environ)
    modules = set(sys.modules)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handlers = {n: signal.getsignal(n) for n in STOPPING}
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)
        freeze()
        sys.argv, sys.path[:] = argv, path
        for name in set(sys.modules) - modules:  # the user's own: another test has others
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_process(
    arguments: Sequence[str], folder: Path, store: Path, *, timeout: float = 120, **more: str
) -> Finished:
    done = subprocess.run(
        command(*arguments),
        cwd=folder, env=environment(store, **more), capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr)


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def stages_in(store: Path) -> list[str]:
    """The keys of the stages that the store has: entries with a model, which a trial leaves out."""
    return sorted(path.parent.name for path in store.glob("entries/*/*/artifact.json"))


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what it said, and the command that made it."""

    folder: Path
    report: dict[str, Any]
    arguments: tuple[str, ...]
    out: str

    @property
    def onnx(self) -> bytes:
        return (self.folder / "model.onnx").read_bytes()

    def stage(self, name: str) -> dict[str, Any]:
        (stage,) = (s for s in self.report["stages"] if s["name"] == name)
        return dict(stage)

    @property
    def hits(self) -> dict[str, bool]:
        return {stage["name"]: stage["hit"] for stage in self.report["stages"]}


def finished_run(arguments: Sequence[str], folder: Path, store: Path, **more: str) -> Run:
    """Run a recipe in this process, in an empty `folder`; it must end well."""
    done = run_here(arguments, folder, store, **more)
    assert done.code == 0, done.err
    return read_run(folder, arguments, done.out)


def read_run(folder: Path, arguments: Sequence[str] = (), out: str = "") -> Run:
    """The one run below `folder`."""
    (run,) = folder.glob("runs/*/*")
    return Run(run, json.loads((run / "report.json").read_text()), tuple(arguments), out)


def few_epochs(recipe: str, *, fresh: int = 4, more: int = 1) -> list[str]:
    """Overrides that make every fit of a recipe short: that of a fresh model, and one that goes on.

    The same stage gets the same epochs in every recipe, so that recipes share it.
    """
    stages = composed(f"recipe={recipe}")["recipe"]["stages"]
    epochs = {
        name: fresh if name == "train" or "model" in stage else more
        for name, stage in stages.items()
        if "epochs" in stage
    }
    return [f"recipe.stages.{name}.epochs={count}" for name, count in epochs.items()]


def composed(*overrides: str) -> dict[str, Any]:
    """The config as Hydra composes it, unresolved."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder())):
        config: Any = OmegaConf.to_container(compose("config", overrides=list(overrides)))
    return dict(config)


def write_recipe(folder: Path, name: str, *stages: str) -> str:
    """A config folder with a recipe of the user's own; the argument that names it."""
    lines = [f"  - /stage@stages.{stage}: {stage}" for stage in stages]
    (folder / "recipe").mkdir(parents=True)
    (folder / "recipe" / f"{name}.yaml").write_text("\n".join(["# mine", "defaults:", *lines]))
    return f"--config-dir={folder}"

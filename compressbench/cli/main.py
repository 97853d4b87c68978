"""The command line: the first word may be a command; everything else goes to Hydra."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressbench import __version__
from compressbench.cli.help import help_page
from compressbench.config.boundary import (
    ALLOW_VARIABLE,
    allow_arguments,
    allowed,
    freeze,
    guard_environment,
)
from compressbench.config.compose import check_folders, composing_errors
from compressbench.config.groups import config_folder, config_folders
from compressbench.config.overrides import explain, refuse, with_checkpoint_key
from compressbench.core.disk_full import disk_full, is_disk_full
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.redact import redacted_output
from compressbench.core.signals import SignalledError, behind, stop_on_signals

DONE, USER, USAGE, REFUSED, BUG = 0, 1, 2, 3, 70


def main() -> None:
    """Run a command or a recipe from the command line; the exit code says how it went."""
    # Threads that spin while they wait make training several times slower on a shared machine.
    # Read when torch is loaded, which is why nothing above imports it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stopping = stop_on_signals()
    with redacted_output():
        code = guard(lambda: _dispatch(_take_allow(sys.argv[1:])))
    stopping.ended(code)
    gc.freeze()  # Python would look through torch's objects again and again as it ends: 1.5 s
    sys.exit(code)


def guard(action: Callable[[], int]) -> int:
    """Run `action`; turn what it raises into a message and an exit code."""
    try:
        return action()
    except UserError as error:
        print(f"compressbench: {error}", file=sys.stderr)
        return USER
    except CheckFailedError as error:
        print(f"compressbench: refused: {error}", file=sys.stderr)
        return REFUSED
    except SignalledError as error:
        return _signalled(error)
    except Exception as error:  # noqa: BLE001 - the last stop: a bug of ours, shown in full
        signalled = behind(error)
        if signalled is not None:
            return _signalled(signalled)
        if is_disk_full(error):
            print(f"compressbench: {disk_full(error)}", file=sys.stderr)
            return USER
        import traceback

        traceback.print_exc()
        return BUG


def _signalled(error: SignalledError) -> int:
    print(f"\ncompressbench: {error}", file=sys.stderr)
    return 128 + error.number


def _dispatch(arguments: list[str]) -> int:
    _check_place()
    if arguments[:1] == ["doctor"]:  # first: what stops other commands is one of its findings
        from compressbench.cli.doctor import main as doctor

        return doctor(arguments[1:])
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == "1":
        raise UserError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 allows checkpoints to run code; unset it"
        )
    first = arguments[0] if arguments else ""
    if "--version" in arguments:
        print(f"compressbench {__version__}")
        return DONE
    if first == "store":
        from compressbench.cli.store import main as store

        return store(arguments[1:])
    if first == "front":
        from compressbench.cli.front import main as front

        return front(arguments[1:])
    if first == "explain":
        from compressbench.cli.explain import main as explain_run

        return explain_run(arguments[1:])
    if first == "sync":
        from compressbench.cli.sync import sync

        return sync(arguments[1:])
    if first == "replay":
        return _replay(arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print(help_page(config_folders(arguments)))
        return DONE
    return _compose(arguments)


def _check_place() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(f"the working folder: {error.strerror}; change to another") from error


def _replay(arguments: list[str]) -> int:
    from compressbench.engine.run import replay

    usage = "usage: compressbench replay RUN/recipe.yaml"
    if arguments in (["-h"], ["--help"]):
        print(usage)
        return DONE
    if len(arguments) != 1:
        print(usage, file=sys.stderr)
        return USAGE
    replay(Path(arguments[0]))
    return DONE


def _take_allow(arguments: list[str]) -> list[str]:
    """Move `--allow PATTERN` into the environment, which child processes inherit."""
    rest: list[str] = []
    patterns = os.environ.get(ALLOW_VARIABLE, "").split()
    stream = iter(arguments)
    for argument in stream:
        if argument == "--allow":
            patterns.append(next(stream, ""))
        elif argument.startswith("--allow="):
            patterns.append(argument.removeprefix("--allow="))
        else:
            rest.append(argument)
    if patterns:
        os.environ[ALLOW_VARIABLE] = " ".join(patterns)
        sys.path.insert(
            0, str(Path.cwd())
        )  # unlike `python run.py`, the console script does not add it
    freeze()
    return rest


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Set sys.argv, the only input that `hydra.main` parses, for the duration of a call."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _compose(arguments: list[str]) -> int:
    """Let Hydra compose the config and run the recipe, once or as a sweep."""
    import hydra

    refuse(arguments)
    guard_environment()
    arguments = _with_sweeper(arguments)
    codes: list[int] = []

    def task(config: Any) -> None:
        codes.append(guard(lambda: _run_job(config, arguments)))
        if codes[-1] != DONE:
            raise SystemExit(codes[-1])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of to Hydra's printer
    entry = hydra.main(
        config_path=str(config_folder()),
        config_name="config",
        execution_whitelist=allowed(),
    )(task)
    try:
        with _command_line(with_checkpoint_key(arguments)):
            check_folders(sys.argv[1:])
            entry()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    except composing_errors() as error:
        raise UserError(explain(error, arguments, config_folders(arguments))) from error
    except OSError as error:
        if error.filename is None or is_disk_full(error):
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return max(codes, default=DONE)


def _with_sweeper(arguments: list[str]) -> list[str]:
    """Select our sweeper for a multirun that names a search or an interval."""
    from compressbench.config.overrides import is_interval

    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    chosen = any(a.startswith("hydra/sweeper=") for a in arguments)
    wanted = any(a.startswith(("search=", "search.")) or is_interval(a) for a in arguments)
    lost = next((a for a in arguments if a.startswith("~")), None)
    if lost and not chosen and not wanted:  # Hydra's own sweeper passes it on as ~STAGE=null
        raise UserError(
            f"{lost}: a plain grid cannot leave out a stage; use a search: search.n_trials=N"
        )
    return [*arguments, "hydra/sweeper=pareto"] if wanted and not chosen else arguments


def _run_job(config: Any, arguments: list[str]) -> int:
    """Run one job, with the config that Hydra composed."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from compressbench.config.run_config import RunConfig
    from compressbench.engine.run import run_recipe
    from compressbench.engine.run_folder import remove_if_empty

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        checked = RunConfig.of(plain)
    except OmegaConfBaseException as error:
        remove_if_empty(folder)
        raise UserError(f"{error.full_key}: {str(error).partition(chr(10))[0]}") from error
    except UserError:
        remove_if_empty(folder)
        raise
    run_recipe(checked, folder, ["python", "run.py", *allow_arguments(), *arguments])
    return DONE

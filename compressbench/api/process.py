"""A run inside of somebody else's process: what it changes there is put back."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from importlib import import_module
from typing import Any


@contextmanager
def as_before() -> Iterator[None]:
    """Put back the number of torch's threads, Hydra's state and who answers Ctrl-C.

    Lightning ends a process at Ctrl-C, and has it ignore the next ones: here KeyboardInterrupt
    comes out, as from any other call.
    """
    import torch

    threads = torch.get_num_threads()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _own_hydra():
            yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        torch.set_num_threads(threads)
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra keeps one state a process, which may be the caller's."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        HydraConfig.instance().cfg = config


def silent() -> AbstractContextManager[Any]:
    """Nothing on standard output, and in a notebook no displays; errors and warnings come."""
    if "IPython" not in sys.modules:
        return redirect_stdout(io.StringIO())
    capture = import_module("IPython.utils.capture")
    silenced: AbstractContextManager[Any] = capture.capture_output(stderr=False)
    return silenced

"""The config that a run with these arguments would have, and what it may name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.config.boundary import ALLOW_VARIABLE, allow_arguments
from compressbench.config.compose import compose_config
from compressbench.config.overrides import refuse
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import UserError


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Compose the config, and tell the other checks what they need of it."""
    yield from _allowed()
    overrides = list(settings["overrides"])
    folders = [Path(folder) for folder in settings["folders"]]
    try:
        refuse(overrides)
        config = compose_config(_of_one_run(overrides), folders)
        RunConfig.of(config)
    except UserError as error:
        advice = "correct that setting; the checks below take the defaults"
        yield Finding("config", BROKEN, str(error), advice)
        return
    own = f" and {', '.join(map(str, folders[1:]))}" if folders[1:] else ""
    found = f"{' '.join(overrides) or 'the defaults'}, from {folders[0]}{own}"
    yield Finding("config", FINE, found, settings=_needed(config))


def _of_one_run(overrides: Sequence[str]) -> list[str]:
    """Without the values that a sweep would choose from."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    return [text for text in overrides if not parser.parse_override(text).is_sweep_override()]


def _needed(config: Mapping[str, Any]) -> dict[str, Any]:
    from hydra.core.hydra_config import HydraConfig

    return {
        "runs": str(HydraConfig.get().run.dir),
        "sweeps": config["search"]["folder"],
        "storage": config["search"]["storage"],
        "tracking": config["tracking"],
        "trainer": config["trainer"],
    }


def _allowed() -> Iterator[Finding]:
    """What configs may name beyond the list of the package."""
    own = [argument.removeprefix("--allow=") for argument in allow_arguments()]
    if not own:
        yield Finding("allowed targets", FINE, "compressbench and torch.optim only")
        return
    advice = f"unset {ALLOW_VARIABLE} and leave out --allow, unless you trust that code"
    yield Finding("allowed targets", LOOK, f"configs may call {', '.join(own)}, too", advice)

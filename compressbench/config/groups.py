"""The config groups: what each is for, where its files lie, what they offer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

GROUPS = {
    "model": "the architecture; model.checkpoint=FILE replaces its training",
    "dataset": "what it learns",
    "task": "what models answer and how that is judged; task@dataset.task=...",
    "recipe": "the stages, in order; recipe.stages.NAME.OPTION=VALUE sets an option of one",
    "trainer": "where fits run",
    "tracking": "where figures and files are logged",
    "search": "what a sweep (-m) searches, and how; search.n_trials=40, search.workers=2",
    "sampler": "who proposes the next trial of a sweep; sampler@search.sampler=...",
    "stage": "stages for recipes of your own; +stage@recipe.stages.NAME=... adds one at the end",
    "optimizers": "of all stages; optimizers@_global_=...; some models choose their own",
    "optimizer": "of one stage; optimizer@recipe.stages.NAME.optimizer=...",
    "criterion": "importance for pruning; criterion@recipe.stages.prune.criterion=...",
    "quantizer": "grids and ranges; quantizer@recipe.stages.quantize.activation=...",
    "trained_quantizer": "grids in training; trained_quantizer@recipe.stages.qat.weight=...",
    "sensitivity": "what fewer bits cost a layer; "
    "sensitivity@recipe.stages.quantize.allocation.sensitivity=...",
    "loss": "distillation losses; loss@recipe.stages.distill.loss=...",
}
_LONGEST = 1000  # characters of a purpose


def config_folder() -> Path:
    """Our conf/: next to the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The config folders of a command line: ours, then those of `--config-dir`."""
    own = [a.partition("=")[2] for a in arguments if a.startswith("--config-dir=")]
    own += [b for a, b in itertools.pairwise(arguments) if a in ("--config-dir", "-cd")]
    return [config_folder(), *(Path(folder).resolve() for folder in own)]


def options(group: str, folders: Iterable[Path]) -> dict[str, str]:
    """Map the options of a group to their purpose, the comment in the first line of the YAML."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            if path.is_file():
                with path.open(encoding="utf-8", errors="replace") as file:
                    first = file.readline(_LONGEST)
                found[path.stem] = first.lstrip("# ").strip() if first.startswith("#") else ""
    return found

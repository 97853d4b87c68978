"""Builds the help page: all config groups, their options and what each is for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compressbench.config.groups import GROUPS, options

_HEAD = """compressbench: recipes of model compression, measured on the file that ships

  python run.py recipe=prune_then_quant                      prune, quantize, on built-in digits
  python run.py recipe=prune recipe.stages.prune.sparsity=0.8
  python run.py recipe=quantize plan=true                    show what would run, and for how long
  python run.py -m recipe=prune,quantize                     run several recipes in turn
  python run.py -m search=prune_quant search.n_trials=40     search for the accuracy-size front
  compressbench replay RUN/recipe.yaml                       repeat a run, to the same bytes
  compressbench explain RUN                                  which layer costs which accuracy
  compressbench front SWEEP [--budget 100kB]                 show a front, choose a file to ship
  compressbench store list|explain|verify|collect|pin        manage the store of computed results
  compressbench doctor [NAME=VALUE ...]                      check this machine, store and servers
  compressbench sync [RUN ...]                               log what a tracking server has missed
  (compressbench ... and python run.py ... are the same program)
"""


_FOOT = """
Flags: -m (sweep over comma-separated lists), --config-dir DIR (your own YAML groups),
  --allow PATTERN (your own targets, such as mymodel.*; also COMPRESSBENCH_ALLOW),
  --cfg job (print the composed config), --version, --hydra-help (Hydra's own flags)"""


def help_page(folders: Iterable[Path]) -> str:
    """The text of --help. `folders` are all config folders, including those of the user."""
    places = list(folders)
    lines = [_HEAD]
    for group, purpose in GROUPS.items():
        lines.append(f"{group}: {purpose}")
        lines.extend(f"  {name:20} {text}" for name, text in options(group, places).items())
    lines.append("top level")
    lines.extend(_commented(places[0] / "config.yaml"))
    return "\n".join([*lines, _FOOT])


def _commented(path: Path) -> list[str]:
    """`key: value  # purpose` lines at the top level of a YAML file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        setting, _, purpose = line.partition("  # ")
        if purpose and not line.startswith((" ", "#")):
            name, _, value = setting.partition(": ")
            lines.append(f"  {name}={value}: {purpose}")
    return lines

"""The help page: every config group, its options and their one-line purpose."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compressbench.config.groups import GROUPS, options

_HEAD = """compressbench: recipes of model compression, measured on the file that ships

  python run.py recipe=prune_then_quant                      the main job, on the built-in digits
  python run.py recipe=prune recipe.stages.prune.sparsity=0.8
  python run.py recipe=quantize plan=true                    what would run, and for how long
  python run.py -m recipe=prune,quantize                     one after the other
  python run.py -m search=prune_quant search.n_trials=40     search for the accuracy-size front
  compressbench replay RUN/recipe.yaml                       the same run again, to the same bytes
  compressbench front SWEEP [--budget 100kB]                 the front of a sweep: what to ship
  compressbench store list|explain|verify|collect|pin        what is computed already
  compressbench sync [RUN ...]                               log what a tracking server missed
  (compressbench ... and python run.py ... are the same program)
"""


_FOOT = """
Flags: -m (sweep over comma lists), --config-dir DIR (YAML groups of your own),
  --allow PATTERN (targets of your own, such as mymodel.*; also COMPRESSBENCH_ALLOW),
  --cfg job (print the composed config), --version, --hydra-help (Hydra's own flags)"""


def help_page(folders: Iterable[Path]) -> str:
    """The text of --help. `folders` are the config folders, the user's own included."""
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
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        setting, _, purpose = line.partition("  # ")
        if purpose and not line.startswith((" ", "#")):
            name, _, value = setting.partition(": ")
            found.append(f"  {name}={value}: {purpose}")
    return found

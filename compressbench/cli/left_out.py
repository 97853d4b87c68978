"""The settings that leave layers and activations of a quantizing stage in float."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressbench.quantization.layer_costs import Part

_PLAIN = re.compile(r"[A-Za-z_][\w.-]*")  # needs no quotes in an override
_NOT_AGAIN = ("hydra.run.dir=",)  # would write over the explained run


def overrides(name: str, stage: Any, parts: Sequence[Part]) -> list[str]:
    """Overrides for the stage `name` that keep `parts` in float, besides what it keeps already."""
    from compressbench.quantization.layer_costs import ACTIVATION, WEIGHTS

    where = f"recipe.stages.{name}"
    layers = [part.name for part in parts if part.kind == WEIGHTS]
    sites = [part.name for part in parts if part.kind == ACTIVATION]
    settings = []
    wide = stage.scheme().flat_widths()  # these go before rules
    settings += [f"++{where}.widths.{name}=null" for name in layers if name in wide]
    if ruled := [name for name in layers if name not in wide]:
        rules = [*stage.scheme().effective_rules(), {"layers": ruled, "bits": None}]
        settings.append(f"{where}.rules={_written(rules)}")
    if sites:
        settings.append(f"{where}.float_activations={_written([*stage.float_activations, *sites])}")
    return settings


def pasted(command: Sequence[str], settings: Sequence[str]) -> str:
    """The command with `settings` in place of what it set before; "" for a replayed recipe."""
    if "replay" in command:
        return ""
    keys = tuple(f"{setting.partition('=')[0].lstrip('+')}=" for setting in settings)
    kept = [word for word in command if not word.lstrip("+").startswith((*keys, *_NOT_AGAIN))]
    return shlex.join([*kept, *settings])


def _written(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value != "null" else f'"{value}"'
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)

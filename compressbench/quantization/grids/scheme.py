"""Selects the grid of each layer: a default grid, rules for some layers, widths for single ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.grid import Granularity, Grid
from compressbench.core.layers import layers_with_weights
from compressbench.core.nearest import nearest_of_many
from compressbench.core.trees import leaves
from compressbench.core.types import DataSpec
from compressbench.core.validation import check_flag, check_integer, check_names
from compressbench.quantization.grids.weight_uses import weight_uses

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
FUNCTIONS = {"conv1d", "conv2d", "conv3d", "linear"}
TABLES = nn.Embedding  # quantized, but not counted as first or last layer
LOOKUP = {"embedding"}
# with fewer bits, the first and last layers get 8 bits unless rules are given
ENDS_BELOW_BITS = 4
ENDS = {"layers": ["first", "last"], "bits": 8}
_GRID_OPTIONS = {f.name for f in fields(Grid)}
_SELECTORS = {"layers", "type"}

Rule = Mapping[str, Any]


@dataclass(frozen=True)
class Scheme:
    """Grids of the layers: the default `grid`, changed by `rules` in order, then by `widths`.

    A rule selects layers either by `layers`, a name or fnmatch pattern or a list of them ("first"
    and "last" are meant in the order of the forward pass, not counting embeddings), or by `type`
    ("Conv2d", "Linear", ..., "depthwise"). It sets options of `Grid`; `bits: null` keeps a layer
    in float. Rules of None mean `ENDS` for a grid of less than 4 bits, otherwise no rules.
    `widths` maps layer names, nested at the dots, to bits, or to None for a layer in float.

    Example: `Scheme(Grid(4), rules=[{"layers": "fc", "bits": 8}])`.
    """

    grid: Grid
    rules: Sequence[Rule] | None = None
    widths: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.rules is not None and not isinstance(self.rules, (list, tuple)):
            raise UserError(f"rules must be a list or null, got {self.rules!r}")
        if self.widths is not None and not isinstance(self.widths, Mapping):
            raise UserError(f"widths must map layer names to bits, got {self.widths!r}")
        for number, rule in enumerate(self.rules or ()):
            try:
                _check_rule(rule)
                apply_rule(self.grid, rule)
            except UserError as error:
                raise UserError(f"rules[{number}]: {error}") from None
        for name, bits in self.flat_widths().items():
            if bits is not None:
                check_integer(f"widths.{name}", bits, 2, 8)

    def effective_rules(self) -> Sequence[Rule]:
        """The rules, with the default for None filled in."""
        if self.rules is None:
            whole = {"granularity": "channel"} if self.grid.granularity == "group" else {}
            return ({**ENDS, **whole},) if self.grid.bits < ENDS_BELOW_BITS else ()
        return self.rules

    def all_bits(self) -> set[int]:
        """All bits that a layer may get."""
        widths = [self.grid.bits, *(rule.get("bits") for rule in self.effective_rules())]
        return {bits for bits in (*widths, *self.flat_widths().values()) if bits is not None}

    def flat_widths(self) -> dict[str, Any]:
        """The widths by full layer name."""
        return leaves(self.widths) if self.widths else {}

    def grids(self, model: nn.Module, spec: DataSpec) -> tuple[dict[str, Grid], dict[str, str]]:
        """The grids of the layers to quantize, in forward order, and reasons for the others.

        Reasons are given for every module with weights of two axes or more, "" if it is quantized.
        Raises UserError for a rule or width that matches no layer, and for a group size that does
        not divide a layer's input channels.
        """
        order, reasons = quantizable(model, spec)
        chosen: dict[str, Grid | None] = dict.fromkeys(order, self.grid)
        for number, rule in enumerate(self.effective_rules()):
            for name in _matches(rule, f"rules[{number}]", order, model):
                known = chosen[name]
                chosen[name] = apply_rule(self.grid if known is None else known, rule)
        for name, bits in self.flat_widths().items():
            if name not in chosen:
                raise UserError(f"widths.{name}: no such layer{nearest_of_many(name, order)}")
            chosen[name] = apply_rule(chosen[name] or self.grid, {"bits": bits})
        for name, grid in chosen.items():
            if grid is None:
                by = "its width of null" if name in self.flat_widths() else "a rule"
                reasons[name] = f"{by} keeps it in float"
        grids = {name: grid for name, grid in chosen.items() if grid is not None}
        _check_groups(grids, model)
        return grids, reasons


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Options shared by the stages that quantize weights and activations.

    `granularity`, `group_size`, `symmetric`, `narrow` and `power_of_two` are those of `Grid`;
    `rules` and `widths` change them for some layers (`Scheme`). Activations get `activation_bits`
    in [4, 8], and ranges symmetric around zero if `activation_symmetric`; those that
    `float_activations` names stay in float (`grids.calibration.left_in_float`).
    """

    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    narrow: bool = True
    power_of_two: bool = False
    rules: Sequence[Rule] | None = None
    widths: Mapping[str, Any] = field(default_factory=dict)
    activation_bits: int = 8
    activation_symmetric: bool = False
    float_activations: Sequence[str] = ()


def scheme_of(options: GridOptions, bits: int) -> Scheme:
    """The scheme for these options. Raises UserError for values that no grid can have."""
    check_integer("activation_bits", options.activation_bits, 4, 8)
    check_flag("activation_symmetric", options.activation_symmetric)
    check_names("float_activations", options.float_activations)
    grid = Grid(
        bits, options.granularity, options.group_size, options.symmetric, options.narrow,
        options.power_of_two,
    )  # fmt: skip
    return Scheme(grid, options.rules, options.widths)


def check_found(stage: str, grids: Mapping[str, Grid], reasons: Mapping[str, str]) -> None:
    """Raise UserError, with the reasons, if a stage has no layer to quantize."""
    if not grids:
        named = [f"{name or 'the model itself'}: {reason}" for name, reason in reasons.items()]
        raise UserError(
            f"{stage} found no layer it can quantize: "
            + ("; ".join(named) or "the model has no weights")
        )


def quantizable(model: nn.Module, spec: DataSpec) -> tuple[list[str], dict[str, str]]:
    """The layers that can be quantized, in forward order, and reasons for the others.

    Reasons are given for every module with weights of two axes or more, "" if it can be quantized.
    This is the case if the model passes the weight itself to a convolution or linear function (an
    embedding: to the lookup), and to nothing else. Otherwise the exported file would contain
    other values than those on the grid.
    """
    uses = weight_uses(model, spec.blank(2))
    reasons = {}
    for name, layer in layers_with_weights(model).items():
        if not isinstance(layer, (*LAYERS, TABLES)):
            reasons[name] = "only convolutions, linear layers and embeddings are quantized"
            continue
        functions = uses.get(id(layer.weight), set())
        other = sorted(functions - (LOOKUP if isinstance(layer, TABLES) else FUNCTIONS))
        reasons[name] = (
            f"its weight also goes through {', '.join(other)}"
            if other
            else ("" if functions else "not used in the forward pass")
        )
    position = {identity: number for number, identity in enumerate(uses)}
    fit = [name for name, reason in reasons.items() if not reason]
    return sorted(fit, key=lambda n: position[id(model.get_submodule(n).weight)]), reasons


def grid_text(grid: Grid) -> str:
    """Describe a grid, as in "4-bit per channel"."""
    size = "" if grid.group_size is None else f" of {grid.group_size}"
    kind = "" if grid.symmetric else ", asymmetric"
    return f"{grid.bits}-bit per {grid.granularity}{size}{kind}"


def grid_options(grid: Grid) -> dict[str, Any]:
    """The options of a grid for an edit."""
    return asdict(grid)


def apply_rule(grid: Grid, rule: Rule) -> Grid | None:
    """`grid` with the options of a rule, or None if the rule keeps the layer in float."""
    options = {k: v for k, v in rule.items() if k in _GRID_OPTIONS}
    if "bits" in options and options["bits"] is None:
        return None
    if options.get("granularity", "group") != "group":
        options.setdefault("group_size", None)
    elif options.get("group_size") is not None:
        options.setdefault("granularity", "group")
    return replace(grid, **options)


def _check_rule(rule: Any) -> None:
    if not isinstance(rule, Mapping):
        raise UserError(f"a rule must be a mapping such as {{layers: fc, bits: 8}}, got {rule!r}")
    unknown = sorted(str(k) for k in set(rule) - _GRID_OPTIONS - _SELECTORS)
    if unknown:
        raise UserError(f"{unknown[0]}: no such option{nearest_of_many(unknown[0], _allowed())}")
    if len(set(rule) & _SELECTORS) != 1:
        raise UserError(f"exactly one of layers and type must be given, got {dict(rule)}")
    if not set(rule) & _GRID_OPTIONS:
        raise UserError(f"a rule must set bits or another option, got {dict(rule)}")
    for key in _SELECTORS & set(rule):
        if not _names(rule[key]) or not all(isinstance(n, str) for n in _names(rule[key])):
            raise UserError(f"{key} must be a name or a list of names, got {rule[key]!r}")


def _allowed() -> list[str]:
    return sorted(_GRID_OPTIONS | _SELECTORS)


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _matches(rule: Rule, where: str, order: Sequence[str], model: nn.Module) -> Iterator[str]:
    """Yield the layers that a rule selects. Raises UserError for a selector without a match."""
    key = next(iter(_SELECTORS & set(rule)))
    for selector in _names(rule[key]):
        selected = (
            [n for n in order if selector in _types(model.get_submodule(n))]
            if key == "type"
            else _named(selector, order, model)
        )
        if not selected:
            kinds = sorted({t for n in order for t in _types(model.get_submodule(n))})
            advice = f"; the model has {', '.join(kinds)}" if key == "type" else ""
            advice = advice or nearest_of_many(selector, order)
            raise UserError(f"{where}.{key}={selector} matches no layer to quantize{advice}")
        yield from selected


def _named(selector: str, order: Sequence[str], model: nn.Module) -> list[str]:
    computing = [n for n in order if not isinstance(model.get_submodule(n), TABLES)] or order
    if selector in ("first", "last") and selector not in order and order:
        return [computing[0 if selector == "first" else -1]]
    return [name for name in order if fnmatchcase(name, selector)]


def _types(layer: nn.Module) -> set[str]:
    groups = getattr(layer, "groups", 1)
    depthwise = groups > 1 and groups == getattr(layer, "in_channels", 0)
    return {type(layer).__name__, *(["depthwise"] if depthwise else [])}


def _check_groups(grids: Mapping[str, Grid], model: nn.Module) -> None:
    """Raise UserError for layers whose group size does not fit, and suggest a rule."""
    channels = {n: model.get_parameter(f"{n}.weight").shape[1] for n in grids}
    bad = [n for n, g in grids.items() if g.group_size and channels[n] % g.group_size]
    if bad:
        size, listed = grids[bad[0]].group_size, ", ".join(f"{n} ({channels[n]})" for n in bad)
        raise UserError(
            f"group_size={size} does not divide the input channels of {listed}; add a rule "
            f"{{layers: [{', '.join(bad)}], granularity: channel}}"
        )

"""New names of modules that a config may name, for recipe files written before the move.

Kept for one release: to be deleted with 0.2.0.
"""

from __future__ import annotations

from typing import Any

_PACKAGES = {
    "criteria": "pruning.criteria",
    "losses": "training.losses",
    "sensitivities": "analysis.sensitivity",
    "trackers": "tracking.trackers",
}
_STAGES = {
    "prune": "pruning.prune",
    "channels": "pruning.prune_channels",
    "gradual": "pruning.prune_gradual",
    "iterative": "pruning.prune_iterative",
    "sensitivity_curves": "pruning.sensitivity",
    "quantize": "quantization.quantize",
    "qat": "quantization.qat",
    "codebook": "quantization.codebook",
    "allocation": "quantization.mixed_precision",
    "train": "training.train",
    "finetune": "training.finetune",
    "distill": "training.distill",
}
_QUANTIZERS = {
    "observers": (
        "dynamic", "entropy", "histogram", "minmax", "moving_average", "mse", "percentile",
    ),
    "rounding": ("adaround", "brecq", "gptq", "nearest"),
    "trained": ("lsq", "pact", "straight_through"),
}  # fmt: skip
MOVED = (
    {f"compressbench.{old}": f"compressbench.{new}" for old, new in _PACKAGES.items()}
    | {f"compressbench.stages.{old}": f"compressbench.{new}" for old, new in _STAGES.items()}
    | {
        f"compressbench.quantizers.{name}": f"compressbench.quantization.{package}.{name}"
        for package, names in _QUANTIZERS.items()
        for name in names
    }
)


def current_target(target: str) -> str:
    """The present name of a `_target_`: the same, or where its module has moved to."""
    for old, new in MOVED.items():
        if target.startswith(f"{old}."):
            return new + target.removeprefix(old)
    return target


def with_current_targets(tree: Any) -> Any:
    """A config with every `_target_` under its present name."""
    if isinstance(tree, dict):
        return {
            key: current_target(value)
            if key == "_target_" and isinstance(value, str)
            else with_current_targets(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [with_current_targets(item) for item in tree]
    return tree

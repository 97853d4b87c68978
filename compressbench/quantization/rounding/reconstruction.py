"""Learns to round weights up or down, for methods that fit layers or blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressbench.analysis.input_moments import Moments
from compressbench.core.distributed import mean_over_ranks, world_size
from compressbench.core.grid import (
    Grid,
    GridWeight,
    choose_scale,
    expand,
    round_to_grid,
    step_limits,
)
from compressbench.core.journal import Journal
from compressbench.core.layers import per_output
from compressbench.core.protocols import Observer
from compressbench.core.validation import check_integer, check_positive, check_share

ZETA, GAMMA = 1.1, -0.1  # stretch of the sigmoid, so that h reaches 0 and 1 at finite V
FIRST_BETA, LAST_BETA = 20.0, 2.0


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Compute h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1): Nagel et al. 2020, eq. 23."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The V with h(V) = h for h in [0, 1]; finite at 0 and 1."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_penalty(h: Tensor, beta: float) -> Tensor:
    """1 - |2 h - 1|**beta for each h, zero if h is 0 or 1: Nagel et al. 2020, equation 24."""
    return 1.0 - (2.0 * h - 1.0).abs() ** beta


@dataclass(frozen=True)
class Fit:
    """Options of the optimization: Adam on relative error + `regularization` * mean penalty.

    The penalty (`rounding_penalty`) starts after the share `warmup` of the iterations. Its beta
    then falls linearly from 20 to 2: most weights move freely at first, and all are driven to 0
    or 1 at the end.
    """

    iterations: int
    learning_rate: float
    regularization: float
    warmup: float

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations, 1)
        check_positive("learning_rate", self.learning_rate)
        check_positive("regularization", self.regularization)
        check_share("warmup", self.warmup)

    def beta(self, step: int) -> float | None:
        """The exponent of the penalty at a step, or None during warmup."""
        done = step / self.iterations
        if done < self.warmup:
            return None
        left = 1.0 - (done - self.warmup) / (1.0 - self.warmup)
        return LAST_BETA + (FIRST_BETA - LAST_BETA) * left


class SoftSteps:
    """A weight [O, I, ..] with steps floor(weight / scale) + h(V), clipped to its grid.

    exp(`log_gain`) multiplies each scale; floor and ceil remain those of the initial scale. Zero
    weights keep step 0.
    """

    def __init__(
        self, weight: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor | None
    ) -> None:
        self.power_of_two = grid.power_of_two
        self.scale, self.zero_point = scale, zero_point
        exact = weight / expand(scale, weight)
        self.floor = torch.floor(exact)
        low, high = step_limits(grid, zero_point)
        self.low = expand(low, weight) if low.ndim else low.to(weight.device)
        self.high = expand(high, weight) if high.ndim else high.to(weight.device)
        self.zero = weight == 0
        self.v = inverse_rectified_sigmoid(exact - self.floor).requires_grad_()
        self.log_gain = torch.zeros_like(scale).requires_grad_()
        self.free = (self.floor >= self.low) & (self.floor < self.high) & ~self.zero

    def weight(self) -> Tensor:
        """The soft weight, differentiable in `v` and `log_gain`."""
        return expand(self._scale(), self.floor) * self._clipped(rectified_sigmoid(self.v))

    def penalty(self, beta: float) -> Tensor:
        """Sum of the penalty over weights that can be rounded up or down."""
        return (rounding_penalty(rectified_sigmoid(self.v), beta) * self.free).sum()

    @torch.no_grad()
    def rounded(self) -> GridWeight:
        """The rounded weight: ceil if h(V) is at least 1/2, else floor."""
        steps = self._clipped((self.v >= 0).float())  # h(0) = 1/2
        return GridWeight(self._scale(), steps.to(torch.int16), self.zero_point)

    def _scale(self) -> Tensor:
        return self.scale * torch.exp(self.log_gain)

    def _clipped(self, up: Tensor) -> Tensor:
        steps = torch.clamp(self.floor + up, self.low, self.high)
        return steps.masked_fill(self.zero, 0.0)


def fit_(
    parts: Sequence[SoftSteps],
    error: Callable[[], Tensor],
    fit: Fit,
    scale_learning_rate: float = 0.0,
    journal: Journal | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Minimize `error()`, a scalar near 1 for rounding to nearest, over the rounding of `parts`.

    Gradients are averaged over ranks, so all ranks take the same steps. With a
    `scale_learning_rate` above 0, scales are also learned, except powers of two. `journal` keeps
    the state of this fit from time to time, with that of the `generator` that `error` draws from;
    not on several ranks, which would have to resume from the same step.
    """
    moves = [part.v for part in parts]
    groups: list[dict[str, Any]] = [{"params": moves, "lr": fit.learning_rate}]
    gains = [part.log_gain for part in parts if not part.power_of_two]
    if scale_learning_rate > 0 and gains:
        groups.append({"params": gains, "lr": scale_learning_rate})
    optimizer = torch.optim.Adam(groups)
    learned = [*moves, *gains]
    choices = max(1, sum(int(part.free.sum()) for part in parts))
    steps = range(fit.iterations)
    kept = journal if journal is not None and world_size() == 1 else Journal()
    for step in kept.over("fit", steps, _State(learned, optimizer, generator)):
        total, beta = error(), fit.beta(step)
        if beta is not None:
            penalty = torch.stack([part.penalty(beta) for part in parts]).sum()
            total = total + fit.regularization / choices * penalty
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        _average_gradients_(learned)
        optimizer.step()


@dataclass(frozen=True)
class _State:
    """What `fit_` changes: the learned tensors, the optimizer, the random generator."""

    learned: Sequence[Tensor]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator | None

    def state_dict(self) -> dict[str, Any]:
        state = None if self.generator is None else self.generator.get_state()
        return {"learned": list(self.learned), "optimizer": self.optimizer.state_dict(),
                "generator": state}  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        for tensor, value in zip(self.learned, state_dict["learned"], strict=True):
            tensor.copy_(value)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.generator is not None:
            self.generator.set_state(state_dict["generator"].cpu())


def fit_layer(
    moments: Moments,
    grid: Grid,
    ranges: Observer,
    fit: Fit,
    scale_learning_rate: float = 0.0,
    journal: Journal | None = None,
) -> GridWeight:
    """Learn the rounding of one layer, minimizing the output error given by `moments`.

    Errors of outputs are relative to those of rounding to nearest; outputs that end up with a
    larger error are rounded to nearest. `journal` keeps the state of this fit.
    """
    weight = moments.weight
    scale, zero_point = choose_scale(weight, grid, ranges)
    nearest = round_to_grid(weight, scale, grid, zero_point)
    usual = moments.error(nearest.weight)
    unit = torch.where(usual > 0, usual, torch.ones_like(usual))
    soft = SoftSteps(weight, grid, scale, zero_point)

    def error() -> Tensor:
        return (moments.error(soft.weight()) / unit).mean()

    fit_([soft], error, fit, scale_learning_rate, journal)
    fitted = soft.rounded()
    if scale_learning_rate > 0:  # outputs may share a scale: take all or none
        return fitted if bool(moments.error(fitted.weight).sum() < usual.sum()) else nearest
    better = moments.error(fitted.weight) < usual
    kept = per_output(better, weight)
    return GridWeight(scale, torch.where(kept, fitted.steps, nearest.steps), zero_point)


def _average_gradients_(learned: Sequence[Tensor]) -> None:
    if world_size() > 1:
        for parameter in learned:
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)

"""What the metrics of tasks are: which direction is better, their range, how they are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure of merit of predictions.

    Attributes:
        higher: whether higher values are better.
        low, high: the range of possible values; None where there is no limit.
        percent: whether people read it in percent.
        binomial: whether it is a share of independent samples, whose standard error is binomial.
    """

    higher: bool = True
    low: float | None = 0.0
    high: float | None = 1.0
    percent: bool = False
    binomial: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it is in [0, 1], so that differences are read in percentage points."""
        return (self.low, self.high) == (0.0, 1.0)

    def better(self, first: float, second: float) -> bool:
        """Whether `first` is better than `second`."""
        return first > second if self.higher else first < second

    def at_least_as_good(self, value: float, bound: float) -> bool:
        return not self.better(bound, value)


_ERROR = Metric(higher=False, high=None)
_KNOWN = {
    "accuracy": Metric(percent=True, binomial=True),
    "exact_match": Metric(percent=True, binomial=True),
    "pixel_accuracy": Metric(percent=True),
    "token_accuracy": Metric(percent=True),
    "rmse": _ERROR,
    "mae": _ERROR,
    "mse": _ERROR,
    "r2": Metric(low=None),
    "perplexity": Metric(higher=False, low=1.0, high=None),
    "bits_per_token": _ERROR,
}


def range_of_figure(name: str) -> tuple[float | None, float | None]:
    """The values that a figure such as `val/accuracy` can have; None where there is no limit."""
    kind, _, last = name.partition("/")
    if kind not in ("val", "test"):
        return 0.0, None
    form = metric_of(last.removesuffix("_torch"))
    return form.low, form.high


def metric_of(name: str) -> Metric:
    """The metric called `name`; one that is not known is in [0, 1], and higher is better."""
    return _KNOWN.get(name, Metric())

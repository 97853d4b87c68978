"""Options of pruning that cannot be meant."""

from __future__ import annotations

import pytest

from compressbench.core.errors import UserError
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from tests.pruning.pruned_net import pruned


def test_an_unknown_name_to_skip_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'stemm'; the nearest name is stem"):
        pruned(Prune(Magnitude(), sparsity=0.5, skip=["stemm"]))


@pytest.mark.parametrize("value", [1.0, float("nan"), -0.1, "abc", True, float("inf")])
def test_a_sparsity_outside_its_range_is_refused(value):
    with pytest.raises(UserError, match=r"^sparsity must be a number in \[0, 1\), got"):
        Prune(Magnitude(), sparsity=value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "exactly one of sparsity and threshold"),
        ({"sparsity": 0.5, "threshold": 0.1}, "exactly one of sparsity and threshold"),
        ({"threshold": 0.0}, "threshold must be a number above 0, got 0.0"),
        ({"threshold": float("inf")}, "threshold must be"),
        (
            {"sparsity": 0.5, "scope": "all"},
            "scope must be global, layer, erk, lamp, sensitivity, got 'all'",
        ),
        ({"sparsity": 0.5, "skip": "fc"}, "skip must be a list"),
        ({"sparsity": 0.5, "batchnorm_images": 1}, "batchnorm_images"),
        ({"sparsity": 0.5, "criterion": "l2"}, "criterion must be"),
    ],
)
def test_other_options_are_checked(options, text):
    with pytest.raises(UserError, match=text):
        Prune(**{"criterion": Magnitude(), **options})

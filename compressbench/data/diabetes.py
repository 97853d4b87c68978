"""The diabetes study that scikit-learn ships: ten measurements of a patient, one number to tell."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from compressbench.core.errors import UserError
from compressbench.core.types import Split, SplitName
from compressbench.data.arrays import Arrays, Division
from compressbench.tasks.regression import Regression

INPUTS, TARGETS = "diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"


def diabetes(
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    metric: str = "rmse",
) -> Arrays:
    """Regression on 442 patients (Efron et al. 2004, "Least angle regression"): how far the disease
    went in a year, from 25 to 346, by age, sex, body mass index, blood pressure and six values of
    the serum, each standardised over all patients.

    Args:
        validation_fraction: share of the patients, in (0, 1).
        test_fraction: share of the patients, in (0, 1).
        split_seed: seed of the splits.
        metric: rmse, mae or r2.
    """
    division = Division(validation_fraction, test_fraction, split_seed)
    return Arrays("diabetes", _read, ("progression",), Regression(), metric, division)


def _read() -> Mapping[SplitName, Split]:
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("dataset=diabetes: scikit-learn, which has the data, is not installed")
    folder = Path(package.origin).parent / "datasets/data"
    values = np.loadtxt(folder / INPUTS)
    values = (values - values.mean(0)) / values.std(0)
    inputs = torch.from_numpy(values.astype(np.float32))
    targets = torch.from_numpy(np.loadtxt(folder / TARGETS, dtype=np.float32))
    return {"train": Split(inputs, targets[:, None])}

"""Data that the caller holds -> splits in memory, and a config that names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import sampler as samplers

from compressbench.core.errors import UserError
from compressbench.core.task import Task
from compressbench.core.types import Split, SplitName
from compressbench.data.array_file import fitted, numbers
from compressbench.data.in_hand import TARGET, TASK_TARGET, digest
from compressbench.data.partition import SPLITS
from compressbench.tasks.classification import CLASSIFICATION

_WHAT = ("a torch Dataset, a DataLoader or a pair (inputs, targets) of arrays; or those of several "
         "splits: (train, test) or {'train': ..., 'validation': ..., 'test': ...}")  # fmt: skip


@dataclass(frozen=True)
class GivenData:
    """`config` names the data for the engine, `splits` is what it stands for."""

    config: Mapping[str, Any]
    splits: Mapping[SplitName, Split]

    @property
    def live(self) -> dict[str, Mapping[SplitName, Split]]:
        return {self.config["sha256"]: self.splits}

    @property
    def are_pixels(self) -> bool:
        return self.splits["train"].inputs.dtype == torch.uint8


def given_data(
    data: Any,
    class_names: Sequence[str] | None = None,
    task: Task = CLASSIFICATION,
    task_config: Mapping[str, Any] | None = None,
) -> GivenData:
    """Read data into memory and describe them. Raises UserError for what cannot be taken.

    Classes, or the numbers that are answered, are called by `class_names`, else as the training
    Dataset says (`classes`), else "0" ... by the largest target. `task_config` builds the task.
    """
    parts = _parts(data)
    splits = {name: _split(part, f"data {name}", task) for name, part in parts.items()}
    _check_alike(splits)
    if task != CLASSIFICATION:
        known = class_names or _class_names(parts) or numbers(splits, task)
        named = {"task": task_config, "class_names": [str(n) for n in known]}
        return GivenData({"_target_": TASK_TARGET, "sha256": digest(splits), **named}, splits)
    names = class_names or _class_names(parts)
    config = {
        "_target_": TARGET,
        "sha256": digest(splits),
        "class_names": [str(n) for n in names] if names else _numbers(splits),
    }
    _check_targets(splits, len(config["class_names"]))
    return GivenData(config, splits)


def _parts(data: Any) -> dict[SplitName, Any]:
    if isinstance(data, Mapping):
        unknown = sorted(set(map(str, data)) - set(SPLITS))
        if unknown or "train" not in data:
            raise UserError(
                f"data: the splits are train, validation and test, of which train is required; got "
                f"{', '.join(map(str, data)) or 'none'}"
            )
        return {name: data[name] for name in SPLITS if name in data}
    if not isinstance(data, tuple) or _is_pair(data):
        return {"train": data}
    if len(data) == 2:
        return {"train": data[0], "test": data[1]}
    if len(data) == 3:
        return {"train": data[0], "validation": data[1], "test": data[2]}
    raise UserError(f"data: a tuple of {len(data)} is not {_WHAT}")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_array(value[0])


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__array__")


def _split(part: Any, where: str, task: Task) -> Split:
    if _is_pair(part):
        inputs, targets = part
    elif isinstance(part, DataLoader):
        inputs, targets = _of_loader(part, where)
    elif type(part) is TensorDataset and len(part.tensors) == 2:
        inputs, targets = part.tensors
    elif isinstance(part, IterableDataset) or hasattr(part, "__getitem__"):
        inputs, targets = _stacked(_samples(part), where)
    else:
        raise UserError(f"{where}: {type(part).__name__} is not {_WHAT}")
    inputs, targets = _inputs(_tensor(inputs, where), where), _targets(targets, where, task)
    if len(inputs) != len(targets):
        raise UserError(f"{where}: {len(inputs)} inputs, but {len(targets)} targets")
    return fitted(Split(inputs, targets), task)


def _samples(dataset: Any) -> Iterator[Any]:
    """In order; by index where there is a length, since not every Dataset stops by itself."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        yield from dataset
    else:
        yield from (dataset[row] for row in range(len(dataset)))


def _of_loader(loader: DataLoader[Any], where: str) -> tuple[Any, Any]:
    """What a loader loads: its dataset where it takes all of it, or the rows that its sampler
    names; else one pass.
    """
    chosen = _chosen(loader)
    if chosen is not None and loader.collate_fn is torch.utils.data.default_collate:
        taken = _split(chosen, where, CLASSIFICATION)
        return taken.inputs, taken.targets
    if loader.batch_size is None and loader.batch_sampler is None:  # it yields single samples
        return _stacked(iter(loader), where)
    batches = [_pair(batch, where) for batch in loader]
    if not batches:
        raise UserError(f"{where}: holds no samples")
    inputs, targets = zip(*batches, strict=True)
    return (torch.cat([_tensor(part, where) for part in inputs]),
            torch.cat([_tensor(part, where) for part in targets]))  # fmt: skip


def _chosen(loader: DataLoader[Any]) -> Any | None:
    """The samples that a loader takes, in an order of their own; None where one pass must show."""
    sampler, dataset = loader.sampler, loader.dataset
    if isinstance(sampler, samplers.SubsetRandomSampler):
        return Subset(dataset, sorted(int(row) for row in sampler.indices))
    if isinstance(sampler, samplers.RandomSampler):
        rows = len(dataset)  # type: ignore[arg-type]
        return dataset if not sampler.replacement and len(sampler) == rows else None
    return dataset if isinstance(sampler, samplers.SequentialSampler) else None


def _stacked(samples: Iterator[Any], where: str) -> tuple[Tensor, list[Any]]:
    inputs: list[Tensor] = []
    targets: list[Any] = []
    for row, sample in enumerate(samples):
        given, target = _pair(sample, f"{where} sample {row}")
        inputs.append(_tensor(given, f"{where} sample {row}"))
        targets.append(target.tolist() if hasattr(target, "tolist") else target)
        if inputs[-1].shape != inputs[0].shape:
            raise UserError(
                f"{where} sample {row}: all inputs must have one shape, got "
                f"{list(inputs[-1].shape)} after {list(inputs[0].shape)}"
            )
    if not inputs:
        raise UserError(f"{where}: holds no samples")
    return torch.stack(inputs), targets


def _pair(sample: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise UserError(f"{where}: must be a pair (input, target), got {type(sample).__name__}")
    return sample[0], sample[1]


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    module = type(value).__module__.partition(".")[0]
    if not _is_array(value) or module == "PIL":
        raise UserError(
            f"{where}: inputs must be tensors or arrays, got {type(value).__name__}; give the "
            "Dataset a transform that makes tensors"
        )
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise UserError(f"{where}: arrays must hold numbers, got {array.dtype}")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _inputs(inputs: Tensor, where: str) -> Tensor:
    """uint8 images as they are, floats as float32."""
    shape = list(inputs.shape)
    if inputs.ndim < 2 or len(inputs) == 0:
        raise UserError(f"{where}: inputs must be [samples, ...], got {shape}")
    if inputs.dtype == torch.uint8:
        if inputs.ndim != 4 or shape[1] not in (1, 3):
            raise UserError(
                f"{where}: uint8 inputs must be images [samples, 1 or 3 channels, height, width], "
                f"got {shape}"
            )
        return inputs
    if not inputs.is_floating_point():
        raise UserError(f"{where}: inputs must be uint8 images or floats, got {inputs.dtype}")
    if not bool(torch.isfinite(inputs).all()):
        raise UserError(f"{where}: inputs hold NaN or infinity")
    return inputs.float()


def _targets(given: Any, where: str, task: Task) -> Tensor:
    if task != CLASSIFICATION:
        return _numbers_of(given, where)
    try:
        found = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.array(given)
    except ValueError as error:
        raise UserError(f"{where}: targets must be integers [samples]: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "biu":
        raise UserError(
            f"{where}: targets must be class numbers, integers [samples], got {found.dtype} "
            f"{list(found.shape)}; for others name the task, such as task='regression'"
        )
    return torch.from_numpy(found.astype(np.int64))


def _numbers_of(given: Any, where: str) -> Tensor:
    """Targets of any shape, float32 or int64."""
    try:
        found = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.array(given)
    except ValueError as error:
        raise UserError(f"{where}: targets must be numbers of one shape: {error}") from error
    if found.dtype.kind not in "biuf":
        raise UserError(f"{where}: targets must be numbers, got {found.dtype}")
    whole = found.dtype.kind != "f"
    return torch.from_numpy(found.astype(np.int64 if whole else np.float32))


def _check_alike(splits: Mapping[SplitName, Split]) -> None:
    first = splits["train"].inputs
    for name, split in splits.items():
        if (split.inputs.dtype, split.inputs.shape[1:]) != (first.dtype, first.shape[1:]):
            raise UserError(
                f"data {name}: inputs are {split.inputs.dtype} {list(split.inputs.shape[1:])}, "
                f"those of train {first.dtype} {list(first.shape[1:])}"
            )


def _class_names(parts: Mapping[SplitName, Any]) -> Sequence[str] | None:
    """What the training Dataset calls its classes; the other splits must not contradict it."""
    names = _classes_of(parts["train"])
    for name, part in parts.items():
        others = _classes_of(part)
        if names is not None and others is not None and list(others) != list(names):
            raise UserError(
                f"data {name}: its classes are {list(others)}, those of train {list(names)}: "
                "a label would mean another class in each"
            )
    return names


def _classes_of(part: Any) -> Sequence[str] | None:
    """As torchvision's datasets have them."""
    dataset = part.dataset if isinstance(part, DataLoader) else part
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found: Sequence[str] | None = getattr(dataset, "classes", None)
    return found if isinstance(found, (list, tuple)) else None


def _numbers(splits: Mapping[SplitName, Split]) -> list[str]:
    largest = max(int(split.targets.max()) for split in splits.values())
    return [str(number) for number in range(largest + 1)]


def _check_targets(splits: Mapping[SplitName, Split], classes: int) -> None:
    if classes < 2:
        raise UserError("data: at least two classes are needed; targets are all 0")
    for name, split in splits.items():
        outside = split.targets[(split.targets < 0) | (split.targets >= classes)]
        if len(outside):
            raise UserError(
                f"data {name}: targets must be in [0, {classes - 1}], got {int(outside[0])}"
            )

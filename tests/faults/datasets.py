"""Datasets of a few rows, built as a run builds them, and the checks that a run makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compressbench.core.live_objects import live_objects
from compressbench.core.types import Data, DataSpec, Split
from compressbench.data.in_hand import DataInHand
from compressbench.engine.data_checks import check_data
from compressbench.store.entries import Store


def png(pixels: np.ndarray, level: int) -> bytes:
    """Pixels [H, W, C] as a PNG file; another compression level gives other bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def write_images(path: Path, encoded: list[bytes], labels: list[int]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(encoded, pa.binary()), pa.array(labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, names=["img", "label"]), path)
    return path


def random_pixels(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def lines_of(data: Data, most_shared: float = 0.01) -> tuple[str, ...]:
    """What `prepare` says of a dataset; raises as it does."""
    return check_data(data, {"manifest": data.manifest()}, Store.default(), most_shared)


def lines_given(given, most_shared: float = 0.01) -> tuple[str, ...]:
    """The same for data that were passed from Python."""
    with live_objects(given.live):
        options = {name: value for name, value in given.config.items() if name != "_target_"}
        return lines_of(DataInHand(**options), most_shared)


class Mine:
    """A dataset of the user with the given splits, each (inputs, targets)."""

    def __init__(self, names=("a", "b"), **splits) -> None:
        whole = {"train": 40, "validation": 20, "test": 10}
        self.names = names
        self.splits = {
            name: splits.get(name, (noise(rows, seed), torch.arange(rows) % 2))
            for seed, (name, rows) in enumerate(whole.items())
        }

    @property
    def spec(self) -> DataSpec:
        return DataSpec("mine", (3,), self.names, (), ())

    def manifest(self):
        return {"name": "mine"}

    def verify(self) -> None:
        pass

    def split(self, name) -> Split:
        return Split(*self.splits[name])

    def prepare(self, inputs):
        return inputs.clone()

    def augment(self, inputs, generator):
        return inputs


def noise(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))

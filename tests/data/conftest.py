"""Small parquet files and image folders, written where the test asks for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(folder))
    return folder / "decoded"


@pytest.fixture
def pixels():
    """Call with (count, height, width, channels) for random uint8 images [N, H, W, C]."""

    def make(count, height=32, width=32, channels=3, seed=0):
        generator = np.random.default_rng(seed)
        return generator.integers(0, 256, (count, height, width, channels), dtype=np.uint8)

    return make


def encode(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_parquet():
    """Call with (path, images, labels): PNG in a struct column; `encoded` replaces images."""

    def write(path: Path, images=(), labels=(), *, encoded=None, struct=True, columns=None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = [encode(image) for image in images] if encoded is None else encoded
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        values = [{"bytes": item, "path": None} for item in data] if struct else data
        column = pa.array(values, kind if struct else pa.binary())
        names = columns or ["img", "label"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table([column, pa.array(labels)], names=names), path, row_group_size=7)
        return path

    return write


@pytest.fixture
def write_folder():
    """Call with (root, {"class": images})."""

    def write(root: Path, classes):
        for name, images in classes.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                (root / name / f"{number:03}.png").write_bytes(encode(image))
        return root

    return write


@pytest.fixture
def cifar_root(tmp_path, write_parquet, pixels):
    """40 training and 20 test images in the ten classes of CIFAR-10."""
    root = tmp_path / "cifar"
    write_parquet(root / "train.parquet", pixels(40), [row % 10 for row in range(40)])
    write_parquet(root / "test.parquet", pixels(20, seed=1), [row % 10 for row in range(20)])
    return root

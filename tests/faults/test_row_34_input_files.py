"""A file that the user names must be a regular one of a sane size, and decode to sane pixels."""

from __future__ import annotations

import io
import itertools
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compressbench.core.errors import UserError
from compressbench.data.images import Images
from tests.end_to_end.running import QUIET

TERABYTES = 2 * 10**12


def encoded(size=(8, 8), mode="RGB", kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def put(kind: str, path: Path) -> None:
    """Make what is no regular file of a sane size."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        with path.open("wb") as file:
            file.truncate(TERABYTES)


KINDS = ["pipe", "endless", "folder", "broken link", "link to itself", "socket", "sparse"]
PLACES = {
    "parquet": ("dataset=images", "dataset.train={}", "x.parquet"),
    "checkpoint": ("model=mlp", "model.checkpoint={}", "x.pt"),
    "safetensors": ("model=mlp", "model.checkpoint={}", "x.safetensors"),
    "texts": ("dataset=ag_news", "model=text_transformer", "dataset.root={folder}", "train.csv"),
    "cifar": ("dataset=cifar10", "dataset.root={folder}", "train.parquet"),
}


ALL = [(kind, place) for kind in KINDS for place in PLACES]
QUICK = list(zip(KINDS, itertools.cycle(PLACES), strict=False))


@pytest.mark.parametrize(
    ("kind", "place"),
    [c if c in QUICK else pytest.param(*c, marks=pytest.mark.long) for c in ALL],
)
def test_row_34_no_regular_file_is_refused_at_once(refused, tmp_path, monkeypatch, kind, place):
    *arguments, name = PLACES[place]
    monkeypatch.chdir(tmp_path)
    put(kind, tmp_path / name)
    if place == "cifar":
        (tmp_path / "test.parquet").write_bytes(b"")
    given = [a.format(tmp_path / name, folder=tmp_path) for a in arguments]
    line = refused("recipe=baseline", *given, *QUIET)
    assert name in line or "no train.csv or test.csv" in line


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("name", ["first.png", "later.png"])
def test_row_34_an_image_that_is_no_regular_file_is_refused(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "data" / label / f"k{number}.png").write_bytes(encoded())
    put(kind, tmp_path / "data" / "a" / name.replace("first", "a"))
    with pytest.raises(UserError, match=r"/a/(a|later)\.png"):
        assert Images(root=str(tmp_path / "data")).manifest()


def parquet_of(path: Path, image: bytes, count: int = 40) -> str:
    rows = {"img": [{"bytes": image}] * count, "label": [0, 1] * (count // 2)}
    pq.write_table(pa.table(rows), path)
    return str(path)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + sum_

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bomb(15_000, 10_000), "15000x10000 pixels, at most 50000000 are decoded"),
        (bomb(2**31 - 1, 2**31 - 1), "pixels, at most"),
        (bomb(100, 100), "not a PNG or JPEG image"),
        (encoded()[:40], "not a PNG or JPEG image"),
        (encoded((99, 99), kind="JPEG")[:400], "not a PNG or JPEG image"),
        (encoded(kind="GIF", mode="P"), "not a PNG or JPEG image"),
        (encoded(mode="I;16"), "must have 8 bits per channel"),
        (b"", "not a PNG or JPEG image"),
    ],
    ids=["150 megapixels", "largest", "hollow", "cut", "cut jpeg", "gif", "16 bits", "empty"],
)
def test_row_35_an_image_that_is_too_large_or_not_whole_is_refused(
    tmp_path, monkeypatch, recwarn, image, message
):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    data = Images(train=parquet_of(tmp_path / "t.parquet", image))
    with pytest.raises(UserError, match=message):
        assert data.spec
    assert not recwarn.list


@pytest.mark.parametrize(
    "image",
    [encoded(mode="CMYK", kind="JPEG"), encoded(mode="L"), encoded(mode="RGBA"), encoded(mode="P"),
     encoded(mode="1"), encoded(kind="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")],
    ids=["cmyk", "grey", "alpha", "palette", "bits", "exif"],
)  # fmt: skip
def test_row_35_images_of_odd_modes_become_three_channels(tmp_path, monkeypatch, image):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    data = Images(train=parquet_of(tmp_path / "t.parquet", image), channels=3, crop_padding=1)
    assert data.spec.input_shape == (3, 8, 8)


def test_row_34_images_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    train = parquet_of(tmp_path / "t.parquet", encoded(), 40_000)
    data = Images(train=train, image_size=16_000)
    with pytest.raises(UserError, match=r"images of 3x16000x16000: .* of memory are needed"):
        assert data.spec
    for size in (60_000, 2**31, [8, 10**30]):
        with pytest.raises(UserError, match=r"dataset\.image_size must be an integer in \[1, "):
            Images(train=train, image_size=size)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.5] * 40), "labels must be integers or text"),
        (pa.array([[1]] * 40), "labels must be integers or text"),
        (pa.array([True, False] * 20), "labels must be integers or text"),
        (pa.array([None] * 40, pa.int64()), "rows without a label"),
        (pa.array([{"a": 1}] * 40), "labels must be integers or text"),
    ],
    ids=["float", "list", "flag", "null", "struct"],
)
def test_row_34_labels_of_odd_column_types_are_refused(tmp_path, monkeypatch, column, message):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    pq.write_table(pa.table({"img": [encoded()] * 40, "label": column}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        assert Images(train=str(tmp_path / "t.parquet")).spec


@pytest.mark.parametrize("column", [[[1, 2]] * 40, ["text"] * 40, [1] * 40, [None] * 40])
def test_row_34_images_of_odd_column_types_are_refused(tmp_path, monkeypatch, column):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))
    table = pa.table({"img": column, "label": [0, 1] * 20})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="images must be PNG or JPEG bytes"):
        assert Images(train=str(tmp_path / "t.parquet")).spec


def test_row_34_a_small_file_with_too_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("compressbench.data.sources.MOST_ROWS", 39)
    with pytest.raises(UserError, match="40 rows, at most 39 are read"):
        assert Images(train=parquet_of(tmp_path / "t.parquet", encoded())).spec


@pytest.mark.long
def test_row_34_too_many_threads_do_not_crash(tmp_path):
    """The most that is accepted works in a process of its own."""
    code = "import torch; torch.set_num_threads(256); x = torch.rand(999, 999); x @ x"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0

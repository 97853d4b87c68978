from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import decode
from compressbench.data.decode import Form, decoded, first_form
from compressbench.data.sources import Folder, Parquet


@pytest.fixture
def parquet(tmp_path, write_parquet, pixels):
    images = pixels(600, 5, 4)
    path = write_parquet(tmp_path / "some.parquet", images, [row % 3 for row in range(600)])
    return Parquet((path,)), torch.from_numpy(images).permute(0, 3, 1, 2)


def cached_tensors(store):
    (path,) = store.glob("*.safetensors")
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_png_pixels_come_back_exactly_in_the_order_of_the_rows(parquet, monkeypatch, workers):
    monkeypatch.setattr(decode.files, "workers", lambda: workers)
    monkeypatch.setattr(decode, "IMAGES_AT_ONCE", 64)
    source, images = parquet
    assert decoded(source, Form(3, 5, 4)).equal(images)


def test_images_are_decoded_once(parquet, store, monkeypatch):
    source, images = parquet
    decoded(source, Form(3, 5, 4))
    monkeypatch.setattr(decode, "_decode_all", lambda *_: pytest.fail("decoded again"))
    assert decoded(source, Form(3, 5, 4)).equal(images)
    assert not list(store.glob(".*"))  # no temporary file is left


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_cache_is_rebuilt(parquet, store, caplog, damage):
    source, images = parquet
    decoded(source, Form(3, 5, 4))
    path = cached_tensors(store)
    content = path.read_bytes()
    damaged = {
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "truncate": content[:-100],
        "empty": b"",
        "other": b"no safetensors at all",
    }
    path.write_bytes(damaged[damage])
    assert decoded(source, Form(3, 5, 4)).equal(images)
    assert "damaged" in caplog.text
    assert path.read_bytes() == content


def test_other_content_is_never_taken_for_the_same(parquet, write_parquet, pixels):
    source, _ = parquet
    decoded(source, Form(3, 5, 4))
    other = pixels(600, 5, 4, seed=9)
    write_parquet(source.paths[0], other, [0] * 600)
    assert decoded(source, Form(3, 5, 4)).equal(torch.from_numpy(other).permute(0, 3, 1, 2))


def test_images_of_another_size_are_resized_bilinearly_and_said_so_once(
    tmp_path, write_folder, pixels, caplog
):
    image = pixels(1, 9, 6)[0]
    write_folder(tmp_path / "set", {"a": [pixels(1, 4, 4)[0]], "b": [image, image]})
    with caplog.at_level(logging.WARNING):
        found = decoded(Folder(tmp_path / "set"), Form(3, 4, 4))
    reference = Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR)
    assert found[1].permute(1, 2, 0).equal(torch.from_numpy(np.array(reference)))
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "resized 2 of 3 images to 4x4 (bilinear)"
    ]


def test_colour_becomes_grey_and_grey_becomes_colour_on_request(tmp_path, write_folder, pixels):
    grey = pixels(1, 4, 4, 1)[0]
    source = Folder(write_folder(tmp_path / "set", {"a": [grey], "b": [pixels(1, 4, 4)[0]]}))
    assert first_form(source, None, None) == Form(1, 4, 4)
    assert decoded(source, Form(1, 4, 4)).shape == (2, 1, 4, 4)
    colour = decoded(source, Form(3, 4, 4))
    assert colour[0].equal(torch.from_numpy(grey).view(1, 4, 4).expand(3, 4, 4))


def test_the_form_is_that_of_the_first_image_unless_asked_otherwise(parquet):
    source, _ = parquet
    assert first_form(source, None, None) == Form(3, 5, 4)
    assert first_form(source, 1, None) == Form(1, 5, 4)
    assert first_form(source, None, (7, 8)) == Form(3, 7, 8)


def encoded_16_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no image", "not a PNG or JPEG image"),
        (b"", "not a PNG or JPEG image"),
        (None, "no image bytes"),
        (encoded_16_bits(), "8 bits per channel, got mode I;16"),
    ],
)
def test_an_undecodable_image_is_named_by_its_row(
    tmp_path, write_parquet, pixels, store, bad, message
):
    good = io.BytesIO()
    Image.fromarray(pixels(1, 4, 4)[0]).save(good, "PNG")
    rows = [good.getvalue()] * 9 + [bad]
    path = write_parquet(tmp_path / "bad.parquet", labels=[0] * 10, encoded=rows)
    with pytest.raises(UserError, match=f"bad.parquet row 9: .*{message}"):
        decoded(Parquet((path,)), Form(3, 4, 4))
    assert not list(store.glob("*.safetensors"))


def test_a_truncated_image_is_refused(tmp_path, write_parquet):
    buffer = io.BytesIO()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
    path = write_parquet(tmp_path / "t.parquet", labels=[0], encoded=[buffer.getvalue()[:-300]])
    with pytest.raises(UserError, match=r"t\.parquet row 0: .*truncated"):
        decoded(Parquet((path,)), Form(3, 32, 32))


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(parquet, store, monkeypatch):
    source, _ = parquet
    decode_all = decode._decode_all

    def slow(*arguments):
        result = decode_all(*arguments)
        source.paths[0].write_bytes(source.paths[0].read_bytes() + b"x")
        return result

    monkeypatch.setattr(decode, "_decode_all", slow)
    with pytest.raises(CheckFailedError, match="changed while in use"):
        decoded(source, Form(3, 5, 4))
    assert not list(store.glob("*.safetensors"))

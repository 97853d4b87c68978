"""Digests against hashlib over bytes that numpy and the file system give."""

import hashlib

import numpy as np
import pytest
import torch

from compressbench.core.digests import digest, file_digest, named


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "int8", "uint8", "bool"])
def test_values_count_row_by_row_whatever_their_layout(kind):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    tensor = torch.from_numpy(values)
    assert digest([tensor]) == sha256(values.tobytes())
    assert digest([tensor.permute(2, 0, 1)]) == sha256(values.transpose(2, 0, 1).tobytes())
    assert digest([tensor[:, 1]]) == sha256(values[:, 1].tobytes())


def test_parameters_half_numbers_scalars_and_nothing():
    ones = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    assert digest([ones]) == sha256(bytes.fromhex("803f803f"))
    assert digest([torch.tensor(7, dtype=torch.int32)]) == sha256(bytes([7, 0, 0, 0]))
    assert digest([torch.zeros(0, 3), ""]) == sha256()


def test_texts_and_tensors_in_their_order():
    rows = np.array([3, 1], dtype=np.int64)
    assert digest(["größe", torch.from_numpy(rows)]) == sha256("größe".encode(), rows.tobytes())


def test_names_types_and_shapes_count():
    ones = torch.ones(2, 2)
    header = b"weighttorch.float32(2, 2)"
    assert digest(named({"weight": ones})) == sha256(header, ones.numpy().tobytes())
    others = [
        {"weight": ones.view(4)},
        {"weight": ones.view(torch.int32)},
        {"bias": ones},
        {"weight": ones, "bias": ones},
        {"weight": ones.clone().fill_(2)},
    ]
    found = {digest(named(tensors)) for tensors in [{"weight": ones.clone()}, *others]}
    assert len(found) == 6
    assert digest(named({"weight": ones})) in found


def test_a_file_and_a_link_to_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("file")
    assert file_digest(tmp_path / "file", follow_links=False) == sha256(b"x" * 100_000)
    assert file_digest(tmp_path / "link") == sha256(b"x" * 100_000)
    with pytest.raises(OSError, match="symbolic link"):
        file_digest(tmp_path / "link", follow_links=False)

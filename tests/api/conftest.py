"""One store for all runs of these tests, a working folder of their own, a module and data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import compressbench
from compressbench.core.types import Split
from compressbench.data.digits import Digits
from tests.end_to_end.conftest import one_table_of_operators  # noqa: F401 - used by being here

SHORT = {"trainer.accelerator": "cpu", "trainer.threads": 1}


class Net(nn.Module):
    """Two layers: [B, 1, 8, 8] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.max_pool2d(torch.relu(self.conv(images)), 2)
        return self.head(pooled.flatten(1))


NET, DATA = Net(), (torch.zeros(60, 1, 8, 8), torch.arange(60) % 10)
PIXELS = (torch.arange(60 * 64, dtype=torch.uint8).view(60, 1, 8, 8), DATA[1])


def compress(model, data, recipe="quantize", **arguments):
    """`compressbench.compress`, silent, on one thread, without tracking."""
    overrides = {**SHORT, **arguments.pop("overrides", {})}
    options = {"tracking": "none", "quiet": True, **arguments}
    return compressbench.compress(model, data, recipe, overrides=overrides, **options)


@pytest.fixture(scope="session")
def digits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Digits as floats, train and test."""
    data = Digits()

    def floats(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        return split.inputs / 255, split.targets

    return {"train": floats(data.split("train")), "test": floats(data.split("test"))}


@pytest.fixture(scope="session")
def trained_net(digits) -> Net:
    """A net that knows the digits fairly well; tests give it away and leave it as it is."""
    images, labels = digits["train"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("api_store")


@pytest.fixture(scope="session")
def shipped(trained_net, digits, store, tmp_path_factory):
    """A trained module in hand, quantized."""
    folder = tmp_path_factory.mktemp("shipped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSBENCH_STORE", str(store))
        data = (digits["train"], digits["test"])
        return compress(trained_net, data, trained=True, folder=folder)


@pytest.fixture(autouse=True)
def working_folder(tmp_path, store, monkeypatch):
    """An empty one, with the store elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(store))
    return tmp_path

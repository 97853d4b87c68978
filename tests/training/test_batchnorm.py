"""BatchNorm statistics measured again: against plain means, alone and on two ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import Context, DataSpec, Runtime, Split
from compressbench.training.batchnorm import reestimate_batchnorm_
from tests.two_ranks import on_two_ranks


@dataclass(frozen=True)
class Noise:
    """A dataset of random images; `prepare` only changes the dtype."""

    images: int = 40

    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", (2, 4, 4), ("a", "b", "c"), (0.0, 0.0), (1.0, 1.0))

    def split(self, name: str) -> Split:
        generator = torch.Generator().manual_seed(len(name))
        inputs = torch.randint(0, 256, (self.images, 2, 4, 4), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(self.images) % 3)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float() / 64

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise AssertionError("statistics are those of images that are not augmented")


def context(images: int = 40, **runtime) -> Context:
    return Context(Noise(images), Runtime(**runtime), 5, Path(), lambda config: config)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 3)
    )
    net[1].running_mean.fill_(77.0)  # what must be forgotten
    net[1].running_var.fill_(77.0)
    return net.eval()


def statistics(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = batch.transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, unbiased=True)


def test_all_images_in_one_batch_give_their_mean_and_unbiased_variance():
    net, own = model(), context()
    assert reestimate_batchnorm_(net, own, 40, batch_size=64) == 1
    mean, variance = statistics(net[0](own.data.prepare(own.data.split("train").inputs)))
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    assert int(net[1].num_batches_tracked) == 1


def test_unequal_batches_count_by_their_size():
    net, own = model(), context()
    reestimate_batchnorm_(net, own, 40, batch_size=16)  # 16, 16 and 8 images
    order = torch.randperm(40, generator=torch.Generator().manual_seed(own.seed))
    outputs = net[0](own.data.prepare(own.data.split("train").inputs[order]))
    parts = [(len(p), *statistics(p)) for p in outputs.split(16)]
    mean = sum(n * m for n, m, _ in parts) / 40
    variance = sum(n * v for n, _, v in parts) / 40
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)


def test_weights_flags_and_momentum_are_as_before_and_the_result_repeats():
    net, again = model(), model()
    net[1].momentum = again[1].momentum = 0.3
    reestimate_batchnorm_(net, context(), 20, batch_size=8)
    reestimate_batchnorm_(again, context(), 20, batch_size=8)
    assert net[1].momentum == 0.3
    assert not any(m.training for m in net.modules())
    assert not net[1]._forward_pre_hooks
    changed = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    fresh, same = model().state_dict(), again.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, fresh[name]) == (name not in changed)


def test_without_batchnorm_nothing_happens():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3, track_running_stats=False)
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert reestimate_batchnorm_(net, context(), 10) == 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_layer_called_twice_averages_both_and_one_never_called_keeps_its_own():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.spare = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.spare.running_mean.fill_(3.0)

        def forward(self, x):
            self.norm(x)
            return self.norm(x + 10)

    net, own = Twice().eval(), context()
    assert reestimate_batchnorm_(net, own, 40, batch_size=64) == 1
    mean, _ = statistics(own.data.prepare(own.data.split("train").inputs))
    torch.testing.assert_close(net.norm.running_mean, mean + 5)
    assert net.spare.running_mean.tolist() == [3.0, 3.0]


def test_a_last_batch_of_one_image_is_left_out_and_one_image_alone_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3)).eval()
    reestimate_batchnorm_(net, context(), 17, batch_size=16)
    assert all(math.isfinite(v) for v in net[2].running_var.tolist())
    with pytest.raises(CheckFailedError, match="no batch of two or more"):
        reestimate_batchnorm_(net, context(), 1)
    assert not net[2].training


def test_max_batches_caps_the_images():
    net = model()
    reestimate_batchnorm_(net, context(max_batches=2), 40, batch_size=4)
    assert int(net[1].num_batches_tracked) == 2


def one_rank(rank: int):
    net = model()
    reestimate_batchnorm_(net, context(39), 39, batch_size=64)  # 20 and 19 images
    try:
        reestimate_batchnorm_(net, context(), 1)
    except UserError as error:
        refusal = str(error)
    return ({k: v.tolist() for k, v in net.state_dict().items()}, refusal)


def test_two_ranks_hold_the_same_statistics_those_of_their_shards_together(tmp_path):
    results = on_two_ranks(one_rank, tmp_path)
    (first, refusal), second = results[0], results[1]
    assert (first, refusal) == second
    assert refusal == "1 training images cannot be shared by 2 processes"
    net, own = model(), context(39)
    order = torch.randperm(39, generator=torch.Generator().manual_seed(own.seed))
    outputs = net[0](own.data.prepare(own.data.split("train").inputs[order]))
    shards = [statistics(outputs[0::2]), statistics(outputs[1::2])]
    mean, variance = ((20 * a + 19 * b) / 39 for a, b in zip(*shards, strict=True))
    torch.testing.assert_close(torch.tensor(first["1.running_mean"]), mean)
    torch.testing.assert_close(torch.tensor(first["1.running_var"]), variance)

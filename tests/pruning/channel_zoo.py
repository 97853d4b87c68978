"""Models whose channels depend on one another, and how the tests cut them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.pruning.channels.limits import macs
from compressbench.pruning.prune_channels import PruneChannels

SPEC = DataSpec("noise", (3, 8, 8), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Noise:
    @property
    def spec(self) -> DataSpec:
        return SPEC

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (48, 3, 8, 8), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(48) % 3)

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("statistics are those of images that are not augmented")


def conv(inner: int, outer: int, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outer)
    )


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 3)

    def head(self, x):
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(Head):
    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.inner, self.outer = conv(3, 32), conv(32, 24), conv(24, 32)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.outer(F.relu(self.inner(x)))))


class Mobile(Head):
    """Depthwise, squeeze-excite (expanded and broadcast), concatenation."""

    def __init__(self) -> None:
        super().__init__(32 + 16)
        self.stem, self.depthwise, self.side = conv(3, 32), conv(32, 32, groups=32), conv(3, 16)
        self.squeeze, self.excite = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.join = conv(48, 48, groups=48)

    def forward(self, x):
        wide = F.hardswish(self.depthwise(F.relu6(self.stem(x))))
        gate = self.excite(F.relu(self.squeeze(wide.mean((2, 3), keepdim=True)))).sigmoid()
        wide = wide * gate.expand_as(wide) + wide * gate
        return self.head(self.join(torch.cat([wide, F.relu(self.side(x))], 1)))


class Grouped(Head):
    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.grouped, self.last = conv(3, 32), conv(32, 32, groups=4), conv(32, 16)

    def forward(self, x):
        return self.head(self.last(F.relu(self.grouped(F.relu(self.stem(x))))))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (3 * 64, 32, 24)
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(sizes[0], 32), nn.BatchNorm1d(32), nn.PReLU(32),
            nn.Linear(32, 24), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(24, 3)

    def forward(self, x):
        return self.out(self.hidden(x))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2 = conv(3, 16), nn.Linear(16 * 16, 24), nn.Linear(24, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(F.max_pool2d(F.relu(self.stem(x)), 2).flatten(1))))


class Shared(Head):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.twice, self.last = conv(3, 16), conv(16, 16), conv(16, 32)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(x))
        return self.head(F.relu(self.last(F.relu(self.twice(x)))))


class Scaled(Head):
    """A parameter that belongs to no layer, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.up = conv(3, 24), nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.gain = nn.Parameter(torch.rand(24, 1, 1) + 0.5)

    def forward(self, x):
        return self.head(F.relu(self.up(self.gain * F.relu(self.stem(x)))))


class Attention(nn.Module):
    """Four heads, split off by `view` or `unflatten`."""

    def __init__(self, counted: bool) -> None:
        super().__init__()
        self.heads, self.counted = 4, counted
        self.query, self.key, self.value = (nn.Linear(16, 32) for _ in range(3))
        self.out = nn.Linear(32, 16)

    def split(self, x):
        if self.counted:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        return x.unflatten(-1, (-1, 8)).transpose(1, 2)

    def forward(self, x):
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        if self.counted:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-1, -2) / 8**0.5, -1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Attention and a feed-forward layer with LayerNorm; every row of a picture is a token."""

    counted = False

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(self.counted)
        self.up, self.down, self.fc = nn.Linear(16, 48), nn.Linear(48, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x.movedim(1, 2).flatten(2))
        x = x + self.attention(self.norm(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.fc(x.mean(1))


class CountedHeads(Transformer):
    counted = True


ZOO = (Residual, Mobile, Grouped, Perceptron, Flat, Shared, Scaled, Transformer, CountedHeads)


class Awkward(Head):
    """What cannot be taken apart beside what can."""

    def __init__(self, kind: str) -> None:
        super().__init__(16)
        self.kind = kind
        self.stem, self.strange, self.last = conv(3, 16), conv(16, 16), conv(16, 16)
        self.norm = nn.GroupNorm(4, 16)
        self.halved = conv(8, 16)
        self.tied = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        if kind == "tied":
            self.tied.weight = self.strange[0].weight

    def forward(self, x):
        x = self.strange(F.relu(self.stem(x)))
        match self.kind:
            case "shuffle":
                batch, _, height, width = x.shape
                x = x.view(batch, 2, -1, height, width).transpose(1, 2).flatten(1, 2)
            case "group norm":
                x = self.norm(x)
            case "chunk":
                first, second = x.chunk(2, 1)
                x = self.halved(first * second.sigmoid())
            case "attention":
                x = x * x.mean(1, keepdim=True).sigmoid()
            case "fixed shape":
                x = x.reshape(-1, 16, 8, 8)
            case "tied":
                x = self.tied(x)
        return self.head(F.relu(self.last(x)))


def made(kind: type[nn.Module], *options: object) -> nn.Module:
    """A model with BatchNorm that does something."""
    torch.manual_seed(0)
    model = kind(*options)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, 0.0, 0.3)
    return model.eval()


def build(config) -> object:
    return made(next(k for k in ZOO if k.__name__ == config["_target_"]))


def context() -> Context:
    return Context(Noise(), Runtime(), 3, Path(), build)


def trained(model: nn.Module) -> Artifact:
    return Artifact(model, {"_target_": type(model).__name__}, (), frozenset({TRAINED}))


def run(stage: PruneChannels, model: nn.Module):
    outcome = stage.run({"model": trained(model)}, context())
    artifact.check(outcome.artifact)
    return outcome


def kept_macs(model: nn.Module) -> int:
    return macs(model.eval(), torch.zeros(1, 3, 8, 8))


def details(outcome) -> dict[str, str]:
    return {row.layer: row.detail for row in outcome.coverage}


def silenced(model: nn.Module, removed: Mapping[str, Mapping[str, list[int]]]) -> nn.Module:
    """The wide model with the removed channels set to zero where they come to life.

    A BatchNorm behind them is silenced, too; linear layers and bare convolutions lose their bias.
    """
    quiet = deepcopy(model)
    for name, sides in removed.items():
        layer = quiet.get_submodule(name)
        for channel in sides.get("out", []):
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight.data[:, channel] = 0
            elif not isinstance(layer, nn.PReLU):
                layer.weight.data[channel] = 0
            if getattr(layer, "bias", None) is not None:
                layer.bias.data[channel] = 0
    return quiet

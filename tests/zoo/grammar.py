"""Random small networks, each a deterministic function of its seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from torch import Tensor, nn

from tests.zoo import blocks

TARGET = f"{__name__}.RandomNet"
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ELU,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Mish,
)  # fmt: skip
LEAST, MOST = 4, 16  # pixels in a row
DEEPEST = 2  # blocks inside blocks


def config_of_seed(seed: int) -> dict[str, Any]:
    """The section `model` of a run; its student is a narrower network of the same kind."""
    return {"_target_": TARGET, "seed": seed}


class RandomNet(nn.Module):
    """A stem, two to five random blocks, a random head."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, seed: int) -> None:
        super().__init__()
        draw = Drawing(Random(seed), input_shape[0], input_shape[1])
        stem = draw.convolution()
        self.body = nn.Sequential(stem, *(draw.block(0) for _ in range(draw.random.randint(2, 5))))
        self.head = draw.head(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Drawing:
    """Draws blocks one after the other; `width` and `side` are those of the map so far."""

    def __init__(self, random: Random, width: int, side: int) -> None:
        self.random, self.width, self.side = random, width, side

    def block(self, depth: int) -> nn.Module:
        kinds: list[Callable[[int], nn.Module]] = [
            self.plain, self.plain, self.grouped, self.depthwise, self.transposed, self.padded,
            self.resized, self.gate, self.mask, self.gated, self.shuffle, self.pool, self.scale,
            self.attention,
        ]  # fmt: skip
        if depth < DEEPEST:
            kinds += [self.residual, self.residual, self.concat, self.dense, self.split,
                      self.padded_residual]  # fmt: skip
        return self.random.choice(kinds)(depth)

    def new_width(self) -> int:
        return self.random.randint(5, 14) * 2

    def norm(self, width: int) -> list[nn.Module]:
        kind = self.random.choice(["batch", "batch", "batch", "group", "instance", "layer", ""])
        match kind:
            case "batch":
                return [nn.BatchNorm2d(width)]
            case "group" if width % 2 == 0:
                return [nn.GroupNorm(2, width)]
            case "instance":
                return [nn.InstanceNorm2d(width, affine=True)]
            case "layer":
                return [blocks.LayerNorm2d(width)]
        return []

    def activation(self) -> list[nn.Module]:
        return [self.random.choice(ACTIVATIONS)()] if self.random.random() < 0.85 else []

    def finished(self, layer: nn.Module, outer: int) -> nn.Module:
        """The layer with a norm and an activation, in either order of use."""
        self.width = outer
        return nn.Sequential(layer, *self.norm(outer), *self.activation())

    def convolution(self, outer: int | None = None, stride: int = 1) -> nn.Module:
        outer = outer or self.new_width()
        size, dilation = self.random.choice([(1, 1), (3, 1), (3, 1), (3, 2), (5, 1)])
        layer = nn.Conv2d(
            self.width, outer, size, stride=stride, padding=dilation * (size // 2),
            dilation=dilation, bias=self.random.random() < 0.5,
        )  # fmt: skip
        return self.finished(layer, outer)

    def plain(self, depth: int) -> nn.Module:
        halve = depth == 0 and self.side >= 2 * LEAST and self.random.random() < 0.4
        if halve:
            self.side = (self.side + 1) // 2
        return self.convolution(stride=2 if halve else 1)

    def grouped(self, depth: int) -> nn.Module:
        groups = self.random.choice([g for g in (1, 2, 3, 4, 5) if self.width % g == 0])
        outer = groups * self.random.randint(3, 6)
        layer = nn.Conv2d(self.width, outer, 3, padding=1, groups=groups, bias=False)
        return self.finished(layer, outer)

    def depthwise(self, depth: int) -> nn.Module:
        layer = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width, bias=False)
        return self.finished(layer, self.width)

    def transposed(self, depth: int) -> nn.Module:
        outer = self.new_width()
        if depth or 2 * self.side > MOST:
            return self.finished(nn.ConvTranspose2d(self.width, outer, 3, padding=1), outer)
        self.side *= 2
        return self.finished(nn.ConvTranspose2d(self.width, outer, 2, stride=2), outer)

    def padded(self, depth: int) -> nn.Module:
        """A pad on two sides, so that the resolution stays."""
        inner, outer = self.width, self.new_width()
        layers = [blocks.AsymmetricPad(), nn.Conv2d(inner, outer, 2, bias=False)]
        return self.finished(nn.Sequential(*layers), outer)

    def resized(self, depth: int) -> nn.Module:
        if depth or self.side <= LEAST:
            return nn.AvgPool2d(3, 1, 1)
        self.side -= 1
        return blocks.Crop()

    def gate(self, depth: int) -> nn.Module:
        return blocks.Gate(self.width, self.random.randint(3, 8), self.random.random() < 0.5)

    def mask(self, depth: int) -> nn.Module:
        return blocks.Mask(self.width)

    def gated(self, depth: int) -> nn.Module:
        inner, self.width = self.width, self.new_width()
        how = self.random.choice(["glu", "max", "tanh", "two"])
        if how == "two":
            return blocks.TwoGates(inner, self.width)
        return blocks.Gated(inner, self.width, how)

    def shuffle(self, depth: int) -> nn.Module:
        return blocks.Shuffle(self.random.choice([g for g in (2, 3, 4, 1) if not self.width % g]))

    def pool(self, depth: int) -> nn.Module:
        if depth or self.side < 2 * LEAST:
            return nn.MaxPool2d(3, 1, 1)
        self.side //= 2
        return self.random.choice([nn.MaxPool2d, nn.AvgPool2d])(2)

    def scale(self, depth: int) -> nn.Module:
        return nn.Sequential(blocks.Scale(self.width), *self.activation())

    def attention(self, depth: int) -> nn.Module:
        heads, size = self.random.choice([(1, 8), (2, 6), (3, 4), (4, 5)])
        return blocks.Attention(self.width, heads, size, self.random.random() < 0.5)

    def body(self, depth: int, outer: int | None) -> nn.Module:
        """One or two blocks and a convolution to `outer` channels, from the map so far."""
        inside = [self.block(depth + 1) for _ in range(self.random.randint(0, 2))]
        return nn.Sequential(*inside, self.convolution(outer))

    def residual(self, depth: int) -> nn.Module:
        inner = self.width
        same = self.random.random() < 0.6
        body = self.body(depth, inner if same else None)
        short = nn.Identity() if same else nn.Conv2d(inner, self.width, 1, bias=False)
        return nn.Sequential(blocks.Residual(body, short), *self.activation())

    def padded_residual(self, depth: int) -> nn.Module:
        more = 2 * self.random.randint(1, 4)
        return blocks.PaddedResidual(self.body(depth, self.width + more), more)

    def branches(self, depth: int, inner: list[int]) -> list[nn.Module]:
        """A branch for each entry, from maps of that width; `width` becomes their sum."""
        made, total = [], 0
        for width in inner:
            self.width = width
            made.append(self.body(depth, None))
            total += self.width
        self.width = total
        return made

    def concat(self, depth: int) -> nn.Module:
        return blocks.Concat(self.branches(depth, [self.width] * self.random.randint(2, 3)))

    def dense(self, depth: int) -> nn.Module:
        inner = self.width
        made = self.branches(depth, [inner])
        self.width += inner
        return blocks.Concat([nn.Identity(), *made])

    def split(self, depth: int) -> nn.Module:
        if self.width < 4:
            return self.plain(depth)
        first = self.random.randint(2, self.width - 2)
        return blocks.Split(first, *self.branches(depth, [first, self.width - first]))

    def head(self, num_classes: int) -> nn.Module:
        match self.random.choice(["mean", "mean", "both", "flat", "view", "conv", "decoded"]):
            case "flat" | "view" as how:
                hidden = self.random.randint(12, 30)
                return blocks.FlatHead(self.width, 3, num_classes, hidden, how == "view")
            case "conv":
                return blocks.ConvolutionHead(self.width, num_classes)
            case "decoded":
                return blocks.DecodedHead(self.width, num_classes, self.random.randint(4, 9) * 2)
            case how:
                return blocks.PooledHead(self.width, num_classes, how == "both")

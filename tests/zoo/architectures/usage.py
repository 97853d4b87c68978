"""What users write beside layers: pads, slices, heads, tricks of training, odd signatures."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import Pooled, SqueezeExcite, conv_act, conv_norm


class Plain(nn.Module):
    """Three convolutions; the others differ in one thing."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.a, self.last = conv_act(width, 22), conv_act(22, 26)
        self.fc = nn.Linear(26, num_classes)

    def features(self, x):
        return self.last(self.a(self.stem(x)))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class ReservedName(Plain):
    """A layer that has the name of an attribute of torch's graph modules."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.code = nn.Linear(26, 30)
        self.fc = nn.Linear(30, num_classes)

    def forward(self, x):
        return self.fc(F.relu(self.code(self.features(x).mean((2, 3)))))


class AsymmetricPads(nn.Module):
    """Zeros on two sides only, as models from TensorFlow have them."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.a = conv_act(input_shape[0], width, padding=0)
        self.b = conv_act(width, 22, padding=0, stride=2)
        self.c = conv_act(22, 22, padding=0, groups=22)
        self.head = Pooled(22, num_classes)

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = layer(F.pad(x, (0, 1, 0, 1)))
        return self.head(x)


class MinusOnePad(Plain):
    """A pad that is not zero."""

    def features(self, x):
        return self.last(F.pad(self.a(self.stem(x)), (1, 1, 1, 1), value=-1.0))


class Slices(nn.Module):
    """Crops of maps, and parts of channels into layers of their own."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.a, self.b = conv_act(12, 14), conv_act(width - 12, 10)
        self.head = Pooled(24, num_classes)

    def forward(self, x):
        x = self.stem(x)[:, :, 1:-1, 1:]
        return self.head(torch.cat([self.a(x[:, :12]), self.b(x[:, 12:])], 1))


class AuxiliaryHead(Plain):
    """A second head whose logits are added in training."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.aux = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.fc(self.last(self.a(x)).mean((2, 3)))
        return y + 0.3 * self.aux(x.mean((2, 3))) if self.training else y


class TupleInTraining(AuxiliaryHead):
    def forward(self, x):
        x = self.stem(x)
        y = self.fc(self.last(self.a(x)).mean((2, 3)))
        return (y, self.aux(x.mean((2, 3)))) if self.training else y


class TupleAlways(AuxiliaryHead):
    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.last(self.a(x)).mean((2, 3))), self.aux(x.mean((2, 3)))


class DictOutput(Plain):
    def forward(self, x):
        return {"logits": super().forward(x)}


class FrozenStem(Plain):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.stem.requires_grad_(False)


class WhollyFrozen(Plain):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.requires_grad_(False)


class UnusedLayers(Plain):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.never = nn.Linear(width, 30)


class TiedWeights(Plain):
    """Two layers of one weight tensor."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.b, self.c = (nn.Conv2d(22, 22, 3, padding=1, bias=False) for _ in range(2))
        self.c.weight = self.b.weight

    def features(self, x):
        x = self.a(self.stem(x))
        return self.last(F.relu(self.c(F.relu(self.b(x)))))


class CalledTwice(Plain):
    """A module that is called twice."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.twice = conv_norm(22, 22)

    def features(self, x):
        x = self.a(self.stem(x))
        return self.last(F.relu(self.twice(F.relu(self.twice(x)))))


class TwoNames(Plain):
    """The layers are registered a second time, in a sequence that is called in two slices."""

    def __init__(self, input_shape, num_classes, width=12):
        super().__init__(input_shape, num_classes, width)
        self.backbone = nn.Sequential(self.stem, self.a, self.last)

    def forward(self, x):
        return self.fc(self.backbone[1:](self.backbone[:1](x)).mean((2, 3)))


class ReusedActivation(Plain):
    """One ReLU module at three places, in place."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.relu = nn.ReLU(inplace=True)
        self.b, self.c = conv_norm(22, 22), conv_norm(22, 22)

    def features(self, x):
        x = self.relu(self.a[:2](self.stem(x)))
        x = self.relu(self.b(x)) + x
        return self.last(self.relu(self.c(x)))


class StaticBatch(Plain):
    def features(self, x):
        x = super().features(x)
        return x.view(int(x.size(0)), x.size(1), x.size(2), -1)


class BatchLoop(Plain):
    def features(self, x):
        return torch.stack([super(BatchLoop, self).features(one[None])[0] for one in x])


class DataBranch(Plain):
    def features(self, x):
        x = super().features(x)
        return x * 1.5 if x.mean() > 0.1 else x


class TwoInputs(Plain):
    def forward(self, x, scale):
        return super().forward(x * scale)


class DoubleProduct(Plain):
    """float64 in the middle, as a careful mean is written."""

    def forward(self, x):
        return self.fc(self.features(x).double().mean((2, 3)).float())


class DoublePrecision(Plain):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.double()

    def forward(self, x):
        return super().forward(x.double())


class BrainFloat(Plain):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__(input_shape, num_classes, width)
        self.last.bfloat16()

    def features(self, x):
        return self.last(self.a(self.stem(x)).bfloat16()).float()


class ItemInForward(Plain):
    def features(self, x):
        return super().features(x) / max(float(x.abs().max()), 1e-3)


class NumpyInForward(Plain):
    def features(self, x):
        scale = float(x.detach().numpy().std())
        return super().features(x) * (scale + 1)


class NumpyFunctions(Plain):
    """A function of NumPy on the way, which torch.compile could follow."""

    def forward(self, x):
        return super().forward(torch.from_numpy(np.clip(x.detach().numpy(), -1, 1)))


class Conditional(Plain):
    """torch.cond, which compiles its branches."""

    def features(self, x):
        x = super().features(x)
        return torch.cond(x.mean() > 0.1, lambda y: y * 1.5, lambda y: y * 1.0, (x,))


class RandomInUse(Plain):
    """Noise in use, too."""

    def features(self, x):
        return super().features(x) + 0.1 * torch.rand_like(super().features(x))


def scripted(input_shape, num_classes) -> nn.Module:
    return torch.jit.script(Plain(input_shape, num_classes))


def compiled(input_shape, num_classes) -> nn.Module:
    return torch.compile(Plain(input_shape, num_classes))


class GatedDepth(nn.Module):
    """Squeeze-excite inside residual blocks of stochastic depth: training multiplies once more."""

    def __init__(self, input_shape, num_classes, width=14, keep=0.7) -> None:
        super().__init__()
        self.keep = keep
        self.stem = conv_act(input_shape[0], width)
        self.blocks = nn.ModuleList(conv_act(width, width) for _ in range(2))
        self.gates = nn.ModuleList(SqueezeExcite(width, 4) for _ in range(2))
        self.head = Pooled(width, num_classes)

    def drop(self, y):
        if not self.training:
            return y
        kept = y.new_empty((y.shape[0], 1, 1, 1)).bernoulli_(self.keep)
        return y * (kept / self.keep)

    def forward(self, x):
        x = self.stem(x)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            x = x + self.drop(gate(block(x)))
        return self.head(x)

"""Models of a user that cannot be trained or exported, or only after a change."""

import warnings
from threading import Lock

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Plain(nn.Module):
    """Two convolutions and a classifier; subclasses change one thing."""

    def __init__(self, input_shape, num_classes, width=8):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def features(self, x):
        return F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class TupleInTraining(Plain):
    def forward(self, x):
        features = self.features(x)
        logits = self.fc(features)
        return (logits, features) if self.training else logits


class AuxiliaryHead(Plain):
    """Adds a head to the logits in training only."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.extra = nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.features(x)
        return self.fc(features) + (0.3 * self.extra(features) if self.training else 0.0)


class DictOutput(Plain):
    def forward(self, x):
        return {"logits": super().forward(x), "loss": None}


class TwoInputs(Plain):
    def forward(self, x, scale):
        return super().forward(x * scale)


class OptionalInput(Plain):
    def forward(self, x, scale=None, **kwargs):
        return super().forward(x if scale is None else x * scale)


class Broken(Plain):
    """Raises the error of that name, in training or always."""

    def __init__(self, input_shape, num_classes, error="KeyError", training=False):
        super().__init__(input_shape, num_classes)
        self.error, self.only = error, training

    def forward(self, x):
        if self.training or not self.only:
            raise {e.__name__: e for e in ERRORS}[self.error]("oh")  # the line of the message
        return super().forward(x)


ERRORS = (TypeError, AttributeError, KeyError, IndexError, AssertionError, ZeroDivisionError)


class CannotBeBuilt(Plain):
    def __init__(self, input_shape, num_classes, error="KeyError"):
        super().__init__(input_shape, num_classes)
        raise {e.__name__: e for e in ERRORS}[error]("oh")  # the line of the message


class InChannels(Plain):
    def __init__(self, num_classes, in_channels=1):
        super().__init__([in_channels], num_classes)


def hub(**options):
    """Passes its options on, as the functions of torchvision do."""
    return InChannels(**options)


class CompiledMethod(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.fast = torch.compile(self.features, backend="eager")

    def forward(self, x):
        return self.fc(self.fast(x))


class KeepsALambda(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.block = lambda x: F.relu(self.body(x))

    def forward(self, x):
        return self.fc(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Recurrent(nn.Module):
    """Reads the rows of the image; its recurrent weight has the deprecated weight_norm."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            self.reader = nn.utils.weight_norm(
                nn.GRU(input_shape[2], 12, batch_first=True), "weight_hh_l0"
            )
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.fc(self.reader(x[:, 0])[0][:, -1])


class Frozen(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.requires_grad_(False)


class PartlyFrozen(Plain):
    """A frozen layer, and one that nothing calls."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.body.requires_grad_(False)
        self.lost = nn.Linear(4, 4)


class Detached(Plain):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class RandomInEval(Plain):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class NanOutput(Plain):
    def forward(self, x):
        return super().forward(x) + (x.abs().sum() + 1.0).neg().log()


class Half(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.body.to(torch.bfloat16)


class DoubleLogits(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.register_buffer("scale", torch.ones(num_classes, dtype=torch.float64))

    def forward(self, x):
        return super().forward(x) * self.scale


class WeightNorm(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.stem = parametrizations.weight_norm(self.stem)
        self.body = parametrizations.spectral_norm(self.body)
        self.fc = parametrizations.orthogonal(self.fc)


class DeprecatedNorms(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        with warnings.catch_warnings(action="ignore"):
            nn.utils.weight_norm(self.stem)
            nn.utils.weight_norm(self.fc, dim=None)
        nn.utils.spectral_norm(self.body)


class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d()
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class LayerDrop(Plain):
    """Skips a block for half of the batches in training."""

    def forward(self, x):
        x = F.relu(self.stem(x))
        if not self.training or torch.rand(1).item() < 0.5:
            x = x + F.relu(self.body(x))
        return self.fc(x.mean((2, 3)))


def compiled(input_shape, num_classes):
    return torch.compile(Plain(input_shape, num_classes))


def scripted(input_shape, num_classes):
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(Plain(input_shape, num_classes))


def parallel(input_shape, num_classes):
    return nn.DataParallel(Plain(input_shape, num_classes))


def pruned_by_torch(input_shape, num_classes):
    from torch.nn.utils import prune

    model = Plain(input_shape, num_classes)
    prune.l1_unstructured(model.body, "weight", 0.5)
    return model


class ForgetsToReturn(Plain):
    def train(self, mode=True):
        super().train(mode)
        self.stem.eval()


class PlainList(Plain):
    """Layers in a list of Python's own."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.more = {"blocks": [nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())]}

    def features(self, x):
        x = self.stem(x)
        for block in self.more["blocks"]:
            x = block(x)
        return x.mean((2, 3))


class PlainParameter(Plain):
    """A parameter that only a function knows."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        scale = nn.Parameter(torch.ones(8))
        self.scale = lambda: scale

    def features(self, x):
        return super().features(x) * self.scale()


class MadeInForward(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.more = None

    def features(self, x):
        features = super().features(x)
        if self.more is None:
            self.more = nn.Linear(features.shape[1], 8)
        return self.more(features)


class KeepsALock(Plain):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.body.lock = Lock()


class HiddenButUnused(Plain):
    """Layers in a list that no forward pass calls, and slices of a registered sequence."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.teacher = [nn.Linear(8, 8)]
        self.layers = nn.Sequential(self.stem, self.body)

    def features(self, x):
        return self.layers[1:](self.layers[:1](x)).mean((2, 3))

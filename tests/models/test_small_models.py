from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.data.batches import batches
from compressbench.data.digits import Digits
from compressbench.models.mlp import Mlp
from compressbench.models.resnet import ResNet
from compressbench.models.small_cnn import SmallCnn


@pytest.mark.parametrize("model", [Mlp, SmallCnn, ResNet])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 17, 30), (1, 1, 1), (4, 5, 9)])
@pytest.mark.parametrize("classes", [2, 13])
def test_any_image_gives_one_finite_logit_a_class_and_gradients_everywhere(model, shape, classes):
    built = model(input_shape=shape, num_classes=classes)
    logits = built.train()(torch.randn(4, *shape))
    assert logits.shape == (4, classes) and bool(torch.isfinite(logits).all())
    F.cross_entropy(logits, torch.arange(4) % classes).backward()
    missing = [name for name, p in built.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("model", [Mlp, SmallCnn, ResNet])
def test_images_of_a_batch_do_not_influence_each_other(model):
    built = model(input_shape=(3, 8, 8), num_classes=5).eval()
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        together, alone = built(images), torch.cat([built(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_mlp_has_the_hidden_layers_asked_for():
    shapes = [list(p.shape) for p in Mlp((1, 4, 4), 3, hidden=[7, 5]).parameters() if p.ndim == 2]
    assert shapes == [[7, 16], [5, 7], [3, 5]]
    with pytest.raises(UserError, match=r"hidden.* got 0"):
        Mlp((1, 4, 4), 3, hidden=[7, 0])


def test_small_cnn_has_the_width_and_depth_asked_for():
    default = SmallCnn((1, 8, 8), 10)
    assert 60_000 < sum(p.numel() for p in default.parameters()) < 150_000
    channels = {m.out_channels for m in default.modules() if isinstance(m, torch.nn.Conv2d)}
    assert channels == {16, 32, 64}
    deep = SmallCnn((1, 8, 8), 10, width=24, depth=2)
    convolutions = [m for m in deep.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 3 * (1 + 2 * 2)
    assert {m.out_channels for m in convolutions} == {24, 48, 96}
    with pytest.raises(UserError, match=r"depth .* got 0"):
        SmallCnn((1, 8, 8), 10, depth=0)


def test_small_cnn_learns_the_digits_in_a_handful_of_epochs():
    data, epochs, steps = Digits(), 8, 16
    torch.manual_seed(0)
    model = SmallCnn(data.spec.input_shape, data.spec.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for epoch in range(epochs):
        for inputs, targets in batches(
            data, "train", 64, shuffle_seed=epoch, augment=True, drop_last=True
        ):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    split = data.split("validation")
    with torch.no_grad():
        predicted = model.eval()(data.prepare(split.inputs)).argmax(1)
    assert (predicted == split.targets).float().mean() >= 0.97

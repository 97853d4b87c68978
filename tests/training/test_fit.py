"""Fits: masks stay zero, resumes end on the same bits, a loss that is not finite stops them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core.edits import set_mask_
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import Context, DataSpec, Runtime, Split
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.training.fits import fit as fitting
from compressbench.training.fits.fit import fit_
from compressbench.training.fits.schedule import Schedule
from compressbench.training.train import labels_loss
from tests.two_ranks import on_two_ranks


@dataclass
class Blobs:
    """Two Gaussian clouds as 1 x 2 x 3 images; augmentation moves single values."""

    images: int = 96

    spec = DataSpec("blobs", (1, 2, 3), ("a", "b"), (0.5,), (0.25,))

    def manifest(self):
        return {"images": self.images}

    def verify(self):
        return None

    def split(self, name):
        generator = torch.Generator().manual_seed(len(name))
        targets = torch.arange(self.images) % 2
        noise = torch.randint(0, 90, (self.images, 1, 2, 3), generator=generator)
        return Split((noise + 60 * targets.view(-1, 1, 1, 1)).to(torch.uint8), targets)

    def prepare(self, inputs):
        return inputs.float() / 255 / 0.25 - 2

    def augment(self, inputs, generator):
        return inputs + torch.randint(0, 9, inputs.shape, generator=generator).to(torch.uint8)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(8, 2),
    )  # fmt: skip


def schedule(epochs=3.0, lr=0.1):
    return Schedule(
        epochs=epochs, batch_size=16, optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9)
    )


def context(folder, **options):
    options = {"checkpoint_seconds": 0.0, **options}
    return Context(Blobs(), Runtime(), 7, Path(folder), instantiate, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(
        a.state_dict().values(), b.state_dict().values(), strict=True))  # fmt: skip


def test_learns_and_reports_each_epoch(tmp_path):
    model = net()
    history = fit_(model, labels_loss(CLASSIFICATION, 0.0), schedule(6), context(tmp_path))
    assert len(history["train/loss"]) == len(history["train/accuracy"]) == 6
    assert history["train/accuracy"][-1] > 0.8 > history["train/loss"][-1]
    assert not model.training


def test_equals_a_plain_loop(tmp_path):
    """Without dropout the fit is this loop: same batches, same steps, same bits."""
    from compressbench.data.batches import batches
    from compressbench.training.fits.fit import _mix

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    import copy

    slow = copy.deepcopy(model).train()
    ctx, plan = context(tmp_path), schedule(2)
    fit_(model, labels_loss(CLASSIFICATION, 0.1), plan, ctx)
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.1, momentum=0.9)
    step, steps = 0, 12
    for epoch in range(2):
        for x, y in batches(ctx.data, "train", 16, shuffle_seed=_mix(7, epoch), augment=True,
                            drop_last=True):  # fmt: skip
            optimizer.param_groups[0]["lr"] = 0.1 * plan.factor(step, steps)
            optimizer.zero_grad()
            nn.functional.cross_entropy(slow(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            step += 1
    assert step == steps
    assert same(model, slow)


@pytest.mark.parametrize(("number", "ranks"), [(0, 1), (1, 3)])
def test_the_loss_gets_the_rows_of_its_images(tmp_path, monkeypatch, number, ranks):
    monkeypatch.setattr(fitting, "rank", lambda: number)
    monkeypatch.setattr(fitting, "world_size", lambda: ranks)
    made = context(tmp_path)
    split, model = made.data.split("train"), net()
    epoch = fitting._Epoch(
        fitting._Module(model, labels_loss(CLASSIFICATION, 0.0), schedule(), made, [], None)
    )
    batches = list(epoch)
    assert len(batches) == len(epoch) == 96 // ranks // (16 // ranks)
    for inputs, targets, rows in batches:
        assert len(rows) == 16 // ranks
        assert torch.equal(split.targets[rows], targets)
        moved = inputs - made.data.prepare(split.inputs[rows])
        assert ((moved > -1e-6) & (moved < 9 / 255 / 0.25)).all()  # the augmentation
    seen = torch.cat([rows for *_, rows in batches])
    assert len(seen.unique()) == len(seen)


def test_positions_without_a_label_do_not_count(tmp_path):
    """Labels of token classification are [B, L], with -100 for none."""
    logits = torch.randn(4, 5, 3, requires_grad=True)
    targets = torch.randint(3, (4, 5))
    targets[torch.rand(4, 5) < 0.4] = -100
    loss, _ = labels_loss(CLASSIFICATION, 0.1)(
        lambda inputs: logits, logits, targets, torch.arange(4)
    )
    kept = targets != -100
    expected = nn.functional.cross_entropy(logits[kept], targets[kept], label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_a_fraction_of_an_epoch_is_that_many_steps(tmp_path):
    seen = []
    ctx = context(tmp_path, progress=lambda done, total, text: seen.append((done, total)))
    fit_(net(), labels_loss(CLASSIFICATION, 0.0), schedule(0.5), ctx)
    assert seen == [(3, 3)]


def test_masked_weights_stay_exactly_zero(tmp_path):
    model = net()
    mask = torch.rand(8, 6) > 0.5
    set_mask_(model[1], mask)
    fit_(model, labels_loss(CLASSIFICATION, 0.0), schedule(), context(tmp_path))
    assert torch.equal(model[1].weight != 0, mask)


def test_resumes_to_the_same_bits(tmp_path):
    whole = net()
    expected = fit_(
        whole, labels_loss(CLASSIFICATION, 0.0), schedule(4), context(tmp_path / "whole")
    )

    class KilledError(BaseException):
        pass

    def killer(done, total, text):
        raise KilledError

    interrupted = net()
    loss = labels_loss(CLASSIFICATION, 0.0)
    calls = []

    def dying(model, inputs, targets, rows):
        calls.append(1)
        if len(calls) == 15:  # in the third epoch
            raise KilledError
        return loss(model, inputs, targets, rows)

    with pytest.raises(KilledError):
        fit_(interrupted, dying, schedule(4), context(tmp_path / "b"))
    assert (tmp_path / "b" / "fit.ckpt").exists()
    again = net()
    resumed_steps = []

    def counting(model, inputs, targets, rows):
        resumed_steps.append(1)
        return loss(model, inputs, targets, rows)

    history = fit_(again, counting, schedule(4), context(tmp_path / "b"))
    assert len(resumed_steps) == 24 - 12
    assert same(whole, again)
    assert history == expected


def test_a_loss_that_is_not_finite_names_step_and_rate(tmp_path):
    def exploding(model, inputs, targets, rows):
        answers = model(inputs)
        return answers.square().mean(), answers

    with pytest.raises(CheckFailedError, match=r"at step \d+ of 18, learning rate .*e\+0"):
        fit_(net(), exploding, schedule(3, lr=1e9), context(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a number above 0, got 0"),
        ({"epochs": float("nan")}, "above 0, got nan"),
        ({"epochs": "3"}, "above 0, got '3'"),
        ({"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 2, got 2.5"),
        ({"warmup": 1.0}, r"warmup must be a number in \[0, 1\), got 1.0"),
        ({"optimizer": partial(torch.optim.SGD, lr=-1)}, r"optimizer\.lr must be .*, got -1"),
    ],
)
def test_refuses(options, message):
    good = {"epochs": 1, "batch_size": 8, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    with pytest.raises(UserError, match=message):
        Schedule(**{**good, **options})


class Skipping(nn.Module):
    """Has a layer that is skipped in some batches, a frozen one, and one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.frozen, self.unused = nn.Linear(4, 4).requires_grad_(False), nn.Linear(3, 3)

    def forward(self, images):
        hidden = self.frozen(self.first(images.flatten(1)))
        if not self.training or torch.rand(1).item() < 0.5:
            hidden = hidden + self.block(hidden)
        return self.last(hidden)


def fit_skipping(rank, folder):
    torch.manual_seed(0)
    model = Skipping()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    context = Context(Blobs(), Runtime(devices=2), 3, Path(folder) / str(rank), instantiate)
    fit_(model, labels_loss(CLASSIFICATION, 0.0), schedule(), context)
    after = model.state_dict()
    return [name for name in after if not after[name].equal(before[name])], after["last.bias"]


def test_two_ranks_train_a_model_whose_layers_are_not_all_used(tmp_path):
    (moved, bias), (other, same) = on_two_ranks(fit_skipping, tmp_path, str(tmp_path))
    assert set(moved) == {
        f"{n}.{p}" for n in ("first", "block", "last") for p in ("weight", "bias")
    }
    assert moved == other and bias.equal(same)

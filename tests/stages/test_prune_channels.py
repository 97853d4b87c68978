"""Channel removal: the smaller model computes what the wide one does without those channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench import artifact
from compressbench.core import (
    CHANNEL_PRUNED,
    TRAINED,
    Artifact,
    CheckFailedError,
    Context,
    DataSpec,
    Runtime,
    Split,
    Stage,
    UserError,
)
from compressbench.criteria.l2 import L2
from compressbench.criteria.magnitude import Magnitude
from compressbench.stages.channels import PruneChannels, example_inputs
from compressbench.stages.coupling import families
from compressbench.stages.limits import macs
from compressbench.stages.prune import Prune
from compressbench.stages.removal import (
    check_replay,
    remove_channels,
    removed_channels,
    resize_edit,
)

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


@pytest.mark.parametrize("kind", ZOO)
def test_removal_equals_channels_set_to_zero(kind):
    model, inputs = made(kind), torch.randn(3, 3, 8, 8)
    found = families(deepcopy(model), example_inputs(SPEC))
    for family in (f for f in found if not f.reason):
        width = len(family.coupled[family.root, "out"])
        gone = sorted({(c + 8 * g) % width for g in range(4) for c in (1, 6)})  # in every group
        gone = list(range(8, 16)) if family.heads else gone  # a whole head
        cuts = {family.root: gone}
        small = remove_channels(model, found, cuts, example_inputs(SPEC))
        removed = removed_channels(found, cuts)
        torch.testing.assert_close(small(inputs), silenced(model, removed)(inputs))
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("scope", ["layer", "global", "sensitivity"])
def test_every_kind_of_model_gets_narrower_in_steps_of_eight_and_keeps_its_classes(kind, scope):
    model = made(kind)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = run(PruneChannels(L2(), 0.4, scope=scope), model)
    small = outcome.artifact.model
    assert outcome.artifact.properties == {TRAINED, CHANNEL_PRUNED}
    assert not outcome.warnings
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    for name, layer in small.named_modules():
        old = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            assert layer.out_channels % 8 == 0
            assert layer.weight.shape[0] == layer.out_channels >= 8
            assert layer.weight.shape[1] * layer.groups == layer.in_channels
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
            assert layer.out_features % 8 == 0 or layer.out_features == old.out_features == 3
    assert all(torch.equal(state[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())


@pytest.mark.parametrize("kind", ZOO)
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    outcome = run(PruneChannels(L2(), 0.4), made(kind))
    result = replace(outcome.artifact, key="k")
    artifact.save(result, tmp_path)
    loaded = artifact.load(tmp_path, build, "k")
    inputs = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded.model(inputs), result.model(inputs))
    assert artifact.digest(loaded) == artifact.digest(result)
    assert str(loaded.model) == str(result.model), "an attribute was not restored"


def test_all_families_of_the_mobile_net_are_pruned_and_only_the_classifier_is_left():
    outcome = run(PruneChannels(L2(), 0.5), made(Mobile))
    found = details(outcome)
    assert found["fc"].endswith("left: its channels are the model's outputs")
    assert found["stem.0"] == found["depthwise.0"] == found["excite"] == "32 → 16 channels"
    assert found["squeeze"] == "16 → 8 channels"
    assert found["side.0"] == "16 → 8 channels"
    assert found["join.0"] == "48 → 24 channels"


def test_coverage_counts_the_weights_that_are_gone():
    model = made(Residual)
    outcome = run(PruneChannels(L2(), 0.5), model)
    for row in outcome.coverage:
        before = model.get_submodule(row.layer).weight.numel()
        after = outcome.artifact.model.get_submodule(row.layer).weight.numel()
        assert (row.total, row.touched) == (before, before - after)
        assert row.touched > 0


def test_the_channels_of_least_norm_go():
    model = made(Flat)
    with torch.no_grad():
        model.stem[0].weight[[1, 3, 5, 7, 9, 11, 13, 15]] *= 0.01
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert edit["removed"]["fc1"]["in"] == [c * 16 + p for c in range(1, 16, 2) for p in range(16)]


def test_a_channel_is_worth_what_it_is_in_all_layers_that_share_it():
    model = made(Residual)
    with torch.no_grad():
        for layer in (model.stem[0], model.outer[0]):
            nn.init.ones_(layer.weight)
        model.stem[0].weight[:16] *= 0.1  # unimportant here, but
        model.outer[0].weight[:16] *= 3.0  # what is added to them matters
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == edit["removed"]["outer.0"]["out"]
    stem = 0.01 / (0.5 * 1.01), 1 / (0.5 * 1.01)
    outer = 9 / (0.5 * 10), 1 / (0.5 * 10)
    lower = range(16) if stem[0] + outer[0] < stem[1] + outer[1] else range(16, 32)
    assert edit["removed"]["stem.0"]["out"] == list(lower)


def test_global_takes_more_where_channels_are_worth_less_whatever_the_scale():
    model = made(Flat)
    with torch.no_grad():
        model.fc1.weight[:16] *= 1e-3  # two thirds of fc1 are nothing next to its best
        model.fc1.weight *= 1e4  # a scale means nothing: BatchNorm and the next layer undo it
    together = details(run(PruneChannels(L2(), 0.4, scope="global"), model))
    assert together["fc1"].startswith("24 → 8")
    assert together["stem.0"] == "16 channels left: sparsity and rounding ask for no less"
    assert details(run(PruneChannels(L2(), 0.4), model))["fc1"].startswith("24 → 16")


def test_equal_channels_go_from_the_first():
    model = made(Flat)
    nn.init.constant_(model.stem[0].weight, 0.1)
    edit = run(PruneChannels(L2(), 0.5), model).artifact.edits[-1]
    assert edit["removed"]["stem.0"]["out"] == list(range(8))


def test_the_floor_holds_and_counts_need_not_be_rounded():
    for stage, width in (
        (PruneChannels(Magnitude(), 0.99), 8),
        (PruneChannels(Magnitude(), 0.99, min_channels=16), 16),
        (PruneChannels(Magnitude(), 0.99, round_to=1), 4),  # a tenth of 32, rounded up
        (PruneChannels(Magnitude(), 0.99, round_to=1, min_channels=1), 1),
        (PruneChannels(Magnitude(), 0.4, round_to=1), 19),  # 19.2
        (PruneChannels(Magnitude(), 0.4, round_to=4), 20),
    ):
        assert run(stage, made(Residual)).artifact.model.stem[0].out_channels == width


def test_groups_stay_equally_wide():
    small = run(PruneChannels(L2(), 0.4, round_to=1), made(Grouped)).artifact.model
    assert small.stem[0].out_channels == small.grouped[0].in_channels == 20
    assert small.grouped[0].weight.shape[:2] == (20, 5)


@pytest.mark.parametrize("kind", [Transformer, CountedHeads])
def test_the_least_important_head_goes_as_a_whole(kind):
    model = made(kind)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            model.attention.get_submodule(name).weight[16:24] *= 0.1
    outcome = run(PruneChannels(L2(), 0.25), model)
    removed = outcome.artifact.edits[-1]["removed"]
    for name in ("query", "key", "value"):
        assert removed[f"attention.{name}"] == {"out": list(range(16, 24))}
    assert removed["attention.out"] == {"in": list(range(16, 24))}
    assert outcome.artifact.model.attention.heads == 3
    assert outcome.artifact.model.up.out_features == 40
    assert "LayerNorm normalises" in details(outcome)["embed"]


def test_skipped_layers_keep_their_channels():
    outcome = run(PruneChannels(L2(), 0.5, skip=["outer.*"]), made(Residual))
    found = details(outcome)
    assert found["outer.0"] == "inputs 24 → 16, 32 channels left: named in skip"
    assert found["stem.0"] == "32 channels left: coupled with outer.0"
    assert found["inner.0"] == "24 → 16 channels"
    with pytest.raises(UserError, match=r"the nearest name is inner\.0"):
        run(PruneChannels(L2(), 0.5, skip=["innr.0"]), made(Residual))


@pytest.mark.parametrize(
    ("kind", "pruned", "left"),
    [
        (Residual, {"inner.0"}, {"stem.0", "outer.0"}),
        (Mobile, {"side.0", "squeeze"}, {"stem.0", "excite"}),  # side's depthwise one is no other
        (Transformer, {"up"}, {"attention.query", "attention.value"}),
    ],
)
def test_channels_of_several_layers_stay_if_asked(kind, pruned, left):
    found = details(run(PruneChannels(L2(), 0.5, coupled=False), made(kind)))
    for name in pruned:
        assert re.match(r"\d+ → \d+ channels", found[name].split(", ")[-1]), found[name]
    for name in left:
        assert "other layers share its channels (coupled=false)" in found[name]
    everything = details(run(PruneChannels(L2(), 0.5), made(kind)))
    for name in left:
        assert "coupled=false" not in everything[name]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("shuffle", "its channels take part in something other than layers"),
        ("attention", "its channels take part in something other than layers"),
        ("fixed shape", "the model does not run without its channels"),
        ("group norm", "GroupNorm normalises over its channels"),
        ("chunk", "its channels are split"),
        ("tied", "tied to another layer's"),
    ],
)
def test_what_cannot_be_proven_is_left_and_the_rest_is_pruned(kind, reason):
    outcome = run(PruneChannels(L2(), 0.5), made(Awkward, kind))
    assert reason in details(outcome)["strange.0"]
    assert outcome.artifact.model.strange[0].out_channels == 16
    assert outcome.artifact.model.last[0].out_channels == 8
    proven = kind not in ("shuffle", "attention", "fixed shape")
    assert proven == (not outcome.warnings)


def test_masked_weights_stay_masked(tmp_path):
    first = Prune(Magnitude(), sparsity=0.5).run({"model": trained(made(Residual))}, context())
    second = PruneChannels(L2(), 0.5).run({"model": first.artifact}, context())
    for name, layer in artifact.masked_layers(second.artifact.model).items():
        assert layer.weight_mask.shape == layer.weight.shape
        assert torch.equal(layer.weight_mask, layer.weight != 0), name
    again = Prune(Magnitude(), sparsity=0.9).run({"model": second.artifact}, context())
    for outcome in (second, again):
        artifact.check(outcome.artifact)
        artifact.save(outcome.artifact, tmp_path)
        loaded = artifact.load(tmp_path, build, "")
        assert artifact.digest(loaded) == artifact.digest(outcome.artifact)


def test_channels_can_be_removed_twice(tmp_path):
    first = run(PruneChannels(L2(), 0.3), made(Residual)).artifact
    second = PruneChannels(L2(), 0.3).run({"model": first}, context()).artifact
    artifact.save(second, tmp_path)
    assert artifact.digest(artifact.load(tmp_path, build, "")) == artifact.digest(second)
    assert second.model.stem[0].out_channels == 16


def test_an_edit_that_does_not_tell_the_whole_is_refused():
    model, example = made(Grouped), example_inputs(SPEC)
    found = families(deepcopy(model), example)
    cuts = {f.root: [0, 8, 16, 24] for f in found if f.root == "stem.0"}
    small = remove_channels(model, found, cuts, example)
    edit = resize_edit(model, small, removed_channels(found, cuts))
    check_replay(model, small, edit, example)
    edit["tensors"].popitem()
    with pytest.raises(CheckFailedError, match="cannot be replayed"):
        check_replay(model, small, edit, example)


def test_statistics_of_batchnorm_are_those_of_the_small_model():
    small = run(PruneChannels(L2(), 0.5), made(Residual)).artifact.model
    own = context()
    outputs = small.stem[0](own.data.prepare(own.data.split("train").inputs))
    torch.testing.assert_close(small.stem[1].running_mean, outputs.mean((0, 2, 3)))


def test_the_generator_and_the_flags_are_left_alone():
    model = made(Residual)
    model.stem.requires_grad_(False)
    before = torch.get_rng_state()
    outcome = run(PruneChannels(L2(), 0.5), model)
    assert torch.equal(torch.get_rng_state(), before)
    flags = {n: p.requires_grad for n, p in outcome.artifact.model.named_parameters()}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    again = run(PruneChannels(L2(), 0.5), model)
    assert artifact.digest(again.artifact) == artifact.digest(outcome.artifact)


class Untraceable(Head):
    def forward(self, x):
        if self.training:
            return self.fc(x.mean((2, 3)))
        return self.fc(torch.from_numpy(self.fc.weight.numpy()[:, :3].T @ x.mean((2, 3)).T.numpy()))


class Detached(Head):
    def forward(self, x):
        return self.fc(x.flatten(1)[:, :16]).detach()


def test_a_model_that_cannot_be_traced_is_refused():
    with pytest.raises(CheckFailedError, match=r"cannot follow the channels.*numpy\(\)"):
        run(PruneChannels(L2(), 0.5), made(Untraceable, 3))
    with pytest.raises(CheckFailedError, match="fc: autograd finds no way"):
        run(PruneChannels(L2(), 0.5), made(Detached, 16))


def test_a_layer_that_is_not_used_says_so():
    outcome = run(PruneChannels(L2(), 0.5), made(Awkward, "group norm"))
    assert "16 channels left: autograd finds no way" in details(outcome)["halved.0"]


def test_a_stage_that_touches_nothing_says_why():
    with pytest.raises(CheckFailedError, match=r"sparsity=0\.05 with round_to=8 and at most 32"):
        run(PruneChannels(L2(), 0.05), made(Residual))
    with pytest.raises(CheckFailedError, match=r"strange.0: the model does not run without"):
        run(PruneChannels(L2(), 0.5, skip=["stem*", "last*"]), made(Awkward, "fixed shape"))
    with pytest.raises(CheckFailedError, match="no more than 64 channels"):
        run(PruneChannels(L2(), 0.5, round_to=64), made(Residual))


@pytest.mark.parametrize("value", [1.0, float("nan"), -0.1, "abc", True])
def test_a_sparsity_outside_its_range_is_refused(value):
    with pytest.raises(UserError, match=r"^sparsity must be a number in \[0, 1\), got"):
        PruneChannels(L2(), value)


@pytest.mark.parametrize(
    "options", [{"round_to": 0}, {"min_channels": 0}, {"scope": "x"}, {"batchnorm_images": 1}]
)
def test_other_options_are_checked(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PruneChannels(L2(), 0.5, **options)


def test_it_is_a_stage():
    assert isinstance(PruneChannels(L2(), 0.5), Stage)
    assert PruneChannels(L2(), 0.5).passes(500) == (0, 500)

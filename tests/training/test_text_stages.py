"""The stages on a model of texts: what is quantized, pruned, compared, and what is left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core.activation_sites import find_sites
from compressbench.core.errors import UserError
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split, Tokens
from compressbench.models.text_transformer import TextTransformer
from compressbench.pruning.criteria.magnitude import Magnitude
from compressbench.pruning.prune import Prune
from compressbench.pruning.prune_channels import PruneChannels
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.qat import QuantizeAware
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.gptq import Gptq
from compressbench.quantization.rounding.nearest import Nearest
from compressbench.quantization.trained.lsq import Lsq
from compressbench.training.distill import Distill
from compressbench.training.fits.schedule import Schedule
from compressbench.training.losses.attention import Attention
from compressbench.training.losses.fitnets import FitNets
from compressbench.training.losses.rkd import Rkd
from compressbench.training.teaching.features import as_maps, pair, shapes
from compressbench.training.teaching.objective import lesson

PAD, VOCABULARY, LENGTH = 0, 50, 7
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
LINEAR = ["attention.query", "attention.key", "attention.value", "attention.out", "up", "down"]


@dataclass(frozen=True)
class Texts:
    """Texts whose class is that of their first id."""

    spec = DataSpec("ids", (LENGTH,), tuple("abc"), (), (), tokens=Tokens(VOCABULARY, PAD, "none"))

    def split(self, name):
        generator = torch.Generator().manual_seed(len(name))
        ids = 1 + torch.randint(VOCABULARY - 1, (96, LENGTH), generator=generator)
        ids[:, 4:] *= torch.arange(96).view(-1, 1) % 2  # every other text is short
        return Split(ids.to(torch.int16), ids[:, 0] % 3)

    def prepare(self, inputs):
        return inputs.long()

    def augment(self, inputs, generator):
        return inputs

    def verify(self):
        pass


def made(width=16, depth=2, heads=4, seed=0) -> Artifact:
    torch.manual_seed(seed)
    config = {
        "_target_": "compressbench.models.text_transformer.TextTransformer",
        "input_shape": [LENGTH], "num_classes": 3, "vocabulary": VOCABULARY, "pad": PAD,
        "width": width, "depth": depth, "heads": heads,
    }  # fmt: skip
    model: TextTransformer = instantiate(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Artifact(model.eval(), config, (), frozenset({TRAINED}))


def context(folder, **runtime) -> Context:
    return Context(Texts(), Runtime(**{"max_batches": 2} | runtime), 5, folder, instantiate)


def logits(artifact: Artifact) -> torch.Tensor:
    with torch.no_grad():
        return artifact.model(Texts().split("validation").inputs.long())


def linear(depth=2):
    return [f"blocks.{n}.{layer}" for n in range(depth) for layer in LINEAR] + ["classifier"]


@pytest.mark.parametrize(
    "method", [Nearest(Mse()), Gptq(Mse(), images=32)], ids=["nearest", "gptq"]
)
def test_embeddings_are_quantized_to_nearest_by_every_method(tmp_path, method):
    start = made()
    outcome = Quantize(method, None, bits=4).run({"model": start}, context(tmp_path))
    rows = {row.layer: row for row in outcome.coverage}
    assert list(rows) == ["tokens", "positions", *linear()]
    assert all(row.touched == row.total for row in rows.values())
    assert rows["tokens"].detail == "4-bit per channel"
    assert rows["tokens"].kind == "Embedding"
    plain = Quantize(Nearest(Mse()), None, bits=4).run({"model": start}, context(tmp_path))
    for name in ("tokens", "positions"):
        ours, nearest = (o.artifact.model.get_submodule(name).weight for o in (outcome, plain))
        assert torch.equal(ours, nearest)
        assert ours.unique().numel() < start.model.get_submodule(name).weight.unique().numel()
    artifacts.check(outcome.artifact)


def test_rules_find_embeddings_by_type_and_the_ends_are_layers_that_compute(tmp_path):
    def widths(**options):
        stage = Quantize(Nearest(MinMax()), None, **options)
        grids, _ = stage.scheme().grids(made().model, Texts().spec)
        return {name: grid.bits for name, grid in grids.items()}

    found = widths(bits=8, rules=[{"type": "Embedding", "bits": 4}])
    assert {name for name, bits in found.items() if bits == 4} == {"tokens", "positions"}
    found = widths(bits=3)
    assert {name for name, bits in found.items() if bits == 8} == {
        "blocks.0.attention.query", "classifier"}  # fmt: skip


def test_ids_are_no_activation_to_round(tmp_path):
    start = made(depth=1)
    sites = find_sites(start.model, Texts().spec.blank(2))
    assert ("input", 0) not in {(s["function"], s["index"]) for s in sites}
    stage = Quantize(Nearest(MinMax()), MinMax(), calibration_images=32)
    result = stage.run({"model": start}, context(tmp_path)).artifact
    float_logits, rounded = logits(start), logits(result)
    assert not torch.equal(float_logits, rounded)
    assert (float_logits - rounded).abs().max() < 0.1 * float_logits.abs().max()
    again = artifacts.load(_saved(result, tmp_path), instantiate, "")
    assert torch.equal(logits(again), rounded)


def _saved(artifact, folder):
    artifacts.save(artifact, folder)
    return folder


def test_training_on_the_grid_moves_embeddings_along_it(tmp_path):
    start = made(depth=1)
    stage = QuantizeAware(
        Lsq(), Lsq(), MinMax(), epochs=1, batch_size=32, optimizer=SGD, bits=4,
        calibration_images=32,
    )  # fmt: skip
    outcome = stage.run({"model": start}, context(tmp_path))
    table = outcome.artifact.model.tokens
    assert {row.layer for row in outcome.coverage if row.touched} >= {"tokens", "positions"}
    assert not torch.equal(table.weight, start.model.tokens.weight)
    artifacts.check(outcome.artifact)


def test_pruning_leaves_embeddings_alone_and_says_so(tmp_path):
    start = made()
    outcome = Prune(Magnitude(), sparsity=0.5).run({"model": start}, context(tmp_path))
    rows = {row.layer: row for row in outcome.coverage}
    assert rows["tokens"].touched == 0
    assert "only convolutions and linear layers are pruned" in rows["tokens"].detail
    assert sum(rows[name].touched for name in linear()) > 0
    assert torch.equal(outcome.artifact.model.tokens.weight, start.model.tokens.weight)


def test_heads_and_feed_forward_channels_are_removed_and_the_rest_stays(tmp_path):
    start = made(depth=1)
    stage = PruneChannels(Magnitude(), sparsity=0.5, round_to=4, min_channels=4)
    outcome = stage.run({"model": start}, context(tmp_path))
    model = outcome.artifact.model
    block = model.blocks[0]
    assert block.attention.heads == 2
    assert block.attention.query.weight.shape == block.attention.value.weight.shape == (8, 16)
    assert block.attention.out.weight.shape == (16, 8)
    assert block.up.weight.shape == (16, 16)
    assert block.down.weight.shape == (16, 16)
    assert model.tokens.weight.shape == (VOCABULARY, 16)
    rows = {row.layer: row for row in outcome.coverage}
    assert rows["blocks.0.up"].detail == "32 → 16 channels"
    assert "LayerNorm normalizes over its channels" in rows["blocks.0.down"].detail
    assert rows["tokens"].touched == 0
    again = artifacts.load(_saved(outcome.artifact, tmp_path), instantiate, "")
    assert torch.equal(logits(again), logits(outcome.artifact))


def test_layers_of_texts_are_compared_as_maps_without_their_padding():
    small, large = made(8, 1).model, made(16, 2).model
    ours, theirs = (shapes(m, Texts().spec.blank(2)) for m in (small, large))
    assert ours["blocks.0"] == (8, LENGTH)
    assert theirs["blocks.1"] == (16, LENGTH)
    for loss in (FitNets(), Attention(), Rkd()):
        assert pair(loss, ours, theirs) == [("blocks.0", "blocks.1")]
    ids = torch.tensor([[4, 5, PAD], [7, PAD, PAD]])
    output = torch.randn(2, 3, 5)
    found = as_maps(output, ids, PAD)
    assert found.shape == (2, 5, 3)
    for row in range(2):
        for place in range(3):
            expected = output[row, place] if ids[row, place] != PAD else torch.zeros(5)
            assert torch.equal(found[row, :, place], expected)
    images = torch.randn(2, 3, 5)
    assert as_maps(images, torch.randn(2, 1, 5)) is images


def test_a_student_learns_from_the_features_of_texts(tmp_path):
    student, teacher = made(8, 1, 2), made(16, 2, seed=1)
    loss, given = Attention(weight=2.0), {"teacher": teacher}
    schedule = Schedule(epochs=2, batch_size=32, optimizer=SGD)
    ids = Texts().split("train").inputs[:10].long()
    targets = Texts().split("train").targets[:10]
    with lesson(student.model, given, loss, schedule, context(tmp_path)) as taught:
        taught(student.model, ids, targets, torch.arange(10))
    seen = []
    handles = [m.register_forward_hook(lambda *a: seen.append(a[2])) for m in
               (student.model.blocks[0], teacher.model.blocks[1])]  # fmt: skip
    student.model(ids), teacher.model(ids)
    maps = []
    for values in seen:
        energy = (values * (ids != PAD)[..., None]).square().mean(2)
        maps.append(energy / energy.norm(dim=1, keepdim=True))
    expected = 2.0 * (maps[0] - maps[1]).square().sum(1).mean()
    torch.testing.assert_close(taught.terms["attention"], expected)
    [handle.remove() for handle in handles]
    stage = Distill(FitNets(), epochs=1, batch_size=32, optimizer=SGD)
    inputs = {"model": replace(student, properties=frozenset()), "teacher": teacher}
    outcome = stage.run(inputs, context(tmp_path))
    assert not torch.equal(logits(outcome.artifact), logits(student))


def test_a_granularity_that_does_not_fit_names_the_embeddings(tmp_path):
    stage = Quantize(Nearest(MinMax()), None, granularity="group", group_size=5)
    with pytest.raises(UserError, match=r"group_size=5 does not divide .* tokens \(16\)"):
        stage.run({"model": made()}, context(tmp_path))

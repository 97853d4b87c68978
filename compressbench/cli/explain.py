"""`compressbench explain`: says which layer of a quantized run costs which accuracy."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.cli.left_out import overrides, pasted
from compressbench.core.errors import UserError
from compressbench.core.formatting import metric_text
from compressbench.core.metrics import metric_of
from compressbench.tasks.choice import task_of

if TYPE_CHECKING:
    from torch import nn

    from compressbench.core.types import Artifact
    from compressbench.engine.plan import Planned
    from compressbench.engine.prepare import Prepared
    from compressbench.quantization.layer_costs import Cost, Floats, Part, Quality

_BATCH = 100
_SHOWN = 20  # rows of the table


def main(argv: Sequence[str]) -> int:
    """Leave each layer and activation of a quantized run in float, one at a time, and measure the
    model on validation images; print what each costs, and the setting that leaves out the worst.
    """
    arguments = _parser().parse_args(argv)
    for name in ("images", "seconds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    _explain(arguments.run, arguments.images, arguments.seconds)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("compressbench explain", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--images", type=int, default=2000,
                        help="validation images to measure on (default: 2000)")  # fmt: skip
    parser.add_argument("--seconds", type=int, default=300,
                        help="begin no measurement after this time (default: 300)")  # fmt: skip
    return parser


@dataclass(frozen=True)
class _Subject:
    """A quantized artifact, its stage, and what it was made from unless that was trained."""

    planned: Planned
    row: Mapping[str, Any]
    artifact: Artifact
    start: Artifact | None


def _explain(run: Path, images: int, seconds: int) -> None:
    import torch

    from compressbench.config.recipe_file import read_recipe
    from compressbench.config.run_config import RunConfig
    from compressbench.core.artifact import digest as artifact_digest
    from compressbench.core.journal import Journal
    from compressbench.engine.prepare import prepare
    from compressbench.quantization import layer_costs
    from compressbench.results.report_file import read_report
    from compressbench.results.terminal import Terminal, say

    report = read_report(run)
    prepared = prepare(RunConfig.of(read_recipe(run / "recipe.yaml")))
    if not task_of(prepared.context.data.spec).learns:
        raise UserError(f"{run}: its data have no labels, so no layer can be said to cost any")
    subject = _subject(run, prepared, report)
    torch.set_num_threads(prepared.context.runtime.threads)
    spec = prepared.context.data.spec
    floats, parts = _parts(run, prepared, subject)
    judge = _Judge(prepared, images)
    folder = _folder(prepared, subject, images)
    journal = Journal.open(folder).within(artifact_digest(subject.artifact))
    with Terminal(["explain"], spec.metric) as terminal:
        quantized = judge(subject.artifact.model)
        exact = _exact(subject, floats, parts, judge)
        measured = layer_costs.costs(
            subject.artifact, floats, parts, judge, seconds, terminal.progress, journal
        )
    terminal.table(_rows(measured, quantized, exact, spec.metric), ())
    if len(measured) == len(parts):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        left = len(parts) - len(measured)
        terminal.warn(f"{left} of {len(parts)} not measured within --seconds {seconds}")
    chosen = layer_costs.worst(measured, quantized, exact)
    if not chosen:
        say(terminal.console, "nothing costs a tenth of what quantization adds to the loss")
        return
    with layer_costs.left_out(subject.artifact, floats, chosen):
        together = judge(subject.artifact.model)
    if together.good <= quantized.good:
        shown = metric_text(together.metric, spec.metric)
        say(
            terminal.console, f"the {len(chosen)} worst in float together gain nothing: val {shown}"
        )
        return
    for line in _advice(subject, report, chosen, together, spec.metric):
        say(terminal.console, line)


def _folder(prepared: Prepared, subject: _Subject, images: int) -> Path:
    """Where to keep what was measured until all of it is, in the store."""
    from dataclasses import asdict

    from compressbench.engine.context import parts_of
    from compressbench.store.keys import content_key
    from compressbench.store.sources import versions

    context = prepared.context
    shared = {
        "parents": {"model": subject.artifact.key},
        "data": context.data_identity,
        "images": images,
        "runtime": asdict(context.runtime),
        "environment": versions(["torch"]),
    }
    targets = f"{__name__}.main", "compressbench.quantization.layer_costs.costs"
    return context.store.scratch(content_key(parts_of("explain", shared, *targets)))


def _parts(run: Path, prepared: Prepared, subject: _Subject) -> tuple[Floats, list[Part]]:
    """What can be left in float, and the parameters in float; trained weights have no others."""
    from compressbench.quantization import layer_costs
    from compressbench.quantization.quantize import Quantize

    artifact, stage = subject.artifact, subject.planned.stage
    floats: Floats = {}
    if isinstance(stage, Quantize) and subject.start is not None:
        spec = prepared.context.data.spec
        floats = layer_costs.float_parameters(stage, subject.start, artifact, spec)
    losses = subject.row["tables"].get("activations", [])
    parts = layer_costs.parts_of(artifact, floats, losses)
    if not parts:
        raise UserError(
            f"{run}: {subject.planned.name} trained its weights and rounds nothing else"
        )
    return floats, parts


def _exact(
    subject: _Subject, floats: Floats, parts: Sequence[Part], judge: Callable[[nn.Module], Quality]
) -> Quality:
    """The quality without quantization: of trained weights, that of the weights on their grid."""
    from compressbench.quantization import layer_costs

    if subject.start is not None:
        return judge(subject.start.model)
    with layer_costs.left_out(subject.artifact, floats, parts):
        return judge(subject.artifact.model)


def _subject(run: Path, prepared: Prepared, report: Mapping[str, Any]) -> _Subject:
    """The last quantized stage of the run. Raises UserError if there is none, or if the store has
    lost it.
    """
    from compressbench.quantization.qat import QuantizeAware
    from compressbench.quantization.quantize import Quantize

    rows = {row["name"]: row for row in report["stages"]}
    quantizes = [
        planned for planned in prepared.plan
        if isinstance(planned.stage, (Quantize, QuantizeAware)) and planned.name in rows
    ]  # fmt: skip
    if not quantizes:
        raise UserError(f"{run}: no stage of it is quantize or qat, so there is nothing to explain")
    planned = quantizes[-1]
    row, before = rows[planned.name], planned.parents["model"]
    artifact = _stored(run, prepared, planned.name, row["key"])
    trained = isinstance(planned.stage, QuantizeAware)
    start = None if trained else _stored(run, prepared, before, rows[before]["key"])
    return _Subject(planned, row, artifact, start)


def _stored(run: Path, prepared: Prepared, name: str, key: str) -> Artifact:
    from compressbench.config.recipe_file import replay_command
    from compressbench.core import artifact as artifacts
    from compressbench.engine.stage_job import build_model

    entry = prepared.context.store.read(key)
    if entry is None:
        again = replay_command(run / "recipe.yaml")
        raise UserError(f"{run}: the store no longer has the result of {name}: run {again}")
    return artifacts.load(entry.folder, build_model, key)


class _Judge:
    """Measures a model on evenly spaced validation images."""

    def __init__(self, prepared: Prepared, images: int) -> None:
        import torch

        self.data = prepared.context.data
        split = self.data.split("validation")
        self.rows = torch.linspace(0, len(split) - 1, min(images, len(split))).long()
        self.split = split

    def __call__(self, model: nn.Module) -> Quality:
        import torch

        from compressbench.quantization.layer_costs import Quality

        with torch.inference_mode():
            logits = torch.cat([
                model(self.data.prepare(self.split.inputs[rows].cpu()).contiguous())
                for rows in torch.split(self.rows, _BATCH)
            ])  # fmt: skip
        targets = self.split.targets[self.rows]
        task, metric = task_of(self.data.spec), self.data.spec.metric
        return Quality(
            task.score(metric, logits, targets),
            float(task.loss(logits, targets)),
            metric_of(metric).higher,
        )


def _rows(
    measured: Sequence[Cost], quantized: Quality, exact: Quality, metric: str
) -> list[dict[str, str]]:
    def row(name: str, kind: str, bits: str, quality: Quality) -> dict[str, str]:
        form, gained = metric_of(metric), quality.good - quantized.good
        return {
            "kind": kind,
            "left in float": name,
            "bits": bits,
            f"val {metric}": metric_text(quality.metric, metric),
            "gained": f"{100 * gained:+.2f}" if form.is_share else f"{gained:+.3g}",
            "loss": f"{quality.loss:.4f}",
        }

    return [
        row("nothing", "", "", quantized),
        *(row(c.part.name, c.part.kind, str(c.part.bits), c.quality) for c in measured[:_SHOWN]),
        row("everything", "", "", exact),
    ]


def _advice(
    subject: _Subject,
    report: Mapping[str, Any],
    chosen: Sequence[Part],
    together: Quality,
    metric: str,
) -> list[str]:
    """The lines that say what leaving out `chosen` gains, and how."""
    settings = overrides(subject.planned.name, subject.planned.stage, chosen)
    lines = [
        f"with these {len(chosen)} left in float: val {metric_text(together.metric, metric)}",
        f"setting: {shlex.join(settings)}",
    ]
    command = pasted(report["command"], settings)
    return [*lines, f"run: {command}"] if command else lines

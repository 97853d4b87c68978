"""`compressbench.compress`: one recipe from Python, with a module and data in hand or by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from compressbench.api.process import as_before, silent
from compressbench.api.request import Request, composed
from compressbench.api.run_folder import MODEL, finished_report
from compressbench.api.table import as_table
from compressbench.core.errors import UserError
from compressbench.core.live_objects import live_objects
from compressbench.engine.run import run_recipe
from compressbench.engine.run_folder import RECIPE_FILE, remove_if_empty
from compressbench.results.run_report import Report, comparison_rows, headline, table

SOURCE = "artifact/model_source.py"


@dataclass(frozen=True)
class Result:
    """A finished run.

    `folder` is the run folder, `report` the content of its `report.json`.
    """

    folder: Path
    report: Report = field(repr=False)

    @property
    def path(self) -> Path:
        """The file to ship, `model.onnx`."""
        return self.folder / MODEL

    @property
    def figures(self) -> dict[str, float]:
        """Figures of the file to ship: `size/onnx_bytes`, `val/accuracy`, ..."""
        return dict(self.report["stages"][-1]["figures"])

    @property
    def table(self) -> Any:
        """One row a stage, raw figures: a pandas DataFrame where pandas is installed, else a list
        of dicts.
        """
        return as_table(comparison_rows(self.report))

    def __repr__(self) -> str:
        return f"<compressbench.Result {headline(self.report)}; {self.folder}>"

    def _repr_html_(self) -> str:
        """The table of the command line, for notebooks."""
        rows = table(self.report)
        lines = [_html_row("th", rows[0]), *(_html_row("td", row.values()) for row in rows)]
        return f"<table>{''.join(lines)}</table><p>{escape(str(self.path))}</p>"


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def compress(
    model: nn.Module | str,
    data: Any,
    recipe: str = "prune_then_quant",
    *,
    overrides: Mapping[str, Any] | None = None,
    trained: bool = False,
    folder: str | Path | None = None,
    tracking: str | None = None,
    config_dir: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    task: str = "classification",
    quiet: bool = False,
) -> Result:
    """Run a recipe and measure the file that it exports, as `python run.py recipe=...` does.

    The store, the run folder, the tracking and the figures are those of the command line.

    Args:
        model: A name of the config group `model`, such as `"resnet20"`, or a module that maps a
            batch to logits [B, classes]. The module itself is not changed.
        data: What to train and measure on. A name of the config group `dataset`; a folder with one
            subfolder of images a class; a torch Dataset, a DataLoader (its dataset is taken, or one
            pass over it where it chooses samples) or a pair (inputs, targets) of tensors or arrays,
            which is split; or `(train, test)`, `(train, validation, test)` or a dict with the keys
            `train`, `validation` and `test` of these. Inputs are float [N, ...], taken as they are,
            or uint8 images [N, C, H, W], normalised by the mean and deviation of the training
            images; targets are class numbers [N] from 0. A split that is not given is cut from the
            training samples: `dataset.validation_fraction`, `dataset.test_fraction`,
            `dataset.split_seed` among the overrides. Samples are read once: random transforms of a
            Dataset are drawn once.
        recipe: A name of the config group `recipe`.
        overrides: The keys of the command line, such as `{"recipe.stages.prune.sparsity": 0.8}`; a
            stage is left out by `{"~recipe.stages.finetune": None}`.
        trained: Of a module: keep its weights, as `model.checkpoint=FILE` does on the command line.
            Otherwise the stage `train` trains it, starting from the weights that it has.
        folder: The run folder; `runs/DATE/TIME` when None.
        tracking: A name of the config group `tracking` (`"local"`, `"server"`, `"none"`); that of
            the command line, local MLflow, when None.
        config_dir: A folder with configs of your own, as `--config-dir`.
        class_names: Of given data; as the Dataset says (`classes`), or "0", "1", ..., when None.
            Of a regression they are the names of the numbers.
        task: Of given data: a name of the config group `task`. `"regression"`: targets are
            floats [N] or [N, D]; `"multilabel"`: 0 or 1 per label [N, K]; `"segmentation"`: class
            numbers per pixel [N, H, W]; `"reconstruction"`: 1 for an anomaly [N], else 0.
        quiet: Print nothing. Otherwise the progress and the table of the command line are shown.

    Returns:
        The `Result`: `path`, `figures`, `table`, `report`, `folder`.

    Raises:
        UserError: For a mistake in the arguments, in one line, before anything is written; also
            where `trainer.devices` asks for several processes, which do not see what is in hand.
        CheckFailedError: Where a check failed during the run, as exit code 3 of the command line.

    Example:
        >>> images = torch.rand(200, 1, 8, 8)
        >>> labels = torch.arange(200) % 2
        >>> result = compressbench.compress(net, (images, labels), recipe="quantize")
        >>> result.figures["size/onnx_bytes"]
    """
    with as_before(), ExitStack() as stack:
        if quiet:
            stack.enter_context(silent())
        request = composed(
            model,
            data,
            recipe,
            overrides or {},
            trained=trained,
            tracking=tracking,
            config_dir=config_dir,
            class_names=class_names,
            task=task,
        )
        stack.enter_context(live_objects(request.live))
        where = _run_folder(folder)
        _run(request, where)
        return Result(where, finished_report(where))


def _run_folder(folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder).expanduser().absolute()
    return Path("runs").absolute() / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")


def _run(request: Request, folder: Path) -> None:
    """Run the recipe; leave nothing behind where it is refused."""
    source = folder / SOURCE
    if request.source:
        try:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(request.source, encoding="utf-8")
        except OSError as error:
            raise UserError(f"folder={folder}: {error.strerror}") from error
    try:
        run_recipe(request.config, folder, request.command)
    except BaseException:
        if not (folder / RECIPE_FILE).exists():  # it had not begun
            source.unlink(missing_ok=True)
            remove_if_empty(source.parent)
            remove_if_empty(folder)
        raise

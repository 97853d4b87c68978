"""Trains a model with Lightning: on one or more processes, resumable, stops at NaN."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from compressbench.core.distributed import mean_over_ranks, rank, world_size
from compressbench.core.edits import apply_mask_, masked_layers
from compressbench.core.errors import CheckFailedError
from compressbench.core.kill_points import reached
from compressbench.core.memory_format import channels_last
from compressbench.core.types import Context
from compressbench.data.batches import batches, image_order
from compressbench.tasks.choice import task_of
from compressbench.training.fits.checkpoints import load_checkpoint, save_checkpoint
from compressbench.training.fits.schedule import BatchLoss, FitCallback, Schedule

ParameterGroups = list[dict[str, Any]]  # as torch's optimizers take them
CHECKPOINT = "fit.ckpt"
FIELDS = {"epoch", "step", "history", "model", "loss", "optimizer", "scheduler", "callback"}
CHECK_EVERY = 20  # steps between reads of the loss: each read stalls an accelerator


class _Module(pl.LightningModule):
    """Connects model, loss and schedule to the Trainer."""

    sums: Tensor  # of the epoch so far: loss, quality, and the number of their terms
    bad_step: Tensor  # the first step whose loss was not finite, or -1

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        schedule: Schedule,
        context: Context,
        groups: ParameterGroups,
        callback: FitCallback | None,
    ) -> None:
        super().__init__()
        self.callback = callback
        self.groups = groups
        self.model, self.loss, self.schedule, self.context = model, loss, schedule, context
        self.masked = list(masked_layers(model).values())
        self.parts: dict[str, Tensor] = {}  # sums of the terms of the loss, over the epoch so far
        images = len(context.data.split("train"))
        self.share = schedule.share(world_size())
        self.per_epoch, self.steps = schedule.steps(
            images, world_size(), context.runtime.max_batches
        )
        self.task = task_of(context.data.spec)
        self.running = f"train/{self.task.running}"
        self.history: dict[str, list[float]] = {"train/loss": [], self.running: []}
        self.resumed: dict[str, Any] | None = None  # the checkpoint of an interrupted fit
        self.first_epoch = self.first_step = 0
        self.saved = time.monotonic()
        self.register_buffer("sums", torch.zeros(3), persistent=False)
        self.register_buffer("bad_step", torch.tensor(-1), persistent=False)

    @property
    def epoch(self) -> int:
        return self.first_epoch + self.current_epoch

    @property
    def step(self) -> int:
        return self.first_step + self.global_step

    def resume_(self, state: dict[str, Any]) -> None:
        """Continue after the epoch at whose end `checkpoint` made `state`."""
        self.resumed = state
        self.first_epoch, self.first_step = state["epoch"], state["step"]
        self.history = state["history"]
        self.model.load_state_dict(state["model"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        if self.callback is not None:
            self.callback.resume(state["callback"])

    def checkpoint(self) -> dict[str, Any]:
        optimizer, scheduler = self.trainer.optimizers[0], self.lr_schedulers()
        return {
            "epoch": self.epoch + 1,
            "step": self.step,
            "history": self.history,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),  # type: ignore[union-attr]
            "callback": self.callback.state() if self.callback is not None else {},
        }

    def train_dataloader(self) -> _Epoch:
        return _Epoch(self)

    def configure_optimizers(self) -> Any:
        optimizer = self.schedule.optimizer(self.groups)
        factor = partial(self.schedule.factor, steps=self.steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        if self.resumed is not None:
            optimizer.load_state_dict(self.resumed["optimizer"])
            scheduler.load_state_dict(self.resumed["scheduler"])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        inputs, targets, rows = batch
        loss, logits = self.loss(self.model, inputs, targets, rows)
        with torch.no_grad():
            good, number = self.task.quality(logits, targets)
            count = number.float()
            self.sums += torch.stack([loss.detach().float() * count, good.float(), count])
            terms = getattr(self.loss, "terms", {})
            for name, value in terms.items() if len(terms) > 1 else ():
                self.parts[name] = self.parts.get(name, 0.0) + value.detach().float() * count
            new = torch.where(torch.isfinite(loss), self.bad_step, self.step)
            self.bad_step.copy_(torch.where(self.bad_step >= 0, self.bad_step, new))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.callback is not None:
            self.callback.before_step(self.model, optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        for layer in self.masked:
            apply_mask_(layer)
        if self.callback is not None:
            self.callback.after_step(self.model, self.step, self.steps)
        if self.step % CHECK_EVERY == 0 or self.step == self.steps:
            self._refuse_nan()
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            text = f"loss {self.sums[0].item() / max(1.0, self.sums[2].item()):.3f}, lr {rate:.2g}"
            self.context.progress(self.step, self.steps, text)

    def _refuse_nan(self) -> None:
        step = int(self.bad_step)
        if step >= 0:
            peak = self.trainer.optimizers[0].param_groups[0]["initial_lr"]
            rate = peak * self.schedule.factor(step, self.steps)
            raise CheckFailedError(
                f"the loss is not finite at step {step} of {self.steps}, learning rate {rate:.3g} "
                f"(peak {peak:.3g}): try a lower learning rate"
            )

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(_mix(self.context.seed, self.epoch, rank()))  # dropout

    def on_train_epoch_end(self) -> None:
        self._refuse_nan()
        loss, good, terms = self.sums.tolist()
        self.history["train/loss"].append(loss / terms)
        self.history[self.running].append(good / terms)
        for name, total in self.parts.items():
            self.history.setdefault(f"train/{name}", []).append(float(total) / terms)
        self.parts.clear()
        self.sums.zero_()
        if self.callback is not None:
            self.callback.after_epoch(self.model, self.epoch + 1)
        due = time.monotonic() - self.saved >= self.context.checkpoint_seconds
        if due and rank() == 0 and self.step < self.steps:
            save_checkpoint(self.checkpoint(), self.context.folder / CHECKPOINT)
            self.saved = time.monotonic()
            reached("fit.saved")


class _Epoch:
    """The batches of the current epoch; the same batches when the epoch is repeated."""

    def __init__(self, module: _Module) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        module = self.module
        context, device = module.context, module.context.runtime.device
        seed = _mix(context.seed, module.epoch)
        epoch = batches(
            context.data, "train", module.share,
            device=device, augment=True, drop_last=True,
            shuffle_seed=seed,
            rank=rank(), world_size=world_size(),
        )  # fmt: skip
        images = len(context.data.split("train"))
        order = image_order(images, None, seed, rank(), world_size(), True).to(device)
        rows = (order[n * module.share : (n + 1) * module.share] for n in range(len(self)))
        return ((*batch, numbers) for numbers, batch in zip(rows, epoch, strict=False))


def _mix(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed


def fit_(
    model: nn.Module,
    loss: BatchLoss,
    schedule: Schedule,
    context: Context,
    groups: ParameterGroups | None = None,
    callback: FitCallback | None = None,
) -> dict[str, list[float]]:
    """Train `model` in place; masked weights are exactly zero after every step.

    Args:
        model: returned to the CPU and to eval mode at the end.
        loss: `loss(model, inputs, targets, rows)` returns the scalar loss and the logits; `rows`
            are the positions of the batch in the training split. If it is a module, its
            parameters are trained too, and the history includes the means of its `terms`.
        schedule: epochs, batch size, optimizer and learning rate.
        context: the data, the seed, and the folder that holds the checkpoint.
        groups: parameter groups of the optimizer; one group of all trainable parameters if None.
        callback: called at every step and epoch.

    Returns `train/loss`, `train/<running>` of the task, and `train/<term>`, one value per epoch.
    Raises CheckFailedError if the loss is not finite.
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(), _quiet_lightning():
        groups = groups or [{"params": [p for p in model.parameters() if p.requires_grad]}]
        learned = list(loss.parameters()) if isinstance(loss, nn.Module) else []
        groups = [*groups, {"params": learned}] if learned else groups
        module = _Module(model.train(), loss, schedule, context, groups, callback)
        state = load_checkpoint(context.folder / CHECKPOINT, FIELDS, model.state_dict())
        if state is not None:
            module.resume_(state)
        trainer = pl.Trainer(
            **_placement(context),
            precision=context.runtime.precision,  # type: ignore[arg-type]
            max_steps=module.steps - module.first_step, max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=context.folder,
        )  # fmt: skip
        with channels_last(model, context.data.spec.blank(2), context.runtime.device):
            trainer.fit(module)
    reached("fit.ended")
    model.cpu().eval()
    _average_statistics_(model)
    return module.history


def _average_statistics_(model: nn.Module) -> None:
    """Average the BatchNorm statistics, which differ between ranks."""
    for buffer in model.buffers():
        if world_size() > 1 and buffer.is_floating_point():
            buffer.data = mean_over_ranks(buffer)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice on loaders and loggers, which are not used here."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _placement(context: Context) -> dict[str, Any]:
    runtime = context.runtime
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    base: dict[str, Any] = {"accelerator": runtime.accelerator, "num_sanity_val_steps": 0}
    if world_size() == 1:  # also in a job of Slurm, whose tasks and signals are not Lightning's
        return {**base, "devices": 1, "plugins": [LightningEnvironment()]}
    from pytorch_lightning.strategies import DDPStrategy

    backend = "nccl" if runtime.accelerator == "gpu" else "gloo"
    strategy = DDPStrategy(
        process_group_backend=backend,
        cluster_environment=LightningEnvironment(),
        find_unused_parameters=True,  # of layers that nothing calls, or that a batch skips
    )
    return {**base, "devices": runtime.devices, "strategy": strategy}

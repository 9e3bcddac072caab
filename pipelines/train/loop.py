"""The loop: any model, any task; optimiser, checkpoints and moving average around them."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torchmetrics import MetricCollection

from gigavim.config import Precision
from gigavim.errors import GigavimError
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.history import History
from gigavim.pipelines.train.project import Phase
from gigavim.precision import product_precision

LAST, BEST, DONE = "last.ckpt", "best.ckpt", "done.txt"
SAVE_EVERY = timedelta(minutes=5)


class Batches(Protocol):
    """Batches without end, an epoch at a time, that can go on where they were."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, int]:
        """Say where they are."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Task:
    """What a model is to learn."""

    training: Callable[[int, int], Batches]
    """The share of one process, given its rank and how many there are."""
    validation: Iterable[Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of what the model makes of a batch, and of what it should."""
    metrics: MetricCollection
    """Of the same two, on validation batches."""
    monitor: str
    """The metric that chooses the model; more is better."""


class Training(LightningModule):
    """A model that learns a task."""

    def __init__(self, model: nn.Module, task: Task, phase: Phase) -> None:
        super().__init__()
        self.model, self.task, self.phase = model, task, phase
        self.metrics = task.metrics

    def setup(self, stage: str) -> None:
        """Take the share of this process."""
        self.batches = self.task.training(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Any:
        """Return the batches of this process."""
        return self.batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save where in the data the run is; Lightning does so within an epoch alone."""
        checkpoint["batches"] = self.batches.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.batches.load_state_dict(checkpoint["batches"])

    def val_dataloader(self) -> Any:
        """Return all validation batches: each process sees all, so that all stop together."""
        return self.task.validation

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        loss = self.task.loss(self.model(inputs), targets)
        if not torch.isfinite(loss):
            raise GigavimError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, batch {number + 1}; "
                "lower the learning rate, or look for tiles without finite values"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(inputs))
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        """Compare what the model makes of a batch."""
        inputs, targets = batch
        outputs = self.model(inputs).float()
        self.metrics.update(outputs, targets)
        loss = self.task.loss(outputs, targets)
        self.log("val_loss", loss, on_epoch=True, batch_size=len(inputs))

    def on_validation_epoch_end(self) -> None:
        """Sum up."""
        self.log_dict({f"val_{name}": value for name, value in self.metrics.compute().items()})
        self.metrics.reset()

    def configure_optimizers(self) -> Any:
        """Return AdamW with warm-up and a cosine."""
        phase, steps = self.phase, self.phase.epochs * len(self.batches)
        warm_up = max(1, round(phase.warm_up * steps))

        def rate(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

        groups = parameter_groups(self.model, phase.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=phase.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tell the weights that decay from the others.

    Decay would pull the rates A and skips D of the scan towards values that mean something else.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or name.endswith(("_log", "pos_embed")) or "cls_token" in name
        (others if kept else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return how the average follows the weights: faster at first, when they are far from good."""

    def averaged(average: Tensor, weights: Tensor, updates: Tensor) -> Tensor:
        if not average.is_floating_point():
            return weights  # a count of batches has no average
        count = float(updates)
        # Not by lerp: batch norm counts in integers.
        return average + (weights - average) * (1 - min(decay, (1 + count) / (10 + count)))

    return averaged


def fit(
    model: nn.Module,
    task: Task,
    phase: Phase,
    folder: Path,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
) -> float:
    """Train a model and leave its best weights in it.

    A folder in which a run was stopped is continued, to the same bits on the same machine.

    Parameters
    ----------
    folder
        For checkpoints, ``log.csv`` and ``curves.png``.
    device
        ``auto``, ``cpu``, ``cuda``; with several GPUs, all of them.

    Returns
    -------
    score
        What `Task.monitor` came to in validation.

    Raises
    ------
    GigavimError
        If the loss is not a finite number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / DONE
    if not done.exists():
        training = Training(model.train(), task, phase)
        score = _run(
            training, folder, device, precision, tensorboard=tensorboard, progress=progress
        )
        done.write_text(repr(score), encoding="utf-8")
    weights = torch.load(folder / BEST, map_location="cpu", weights_only=True)["state_dict"]
    of_model = {name: tensor for name, tensor in weights.items() if name.startswith("model.")}
    model.load_state_dict({n.removeprefix("model."): tensor for n, tensor in of_model.items()})
    model.cpu().eval()
    return float(done.read_text(encoding="utf-8"))


def _run(
    training: Training,
    folder: Path,
    device: str,
    precision: Precision,
    *,
    tensorboard: bool,
    progress: bool,
) -> float:
    """Let Lightning run it; return the best score."""
    phase, monitor = training.phase, f"val_{training.task.monitor}"
    checkpoint = partial(ModelCheckpoint, folder, enable_version_counter=False)
    best = checkpoint(Path(BEST).stem, monitor, mode="max")
    last = folder / LAST
    accelerator = {"cuda": "gpu"}.get(device, device)
    on_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    products = product_precision("cuda" if on_gpu else "cpu", precision).precision
    with _quiet():
        trainer = Trainer(
            accelerator=accelerator,
            devices="auto" if on_gpu else 1,
            precision="bf16-mixed" if products == "bfloat16" else "32-true",
            logger=_tensorboard(folder) if tensorboard else False,
            callbacks=[
                WeightAveraging(avg_fn=moving_average(phase.average)),
                History(folder),
                EarlyStopping(monitor, mode="max", patience=phase.patience, check_finite=False),
                best,
                checkpoint(last.stem),
                checkpoint(last.stem, train_time_interval=SAVE_EVERY),
            ],
            max_epochs=phase.epochs,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(training, ckpt_path=last if last.exists() else None)
    assert best.best_model_score is not None  # there was an epoch
    return float(best.best_model_score)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user what Lightning says of itself."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # It is meant to; and Lightning uses what PyTorch 2.13 would rather be asked otherwise.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        # On a cluster's login node it would rather be started by srun.
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")
        try:
            yield
        finally:
            log.setLevel(level)


def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name=None, version="")
    except ModuleNotFoundError as error:
        raise GigavimError("TensorBoard is not here: pip install tensorboard") from error

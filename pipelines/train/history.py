"""What each epoch came to, as a table and as curves."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class History(Callback):
    """Writes ``log.csv`` and ``curves.png`` after each epoch; it is part of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to take the time."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row; validation is done by now."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds = time.perf_counter() - self.started
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        epoch = trainer.current_epoch + 1
        self.rows.append({"epoch": epoch, **values, "learning_rate": rate, "seconds": seconds})
        if trainer.is_global_zero:
            write_log(self.folder / "log.csv", self.rows)
            draw_curves(self.folder / "curves.png", self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after these rows."""
        self.rows = state_dict["rows"]


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a row an epoch as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(path: Path, rows: list[dict[str, float]]) -> None:
    """Draw losses, and the other figures, by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, others = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in rows[0]:
        if name in ("epoch", "seconds", "learning_rate"):
            continue
        axes = losses if name.endswith("loss") else others
        axes.plot(epochs, [row[name] for row in rows], label=name.replace("_", " "))
    for axes in (losses, others):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)

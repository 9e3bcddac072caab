"""Self-supervised training of an encoder: know two views of one place from views of other places.

Contrastive learning (SimCLR, Chen et al. 2020, arXiv 2002.05709) of the mean over the patches of a
crop. Views differ by place, scale, turn and stain, so what is learned is what they share: which
tissue or land it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from gigavim.config import Precision
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.drawn import DrawnBatches
from gigavim.pipelines.train.loop import Task, fit
from gigavim.pipelines.train.project import Phase

TEMPERATURE = 0.1
HELD_OUT = 20
"""Batches of held-out images in validation, the same each time."""


class ViewSet(Protocol):
    """Images of which places are seen twice."""

    @property
    def batch(self) -> int:
        """Places in a batch."""
        ...

    def views(self, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cut two squares about one place.

        Returns
        -------
        views
            Normalised, NaN where they are not known, whole patches to a side; (side, side, band).
        """
        ...


class ViewModel(nn.Module):
    """An encoder, and what its vectors are compared by."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.encoder = VisionMamba(config)
        self.compared = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, 64)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors, shape (b, 64), of images (b, side, side, band); NaN is not known."""
        patch = self.encoder.config.patch
        cut = images.nan_to_num().unfold(1, patch, patch).unfold(2, patch, patch)
        tokens = self.encoder.embed(cut.permute(0, 1, 2, 4, 5, 3))
        rows, columns = tokens.shape[1:3]
        position = self.encoder.position_for(rows, columns)
        mean = self.encoder.mix(tokens.flatten(1, 2), position).tokens.mean(1)
        return nn.functional.normalize(self.compared(mean).float(), dim=-1)


def contrast(vectors: Tensor, places: Tensor) -> Tensor:
    """Return how ill each view tells its other view from those of other places (NT-Xent).

    Parameters
    ----------
    vectors
        Of unit length, shape (2 n, D).
    places
        Number of the place of each, twice 0 to n - 1, shape (2 n,).
    """
    return nn.functional.cross_entropy(_likeness(vectors) / TEMPERATURE, _others(places))


class Recognised(Metric):
    """The share of views that are most like the other view of their place."""

    higher_is_better = True
    full_state_update = False
    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, vectors: Tensor, places: Tensor) -> None:
        """Count a batch, as `contrast` takes it."""
        self.right += (_likeness(vectors).argmax(1) == _others(places)).sum()
        self.count += len(places)

    def compute(self) -> Tensor:
        """Return the share."""
        return self.right / self.count


def _likeness(vectors: Tensor) -> Tensor:
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    exact = vectors.double()  # bfloat16 would make many alike
    return (exact @ exact.T).masked_fill(itself, -torch.inf)


def _others(places: Tensor) -> Tensor:
    """Return the row of the other view of each place."""
    is_same = places[:, None] == places
    return is_same.fill_diagonal_(False).int().argmax(1)


def view_batch(images: ViewSet, rows: NDArray[np.int64], random: np.random.Generator) -> Batch:
    """Draw places and see each twice."""
    seen = [_turned(view, random) for _ in range(images.batch) for view in images.views(random)]
    return torch.from_numpy(np.stack(seen)), torch.arange(images.batch).repeat_interleave(2)


def _turned(pixels: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    pixels = np.rot90(pixels, int(random.integers(4)))
    return np.ascontiguousarray(pixels[:, ::-1] if random.random() < 0.5 else pixels)


@dataclass(frozen=True)
class HeldOut:
    """The same views of held-out images each time."""

    images: ViewSet

    def __iter__(self) -> Iterator[Batch]:
        return iter(DrawnBatches(partial(view_batch, self.images), HELD_OUT, 1, seed=1))


def pretrain_views(
    train: ViewSet,
    held_out: ViewSet,
    config: VisionMambaConfig,
    phase: Phase,
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "bfloat16",
    progress: bool = False,
) -> tuple[VisionMamba, dict[str, float]]:
    """Train an encoder; the parameters are those of `pretrain`.

    Returns
    -------
    encoder
    metrics
        ``recognised``: the share of views of held-out images that are most like the other view of
        their place, among a batch.
    """
    torch.manual_seed(seed)
    model = ViewModel(config)
    draw = partial(view_batch, train)
    task = Task(
        training=lambda rank, ranks: DrawnBatches(draw, steps * ranks, ranks, seed, rank, ranks),
        validation=HeldOut(held_out),
        loss=contrast,
        metrics=MetricCollection({"recognised": Recognised()}),
        monitor="recognised",
    )
    score = fit(model, task, phase, folder, device=device, precision=precision, progress=progress)
    return model.encoder, {"recognised": score}

"""Self-supervised training of an encoder: hide patches, predict their pixels from the others.

Masked image modelling with a linear decoder (SimMIM, Xie et al. 2022, arXiv 2111.09886), which
suits a Vim as it is: hidden patches are a learned token in the sequence, so training and use see
the same sequences, and nothing but pixels is needed. Bands are dropped at random where the model is
to work without some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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

HIDDEN = 0.5
"""Share of the patches that are hidden."""
UNDATED = 0.2
"""Share of the crops whose date is not told, so that the model does without as well."""
HELD_OUT = 20
"""Batches of held-out images that are predicted in validation, the same each time."""


class Crop(NamedTuple):
    """A square of an image."""

    pixels: NDArray[np.float32]
    """Normalised, NaN where they are not known, whole patches to a side; (side, side, band)."""
    there: NDArray[np.bool_]
    """Which of the model's bands are known, shape (band,)."""
    day: float = math.nan
    """Of the year, NaN where it is not known."""


class Dated(NamedTuple):
    """What a model that knows seasons takes."""

    patches: Tensor
    """As of `MaskedModel`."""
    days: Tensor
    """Of the year, NaN where it is not told, shape (b,)."""


class CropSet(Protocol):
    """Images that are cropped to squares of one size."""

    @property
    def batch(self) -> int:
        """Crops in a batch."""
        ...

    @property
    def weight(self) -> float:
        """How often this set is drawn, against the others."""
        ...

    def crop(self, random: np.random.Generator) -> Crop:
        """Cut a square at random."""
        ...


class MaskedModel(nn.Module):
    """An encoder with what its training needs besides."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.encoder = VisionMamba(config)
        self.hidden = nn.Parameter(torch.zeros(config.width))
        self.decoder = nn.Linear(config.width, config.patch**2 * config.bands)

    def forward(self, seen: Tensor | Dated) -> Tensor:
        """Predict all patches from those that are not hidden.

        Parameters
        ----------
        seen
            Patches, with their days where the encoder knows seasons; NaN if hidden or not known, 0
            where a band is missing; shape (b, row, column, P, P, band).
        """
        patches, days = seen if isinstance(seen, Dated) else (seen, None)
        is_hidden = patches[..., 0, 0, 0].isnan()
        tokens = self.encoder.embed(patches.nan_to_num())
        tokens = torch.where(is_hidden[..., None], self.hidden.to(tokens.dtype), tokens)
        season = None if days is None else self.encoder.season_for(days)
        if season is not None:
            tokens = tokens + season[:, None, None]
        rows, columns = patches.shape[1:3]
        index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        mixed = self.encoder.mix(
            tokens.flatten(1, 2),
            self.encoder.position_for(rows, columns),
            index=index,
            grid=(rows, columns),
        )
        predicted: Tensor = self.decoder(mixed.tokens)
        return predicted.view_as(patches)


def masked_loss(predicted: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error over what was hidden.

    Parameters
    ----------
    hidden
        NaN for what was not hidden, or is missing; shaped as what is predicted.
    """
    counted = hidden.isfinite()
    error = (predicted.float() - hidden.nan_to_num()) ** 2 * counted
    return error.sum() / counted.sum().clamp(min=1)


class Explained(Metric):
    """The share of the variance of hidden pixels that is predicted."""

    higher_is_better = True
    full_state_update = False
    error: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("error", "variance"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, hidden: Tensor) -> None:
        """Count a batch, as `masked_loss` takes it."""
        counted = hidden.isfinite()
        values = hidden[counted].double()
        self.error += ((predicted[counted].double() - values) ** 2).sum()
        self.variance += (values**2).sum()

    def compute(self) -> Tensor:
        """Return the share; below 0 where a constant would be nearer."""
        return 1 - self.error / self.variance


def masked_batch(
    sets: Sequence[CropSet],
    patch: int,
    rows: NDArray[np.int64],
    random: np.random.Generator,
    *,
    band_dropout: bool,
    season: bool = False,
) -> Batch:
    """Draw crops from one set, and hide some of their patches; their days are for a `season`."""
    weights = np.array([each.weight for each in sets])
    chosen = sets[random.choice(len(sets), p=weights / weights.sum())]
    drawn = [_turned(chosen.crop(random), random) for _ in range(chosen.batch)]
    crops = torch.from_numpy(np.stack([crop.pixels for crop in drawn]))
    there = torch.from_numpy(np.stack([crop.there for crop in drawn]))
    if band_dropout:
        kept = torch.from_numpy(random.random(there.shape) < random.choice([0.5, 0.75, 1.0]))
        kept[~(kept & there).any(1)] = True  # at least one band of each crop stays
        there &= kept
        crops *= there[:, None, None, :]
    patches = crops.unfold(1, patch, patch).unfold(2, patch, patch).permute(0, 1, 2, 4, 5, 3)
    is_hidden = torch.from_numpy(random.random(patches.shape[:3]) < HIDDEN)[..., None, None, None]
    seen: Any = patches.masked_fill(is_hidden, torch.nan)
    if season:
        days = torch.tensor([crop.day for crop in drawn], dtype=torch.float64)
        days[torch.from_numpy(random.random(len(days)) < UNDATED)] = torch.nan
        seen = Dated(seen, days)
    return seen, patches.masked_fill(~(is_hidden & there[:, None, None, None, None]), torch.nan)


def _turned(crop: Crop, random: np.random.Generator) -> Crop:
    """Flip and turn a crop."""
    pixels = np.rot90(crop.pixels, int(random.integers(4)))
    pixels = np.ascontiguousarray(pixels[:, ::-1] if random.random() < 0.5 else pixels)
    return crop._replace(pixels=pixels)


@dataclass(frozen=True)
class HeldOut:
    """The same hidden patches of held-out images each time."""

    sets: Sequence[CropSet]
    patch: int
    season: bool

    def __iter__(self) -> Iterator[Batch]:
        draw = partial(masked_batch, self.sets, self.patch, band_dropout=False, season=self.season)
        return iter(DrawnBatches(draw, HELD_OUT, 1, seed=1))


def pretrain(
    train: Sequence[CropSet],
    held_out: Sequence[CropSet],
    config: VisionMambaConfig,
    phase: Phase,
    folder: Path,
    *,
    steps: int,
    band_dropout: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "bfloat16",
    progress: bool = False,
) -> tuple[VisionMamba, dict[str, float]]:
    """Train an encoder; what was stopped goes on, to the same bits.

    Parameters
    ----------
    folder
        For checkpoints, log and curves.
    steps
        Batches in an epoch.

    Returns
    -------
    encoder
    metrics
        ``explained``: the share of the variance of hidden pixels that is predicted, on held-out
        images.
    """
    torch.manual_seed(seed)
    model = MaskedModel(config)
    season = config.season
    draw = partial(masked_batch, train, config.patch, band_dropout=band_dropout, season=season)
    task = Task(
        training=lambda rank, ranks: DrawnBatches(draw, steps * ranks, ranks, seed, rank, ranks),
        validation=HeldOut(held_out, config.patch, season),
        loss=masked_loss,
        metrics=MetricCollection({"explained": Explained()}),
        monitor="explained",
    )
    score = fit(model, task, phase, folder, device=device, precision=precision, progress=progress)
    return model.encoder, {"explained": score}

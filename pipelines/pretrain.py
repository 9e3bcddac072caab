"""Self-supervised training of an encoder: hide patches, predict their pixels from the others.

Masked image modelling with a linear decoder (SimMIM, Xie et al. 2022, arXiv 2111.09886), which
suits a Vim as it is: hidden patches are a learned token in the sequence, so training and use see
the same sequences, and nothing but pixels is needed. Bands are dropped at random where the model is
to work without some.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim.encoder import VisionMamba, VisionMambaConfig

logger = logging.getLogger(__name__)

HIDDEN = 0.5
"""Share of the patches that are hidden."""


@dataclass(frozen=True)
class ImageSet:
    """Images that are cropped to one size."""

    images: Sequence[NDArray[np.float32]]
    """Normalised, each (height, width, band)."""
    slots: tuple[int, ...]
    """Where each of their bands goes among the model's."""
    side: int
    """Patches to a side of a crop."""
    batch: int
    """Crops in a batch."""
    weight: float
    """How often this set is drawn, against the others."""
    zoom: tuple[float, float] = (0.75, 1.33)
    """Least and greatest side of what is cut and resized, in crops; smaller where it must fit."""

    @cached_property
    def chances(self) -> NDArray[np.float64]:
        """How likely each image is drawn: by its area."""
        areas = np.array([image.shape[0] * image.shape[1] for image in self.images], np.float64)
        return np.asarray(areas / areas.sum())


class MaskedModel(nn.Module):
    """An encoder with what its training needs besides."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.encoder = VisionMamba(config)
        self.hidden = nn.Parameter(torch.zeros(config.width))
        self.decoder = nn.Linear(config.width, config.patch**2 * config.bands)

    def forward(self, patches: Tensor, is_hidden: Tensor, there: Tensor) -> Tensor:
        """Return the mean squared error over what was hidden.

        Parameters
        ----------
        patches
            Shape (b, l, P, P, band), 0 where a band is missing.
        is_hidden
            Shape (b, l).
        there
            Whether a crop has a band, shape (b, band).
        """
        tokens = self.encoder.embed(patches)
        tokens = torch.where(is_hidden[..., None], self.hidden, tokens)
        predicted = self.decoder(self.encoder.mix(tokens).tokens).view_as(patches)
        counted = is_hidden[:, :, None, None, None] * there[:, None, None, None, :]
        error: Tensor = ((predicted - patches) ** 2 * counted).sum()
        return error / (counted.sum() * patches.shape[2] * patches.shape[3]).clamp(min=1)


def pretrain(
    train: Sequence[ImageSet],
    held_out: Sequence[ImageSet],
    config: VisionMambaConfig,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    band_dropout: bool = False,
    seed: int = 0,
) -> tuple[VisionMamba, dict[str, float]]:
    """Train an encoder.

    Returns
    -------
    encoder
    metrics
        ``explained``: the share of the variance of hidden pixels that is predicted, on held-out
        images; ``tokens``: how many were seen.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = MaskedModel(config)
    # Decay would pull the rates A and skips D of the scan towards values that mean something else.
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or name.endswith("_log") else decayed).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
    )
    warm_up, seen = max(1, steps // 20), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    for step in range(1, steps + 1):
        patches, there = _batch(train, config, random, band_dropout=band_dropout)
        loss = model(patches, torch.rand(patches.shape[:2]) < HIDDEN, there)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        seen += patches.shape[0] * patches.shape[1]
        if step % 100 == 0:
            logger.info("step %d of %d, loss %.4f", step, steps, loss.item())
    explained = evaluate(model, held_out, config)
    return model.encoder.eval(), {"explained": explained, "tokens": float(seen)}


@torch.inference_mode()
def evaluate(
    model: MaskedModel, held_out: Sequence[ImageSet], config: VisionMambaConfig, batches: int = 20
) -> float:
    """Return the share of the variance of hidden pixels that is predicted."""
    random = np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    error = variance = 0.0
    for _ in range(batches):
        patches, there = _batch(held_out, config, random, band_dropout=False)
        is_hidden = torch.rand(patches.shape[:2], generator=generator) < HIDDEN
        error += model(patches, is_hidden, there).item()
        hidden = patches[is_hidden]
        variance += (hidden[..., there.all(0)] ** 2).mean().item()
    return 1 - error / variance


def _batch(
    sets: Sequence[ImageSet],
    config: VisionMambaConfig,
    random: np.random.Generator,
    *,
    band_dropout: bool,
) -> tuple[Tensor, Tensor]:
    """Draw crops from one set: patches (b, l, P, P, band), and their bands that are (b, band)."""
    weights = np.array([each.weight for each in sets])
    chosen = sets[random.choice(len(sets), p=weights / weights.sum())]
    side, patch = chosen.side, config.patch
    crops = torch.zeros(chosen.batch, side * patch, side * patch, config.bands)
    crops[..., chosen.slots] = torch.from_numpy(np.stack(list(_crops(chosen, patch, random))))
    there = torch.zeros(chosen.batch, config.bands, dtype=torch.bool)
    there[:, chosen.slots] = True
    if band_dropout:
        kept = torch.from_numpy(random.random(there.shape) < random.choice([0.5, 0.75, 1.0]))
        kept[~(kept & there).any(1)] = True  # at least one band of each crop stays
        there &= kept
        crops *= there[:, None, None, :]
    patches = crops.view(len(crops), side, patch, side, patch, -1).transpose(2, 3).flatten(1, 2)
    return patches, there


def _crops(
    chosen: ImageSet, patch: int, random: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """Cut random squares, resized, flipped and turned."""
    size = chosen.side * patch
    for number in random.choice(len(chosen.images), chosen.batch, p=chosen.chances):
        image = chosen.images[number]
        room = min(image.shape[:2])
        cut = min(room, round(size * math.exp(random.uniform(*np.log(chosen.zoom)))))
        y, x = (random.integers(0, extent - cut + 1) for extent in image.shape[:2])
        crop = image[y : y + cut, x : x + cut]
        if cut != size:
            given = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
            zoomed = nn.functional.interpolate(given, (size, size), mode="bilinear", antialias=True)
            crop = zoomed[0].permute(1, 2, 0).numpy()
        crop = np.rot90(crop, int(random.integers(4)))
        yield np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop)

"""Random changes that leave the label as it is, on batches of images, shape (b, band, h, w)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gigavim.errors import GigavimError

STAINS = (
    (0.65, 0.70, 0.29),
    (0.07, 0.99, 0.11),
    (0.27, 0.57, 0.78),
)
"""Haematoxylin, eosin and DAB: optical density in red, green, blue (Ruifrok, Johnston 2001)."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images."""

    turns: bool = True
    """Flips and quarter turns."""
    zoom: float = 1.2
    """Largest factor by which an image is enlarged or reduced, and cut somewhere; 1 for none."""
    stain: float = 0.0
    """Largest relative and absolute change of each stain of H&E; 0.05 is plenty between labs."""
    haze: tuple[float, ...] = ()
    """What the air adds to each band, of 0 to 1: a share is taken off half of the batches, as of a
    whole scene, so that what was learned at the top of the atmosphere holds for surfaces too."""
    band_dropout: float = 0.0
    """How often a band is missing; one of each image always stays."""
    mixed: float = 0.0
    """Share of the batches in which a rectangle of each image is from another, labels likewise."""

    def __post_init__(self) -> None:
        if self.zoom < 1 or not 0 <= self.band_dropout < 1 or not 0 <= self.mixed <= 1:
            raise ValueError(f"zoom is at least 1, band_dropout and mixed are shares: {self}")

    def change(self, images: Tensor, generator: Generator) -> Tensor:
        """Change images of 0 to 1, before they are normalised."""
        if self.turns:
            images = turned(images, generator)
        if self.zoom > 1:
            images = zoomed(images, self.zoom, generator)
        if self.stain:
            images = restained(images, self.stain, generator)
        if self.haze:
            images = cleared(images, self.haze, generator)
        return images

    def hide(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Change normalised images, and targets (b, K) with them."""
        if self.band_dropout:
            images = with_bands_dropped(images, self.band_dropout, generator)
        if self.mixed and _uniform(1, generator).item() < self.mixed:
            images, targets = mixed(images, targets, generator)
        return images, targets


def turned(images: Tensor, generator: Generator) -> Tensor:
    """Turn each by a random quarter, and mirror half of them; they must be square."""
    kind = torch.randint(8, (len(images),), generator=generator)
    out = torch.empty_like(images)
    for k in range(8):
        rows = (kind == k).nonzero()[:, 0]
        chosen = images[rows].rot90(k % 4, (2, 3))
        out[rows] = chosen.flip(3) if k >= 4 else chosen
    return out


def zoomed(images: Tensor, most: float, generator: Generator) -> Tensor:
    """Enlarge or reduce each by a random factor about a random place; beyond the edge, mirror."""
    count = len(images)
    size = torch.exp((_uniform(count, generator) * 2 - 1) * math.log(most))
    shift = (_uniform((count, 2), generator) * 2 - 1) * (1 - size).abs()[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(
        images, grid, "bilinear", padding_mode="reflection", align_corners=False
    )


def restained(images: Tensor, most: float, generator: Generator) -> Tensor:
    """Strengthen or weaken each stain (HED jitter, Tellez et al. 2018, arXiv 1808.05896).

    Parameters
    ----------
    images
        Red, green and blue, 0 to 1.
    """
    stains = torch.tensor(STAINS)
    stains = stains / stains.norm(dim=1, keepdim=True)
    density = -torch.log(images.clamp(min=1e-3)).permute(0, 2, 3, 1)
    amounts = density @ torch.linalg.inv(stains)
    count = len(images)
    factor = 1 + (_uniform((count, 1, 1, 3), generator) * 2 - 1) * most
    offset = (_uniform((count, 1, 1, 3), generator) * 2 - 1) * most
    changed = torch.exp(-(amounts * factor + offset) @ stains)
    return changed.clamp(0, 1).permute(0, 3, 1, 2)


def cleared(images: Tensor, haze: tuple[float, ...], generator: Generator) -> Tensor:
    """Take a random share of haze off all images, and none as often (Chavez 1988, dark objects).

    Parameters
    ----------
    haze
        Per band, in the images' units.

    Raises
    ------
    GigavimError
        If the images have other bands.
    """
    if images.shape[1] != len(haze):
        raise GigavimError(
            f"haze has {len(haze)} values, and images have {images.shape[1]} bands; name one each"
        )
    share = max(0.0, 2 * _uniform(1, generator).item() - 1)
    return (images - share * torch.tensor(haze)[:, None, None]).clamp(min=0)


def with_bands_dropped(images: Tensor, chance: float, generator: Generator) -> Tensor:
    """Set bands of each to 0, their mean, but for at least one."""
    draws = _uniform(images.shape[:2], generator)
    kept = draws >= chance
    kept |= draws == draws.amax(1, keepdim=True)
    return images * kept[:, :, None, None]


def mixed(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Put a rectangle of each image in its place in another (CutMix, Yun et al. 2019).

    Targets, shape (b, K), are mixed by area (arXiv 1905.04899).
    """
    height, width = images.shape[2:]
    side = math.sqrt(_uniform(1, generator).item())
    high, wide = round(side * height), round(side * width)
    y = int(torch.randint(height - high + 1, (1,), generator=generator))
    x = int(torch.randint(width - wide + 1, (1,), generator=generator))
    other = torch.randperm(len(images), generator=generator)
    out = images.clone()
    out[:, :, y : y + high, x : x + wide] = images[other, :, y : y + high, x : x + wide]
    share = high * wide / (height * width)
    return out, targets * (1 - share) + targets[other] * share


def _uniform(shape: int | tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator)

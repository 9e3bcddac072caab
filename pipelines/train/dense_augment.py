"""A counterstain for images that have none, so that what they teach holds for H&E.

Where nuclei are known, an image can be stained anew: the optical density stays, and its colour
becomes haematoxylin's in nuclei and eosin's around them, with fibres and gaps as tissue has. From
images that are purple alone a model learns that dark is nucleus; from these that it is not so.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from gigavim.pipelines.train.augment import STAINS

SHARE = 0.5
"""Of images that are stained anew."""
LIGHTEST = 1 / 255
EOSIN = (0.15, 0.60, 0.25)
"""Optical density of eosin in red, green and blue, as scanners see it in connective tissue."""


def counterstained(images: Tensor, nucleus: Tensor, generator: Generator) -> Tensor:
    """Stain a share of images anew, each in its own way.

    Parameters
    ----------
    images
        Red, green and blue, 0 to 1, shape (b, 3, h, w).
    nucleus
        How much of each pixel is nucleus, shape (b, h, w).
    """
    count = len(images)

    def uniform(low: float, high: float, bands: int = 1) -> Tensor:
        drawn = torch.rand((count, bands, 1, 1), generator=generator)
        return low + (high - low) * drawn

    haematoxylin, eosin = (
        torch.tensor(stain)[:, None, None] * torch.exp(uniform(-0.3, 0.3, 3))
        for stain in (STAINS[0], EOSIN)
    )
    inside = torch.lerp(haematoxylin, eosin, uniform(0, 0.5))
    around = torch.lerp(eosin, haematoxylin, uniform(0, 0.4))
    inside, around = (colour / colour.sum(1, keepdim=True) for colour in (inside, around))

    density = -torch.log(images.clamp(min=LIGHTEST))
    amount = density.sum(1, keepdim=True)
    soft = nn.functional.avg_pool2d(nucleus[:, None], 5, 1, 2)
    tissue = amount * uniform(0.4, 2) * torch.exp(uniform(0, 0.8) * _grain(images, generator))
    tissue = tissue * (_grain(images, generator) > uniform(-4, -0.7))
    stained = soft * amount * uniform(0.8, 2.4) * inside + (1 - soft) * tissue * around
    new = density + uniform(0.6, 1) * (stained - density)
    chosen = torch.rand((count, 1, 1, 1), generator=generator) < SHARE
    return torch.where(chosen, torch.exp(-new), images)


def _grain(images: Tensor, generator: Generator) -> Tensor:
    """Return fields of mean 0 and deviation 1, in strands and grains, shape (b, 1, h, w)."""
    count, _, height, width = images.shape
    total = torch.zeros(count, 1, height, width)
    for rows, columns in ((4, 16), (16, 4), (16, 16), (64, 16), (16, 64), (64, 64)):
        coarse = torch.randn((count, 1, rows, columns), generator=generator)
        weight = torch.rand((count, 1, 1, 1), generator=generator)
        total += weight * nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return total / total.std((2, 3), keepdim=True).clamp(min=math.ulp(1.0))

"""From the features of patches back to pixels: a decoder that maps every pixel by itself.

Features say what a patch holds and in what surroundings, pixels say where exactly: as in a U-Net
(Ronneberger et al. 2015, arXiv 1505.04597), in whose depth the tokens of the Vim are. Its skips are
a few convolutions on the pixels, which are read a second time.

A pixel depends on patches at most `Decoder.halo` away and on nothing else: normalisations have
fixed statistics in evaluation, and there is no pooling over an image. So a large image is decoded
window by window, and no pixel depends on the windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What a decoder gives, and how large it is."""

    outputs: tuple[str, ...]
    """Names of what it predicts for each pixel."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of the maps at one pixel, two, four and so on, up to half a patch."""


class Decoder(nn.Module):
    """Pixels and the features of their patches to logits for every pixel."""

    def __init__(self, encoder: VisionMambaConfig, config: DecoderConfig) -> None:
        super().__init__()
        if encoder.stride != encoder.patch or encoder.patch != 2 ** len(config.channels):
            raise ValueError(
                f"a decoder of {len(config.channels)} levels needs patches of "
                f"{2 ** len(config.channels)} px that do not overlap, not of {encoder.patch} px "
                f"every {encoder.stride}"
            )
        self.config, self.patch = config, encoder.patch
        channels = config.channels
        self.skips = nn.ModuleList(
            _convolved(before, after)
            for before, after in zip((encoder.bands, *channels), channels, strict=False)
        )
        self.grid = _convolved(encoder.width + channels[-1], channels[-1])
        self.ups = nn.ModuleList(
            _convolved(before + after, after)
            for before, after in zip(
                (channels[-1], *reversed(channels)), reversed(channels), strict=False
            )
        )
        self.out = nn.Conv2d(channels[0], len(config.outputs), 1)

    @property
    def halo(self) -> int:
        """Patches beyond a window that its pixels depend on."""
        reach = 0
        for _ in (*self.ups, self.grid):  # two convolutions on each map, up to the coarsest ...
            reach = math.ceil(reach / 2) + 2
        for _ in self.skips:  # ... and two on each again, down to the pixels
            reach = 2 * reach + 2
        return math.ceil(reach / self.patch)

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Decode a window of whole patches.

        Parameters
        ----------
        pixels
            Normalised, 0 where there are none, shape (b, band, rows * P, columns * P).
        features
            Of the patches, 0 where a patch was not read, shape (b, D, rows, columns).

        Returns
        -------
        logits
            Shape (b, output, rows * P, columns * P). Those of the outermost `halo` patches are not
            what they would be in a larger window.
        """
        # A CPU convolves a third faster so; skips and maps follow.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        skips = []
        for convolve in self.skips:
            skips.append(convolve(pixels))
            pixels = nn.functional.max_pool2d(skips[-1], 2)
        up = self.grid(torch.cat([features, pixels], 1))
        for convolve in self.ups:
            up = nn.functional.interpolate(up, scale_factor=2.0, mode="nearest")
            up = convolve(torch.cat([up, skips.pop()], 1))
        logits: Tensor = self.out(up)
        return logits


def _convolved(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_layer(before, after), *_layer(after, after))


def _layer(before: int, after: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )

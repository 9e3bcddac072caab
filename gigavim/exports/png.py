"""The image with its classes laid over it, as a picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from gigavim.config import source_options
from gigavim.exports.place import new_path
from gigavim.exports.result import Result
from gigavim.foreground import thumbnail
from gigavim.sources import open_source
from gigavim.views.overlay import write_overlay
from gigavim.views.rgb import to_rgb

_SIDE = 1600
"""Longest side of the image, in pixels."""


def write_png(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write an overlay, the one that a run writes; the image is read again for it.

    Raises
    ------
    SourceError
        If the image is not there any more.
    """
    layer = result.layer(head)
    options = source_options(result.about["configuration"])
    source = open_source(result.about["source"]["uri"], **options)
    pixels, ratio_y, ratio_x = thumbnail(source, _SIDE)
    place = layer.registration
    coarser = max(1.0, min(ratio_y / place.cell_y, ratio_x / place.cell_x))
    level = min(len(layer.levels) - 1, int(math.log2(coarser)))
    with new_path(path) as partial:
        write_overlay(
            partial,
            to_rgb(pixels, source.bands),
            (ratio_y, ratio_x),
            np.asarray(layer.levels[level][...]),
            place.reduced(2**level),
            layer.names,
            layer.colours,
            title=f"{Path(source.path).name}: {layer.name} by {result.model}",
        )

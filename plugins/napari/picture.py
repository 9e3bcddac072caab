"""What is seen as a picture for others: the view, or the whole image beside its class map."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.foreground import thumbnail
from gigavim.ngff import Colour
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.threshold import HeadMap, PatchMap
from gigavim.views.overlay import write_overlay, write_view
from gigavim.views.rgb import to_rgb

SIDE = 1600
"""Longest side of the whole image, in pixels."""


def save_view(
    viewer: Any, path: str | Path, unit: str, legend: Sequence[tuple[Colour, str, str]], title: str
) -> None:
    """Write what the viewer shows as a PNG, with legend and scale bar.

    Parameters
    ----------
    unit
        Of the viewer's world.
    legend
        Colour and name of each class that is shown, and what there is to say of it.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    bar = viewer.canvas.overlays.scale_bar
    visible = bar.visible
    # One bar is enough, and ours stands outside of the picture.
    bar.visible = False
    try:
        view = np.ascontiguousarray(viewer.screenshot(canvas_only=True, flash=False)[..., :3])
    finally:
        bar.visible = visible
    # A screen may have more than one pixel to a point of the canvas.
    zoom = viewer.scene.camera.zoom * view.shape[1] / viewer.canvas.size[1]
    write_view(path, view, 1 / zoom, unit, legend, title=title)


def save_overlay(
    results: Results,
    shown: HeadMap,
    threshold: float,
    hidden: Collection[int],
    path: str | Path,
    title: str,
) -> None:
    """Write the whole image beside its class map as a PNG, as the map is shown now.

    Parameters
    ----------
    hidden
        Classes that are left out.

    Raises
    ------
    SourceError
        If the image cannot be read.
    StoreError
        If the file cannot be written.
    """
    source = results.open_image()
    pixels, ratio_y, ratio_x = thumbnail(source, SIDE)
    labels, factor = _fitting(shown, threshold, (ratio_y, ratio_x))
    labels = np.where(np.isin(labels, list(hidden)), np.uint8(0), labels)
    write_overlay(
        path, to_rgb(pixels, source.bands), (ratio_y, ratio_x), labels,
        shown.registration.reduced(factor), shown.names, shown.colours, title=title,
    )  # fmt: skip


def _fitting(
    shown: HeadMap, threshold: float, ratio: tuple[float, float]
) -> tuple[NDArray[np.uint8], int]:
    """Return the level of a class map nearest to a picture's pixels, and by what it is coarser.

    Of patches the finest, which is small, so that the shares in the legend are exact.
    """
    if isinstance(shown, PatchMap):
        return shown.above(threshold), 1
    cell = shown.registration
    finer = max(1.0, min(ratio[0] / cell.cell_y, ratio[1] / cell.cell_x))
    levels = shown.levels(threshold, 1 + int(np.log2(finer)))
    return np.asarray(levels[-1][:, :]), 2 ** (len(levels) - 1)

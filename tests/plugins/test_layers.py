"""Images, class maps and probabilities lie where they belong, in a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from napari.layers import Layer
from numpy.typing import NDArray

from gigavim.plugins.napari.reading import open_path
from gigavim.plugins.napari.window import attach, load_view
from stores import COLOURS, write_store

PATCH = 8
SHAPE = 2411, 3023
"""Odd, so that no level is exactly half of the one before."""

PLACES = {
    "a slide with unequal spacing": None,
    "a scene that looks north": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_040),
    "a scene that is turned": rasterio.Affine(8, 6, 600_000, 6, -8, 5_300_040),
}


def blocks() -> NDArray[np.uint8]:
    """Classes of patches, alike in squares of 8 x 8 of them."""
    rows, columns = -(-SHAPE[0] // PATCH), -(-SHAPE[1] // PATCH)
    squares = np.random.default_rng(0).integers(0, 4, (rows // 8 + 1, columns // 8 + 1), np.uint8)
    return squares.repeat(8, 0).repeat(8, 1)[:rows, :columns]


def write_image(path: Path, labels: NDArray[np.uint8], place: rasterio.Affine | None) -> Path:
    """Paint each patch in the colour of its class."""
    table = np.array([(0, 0, 0), *COLOURS], np.uint8)
    pixels = table[labels].repeat(PATCH, 0).repeat(PATCH, 1)[: SHAPE[0], : SHAPE[1]]
    if place is None:
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256))
        return path
    height, width = SHAPE
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", tiled=True,
        crs="EPSG:32632", transform=place, photometric="RGB",
    ) as raster:  # fmt: skip
        raster.write(pixels.transpose(2, 0, 1))
        raster.descriptions = ("red", "green", "blue")
    return path


def picture(viewer: Any, shown: Layer) -> NDArray[np.int64]:
    """Return which class each pixel of the canvas looks like, one layer alone being visible."""
    for layer in viewer.layers:
        layer.visible = layer is shown
        layer.opacity = 1
    load_view(viewer)
    seen = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    table = np.array([(0, 0, 0), *COLOURS])
    return np.abs(seen[..., None, :] - table).sum(-1).argmin(-1)


@pytest.mark.parametrize("place", PLACES)
def test_image_classes_and_probabilities_lie_on_each_other(
    viewer: Any, tmp_path: Path, place: str
) -> None:
    labels = blocks()
    image = write_image(tmp_path / "image.tif", labels, PLACES[place])
    spacing = None if PLACES[place] else (0.5, 0.25)
    store = write_store(
        tmp_path / "image.gigavim.zarr", image, labels, patch=PATCH, source_spacing=spacing
    )
    attach(viewer)
    for data in open_path(str(store)).layers:
        viewer.add_layer(Layer.create(*data))
    viewer.canvas.overlays.scale_bar.visible = False
    kinds = {layer.metadata["gigavim"]["kind"]: layer for layer in viewer.layers}
    last = kinds["image"].data_to_world((SHAPE[0] - 1, SHAPE[1] - 1))
    for zoom, centre in ((1, None), (12, last), (60, None)):
        viewer.reset_view()
        viewer.camera.zoom *= zoom
        if centre is not None:
            middle = np.array(viewer.camera.center[-2:])
            viewer.camera.center = (0, *(0.2 * middle + 0.8 * np.array(centre)))
        expected = picture(viewer, kinds["image"])
        assert len(np.unique(expected)) >= 3
        # Borders fall on either side of a pixel of the canvas; a shift by a pixel of the image
        # would show at the highest zoom, one by half a patch at any.
        classes = picture(viewer, kinds["classes"])
        assert (classes != expected).mean() < 0.01
        probable = picture(viewer, kinds["probabilities"])
        assert ((probable == 3) != (expected == 3)).mean() < 0.01

"""Small real files for tests: a slide and a scene in which we know where everything is."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from gigavim.checkpoint import ModelSpec, save_model
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.head import ClassTable

UTM = "EPSG:32632"
ORIGIN = (600_000.0, 5_300_000.0)
SCENE_BANDS = ("blue", "green", "red", "nir")
TABLE = ClassTable(("water", "meadow", "rock"), ((0, 0, 255), (0, 255, 0), (99, 99, 99)))


def tissue(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """White glass with a pink, grainy ellipse in the middle, half as high and wide as the image."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.5) / 0.25) ** 2 + ((x / width - 0.5) / 0.25) ** 2 < 1
    image = np.full((height, width, 3), 243, np.uint8)
    stain = np.array([200, 110, 170]) + random.normal(0, 12, (height, width, 1))
    # Left and right differ, so that there is something to tell apart.
    stain[x > width / 2] -= (60, 30, 20)
    image[inside] = np.clip(stain[inside], 0, 255)
    return image


def write_slide(
    path: Path,
    image: NDArray[np.uint8] | None = None,
    *,
    mpp: float | None = 0.5,
    break_tile: int | None = None,
) -> Path:
    """Write an Aperio slide of one level; a broken tile's bytes are no JPEG any more."""
    image = tissue(1024, 1536) if image is None else image
    about = "Aperio Image Library\n1536x1024|AppMag = 20"
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 90},
        tile=(256, 256),
        description=about if mpp is None else f"{about}|MPP = {mpp}",
        metadata=None,
    )
    if break_tile is not None:
        with tifffile.TiffFile(path) as file:
            start = file.pages.first.dataoffsets[break_tile]
            length = file.pages.first.databytecounts[break_tile]
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\0" * length)
    return path


def write_scene(path: Path, *, crs: str | None = UTM, empty: bool = False) -> Path:
    """Write four bands at 10 m: water left of column 160, then meadow; a nodata rim of 16."""
    import rasterio

    random = np.random.default_rng(0)
    water, meadow = (900, 700, 400, 200), (500, 800, 600, 4000)
    values = np.empty((4, 256, 320), np.uint16)
    for band in range(4):
        values[band, :, :160], values[band, :, 160:] = water[band], meadow[band]
    values += random.integers(0, 60, values.shape, np.uint16)
    values[:, :16] = values[:, -16:] = values[:, :, :16] = values[:, :, -16:] = 0
    if empty:
        values[:] = 0
    x, y = ORIGIN
    with rasterio.open(
        path, "w", driver="GTiff", height=256, width=320, count=4, dtype="uint16", nodata=0,
        crs=crs, transform=rasterio.Affine(10, 0, x, 0, -10, y),
    ) as raster:  # fmt: skip
        raster.write(values)
        raster.descriptions = SCENE_BANDS
    return path


def write_model(
    path: Path,
    *,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    patch: int = 16,
    tile: int = 64,
    spacing: float | None = None,
) -> Path:
    """Write a small encoder with random weights: for tests of everything but what it says."""
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=tile, patch=patch, stride=patch, bands=len(bands), width=32, depth=2, state=4,
        classes=0, class_token="none", position="none",
    )  # fmt: skip
    spec = ModelSpec(
        config,
        scale=1 / 255 if len(bands) == 3 else 1.0,
        normalisation="fixed" if len(bands) == 3 else "image",
        mean=(0.5,) * 3 if len(bands) == 3 else (),
        std=(0.25,) * 3 if len(bands) == 3 else (),
        bands=bands,
        spacing=spacing,
        unit="µm" if spacing else None,
        tile=tile,
    )
    save_model(path, VisionMamba(config), spec)
    return path


def write_encoder(path: Path, tile: int, *, spacing: float | None = 0.5, seed: int = 0) -> Path:
    """Write a small network of another kind as TorchScript, and the description of it."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU(), torch.nn.Conv2d(8, 12, 4, 4)
    )
    with warnings.catch_warnings():
        # It is deprecated, and in use all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(path)
    lines = [f"tile = {tile}", "mean = [0.5, 0.5, 0.5]", "std = [0.25, 0.25, 0.25]"]
    lines += ['pool = "mean"', f"spacing = {spacing}" if spacing else ""]
    path.with_suffix(".toml").write_text("\n".join(lines))
    return path


def write_classifier(path: Path, **changes: object) -> Path:
    """Write a model of three classes whose random classifier is at least sure of itself."""
    torch.manual_seed(1)
    config = VisionMambaConfig(
        image_size=64, patch=8, stride=8, bands=4, width=32, depth=2, state=4,
        classes=3, class_token="none", position="none",
    )  # fmt: skip
    architecture = {name: changes.pop(name) for name in ("class_token",) if name in changes}
    config = dataclasses.replace(config, **architecture)
    encoder = VisionMamba(config)
    torch.nn.init.normal_(encoder.head.weight)
    spec = ModelSpec(
        config, scale=1.0, normalisation="image", bands=SCENE_BANDS, tile=64, classes=TABLE,
        spacing=10.0, unit="metre", **changes,
    )  # fmt: skip
    save_model(path, encoder, spec)
    return path


def feature(name: str | None, *box: float, **more: Any) -> dict[str, Any]:
    """Return a rectangle x0, y0, x1, y1 as QuPath writes it."""
    x0, y0, x1, y1 = box
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    properties = {} if name is None else {"classification": {"name": name, **more}}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", **properties},
    }


def write_annotation(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def write_slides(folder: Path, count: int = 3) -> Path:
    """Write slides whose tissue is pink on the left and dark on the right, both annotated."""
    folder.mkdir()
    lines = ["file,labels,group"]
    for number in range(count):
        write_slide(folder / f"{number}.tif", tissue(384, 512, number))
        write_annotation(
            folder / f"{number}.geojson",
            feature("pink", 140, 110, 250, 280, color=[255, 0, 128]),
            feature("dark", 260, 110, 370, 280),
        )
        lines.append(f"{number}.tif,{number}.geojson,patient {number}")
    table = folder / "slides.csv"
    table.write_text("\n".join(lines))
    return table

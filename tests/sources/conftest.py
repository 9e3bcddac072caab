"""Small files in the formats that scanners, satellites and their software write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

ABOUT = "Aperio Image Library v11.2.1\r\n700x500 [0,0 700x500] (128x128) JPEG/RGB Q=90|AppMag = 20"


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A smooth picture, 500 x 700, in which no two places look alike."""
    y, x = np.mgrid[:500, :700]
    waves = [np.sin(x / 60) + y / 500, np.cos(y / 45) + x / 700, np.sin((x + y) / 50)]
    return np.stack([128 + 60 * wave for wave in waves], -1).astype(np.uint8)


@pytest.fixture
def write_slide(tmp_path: Path, photo: NDArray[np.uint8]) -> Callable[..., Path]:
    """Write an Aperio slide: tiled level 0, a thumbnail in strips, tiled level 1, half as large."""

    def write(
        name: str = "slide.svs", *, about: str = f"{ABOUT}|MPP = 0.25", **tags: object
    ) -> Path:
        tiled = {"tile": (128, 128), "compression": "jpeg", "subsampling": (1, 1)}
        half = photo.reshape(250, 2, 350, 2, 3).mean((1, 3)).round().astype(np.uint8)
        path = tmp_path / name
        with tifffile.TiffWriter(path) as file:
            for image, layout in ((photo, tiled), (photo[::4, ::4], {}), (half, tiled)):
                file.write(
                    image, photometric="rgb", description=about, metadata=None, **layout, **tags
                )
        return path

    return write


@pytest.fixture
def slide(write_slide: Callable[..., Path]) -> Path:
    """A good Aperio slide of two levels, 0.25 µm per pixel."""
    return write_slide()


@pytest.fixture
def spoil() -> Callable[..., None]:
    """Overwrite a tile or strip of a TIFF's first page with zeros, but for the share kept."""

    def overwrite(path: Path, index: int, kept: float = 0.0) -> None:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            start, count = page.dataoffsets[index], page.databytecounts[index]
        good = int(count * kept)
        with path.open("r+b") as raw:
            raw.seek(start + good)
            raw.write(bytes(count - good))

    return overwrite

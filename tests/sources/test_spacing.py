"""Where the size of a pixel comes from, file by file, in the order of precedence of the design."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr

from gigavim.errors import NoSpacingError
from gigavim.sources import Plane, open_source
from gigavim.sources.file_source import Options
from gigavim.sources.openslide_source import open_with_openslide

IMAGE = np.zeros((64, 80, 3), np.uint8)
# 40,000 and 20,000 pixels to a centimetre: 0.25 and 0.5 µm.
TAGS: dict[str, Any] = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}


def spacing(path: Path, **options: Any) -> tuple[float, float, str, str] | None:
    found = open_source(path, **options).spacing
    return found and (pytest.approx(found.y), pytest.approx(found.x), found.unit, found.origin)


def test_what_the_user_says_comes_before_all_else(slide: Path) -> None:
    assert spacing(slide, source_spacing=0.4) == (0.4, 0.4, "µm", "user")
    assert spacing(slide, source_spacing=(0.4, 0.8)) == (0.4, 0.8, "µm", "user")


def test_what_the_vendor_says_comes_before_the_resolution_tags(
    write_slide: Callable[..., Path],
) -> None:
    assert spacing(write_slide(**TAGS)) == (0.25, 0.25, "µm", "aperio.MPP")


def test_both_readers_of_a_slide_find_the_same(slide: Path) -> None:
    assert open_with_openslide(str(slide), Options()).spacing == open_source(slide).spacing


def test_objective_power_is_no_spacing(write_slide: Callable[..., Path]) -> None:
    path = write_slide(about="Aperio Image Library v11.2.1\r\n700x500|AppMag = 40")
    source = open_source(path)
    assert source.spacing is None
    assert source.metadata["objective power"] == "40"
    with pytest.raises(NoSpacingError, match=r"slide.svs does not say .* --source-spacing"):
        Plane.at(source, 0.5)


def test_ome_physical_size_comes_before_the_resolution_tags(tmp_path: Path) -> None:
    size = {"PhysicalSizeY": 0.6, "PhysicalSizeX": 0.3}
    meta = {"axes": "YXS", **size}
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, photometric="rgb", metadata=meta, **TAGS)
    assert spacing(tmp_path / "a.ome.tif") == (0.6, 0.3, "µm", "OME PhysicalSize")


@pytest.mark.parametrize(("unit", "um"), [("nm", 1e-3), ("mm", 1e3), ("µm", 1.0)])
def test_ome_physical_size_has_a_unit(tmp_path: Path, unit: str, um: float) -> None:
    meta = {f"PhysicalSize{axis}": 2.0 / um for axis in "YX"}
    meta |= {f"PhysicalSize{axis}Unit": unit for axis in "YX"}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata={"axes": "YXS", **meta})
    assert spacing(path) == (2.0, 2.0, "µm", "OME PhysicalSize")


def test_resolution_tags_count_where_nothing_else_speaks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", **TAGS)
    assert spacing(tmp_path / "a.tif") == (0.5, 0.25, "µm", "TIFF resolution")


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"resolution": (40_000, 40_000), "resolutionunit": "NONE"},
        {"resolution": (4e9, 4e9), "resolutionunit": "CENTIMETER"},
        {"resolution": ((0, 1), (0, 1)), "resolutionunit": "CENTIMETER"},
    ],
    ids=["none", "screen", "no unit", "finer than light", "zero"],
)
def test_resolution_tags_that_no_microscope_meant_do_not_count(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", **tags)
    assert spacing(tmp_path / "a.tif") is None


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", (20, 0, 5e5, 0, -10, 5e6), (10.0, 20.0, "metre", "transform")),
        # Turned by the angle whose sine is 0.6.
        ("EPSG:32633", (8, 6, 5e5, 6, -8, 5e6), (10.0, 10.0, "metre", "transform")),
        ("EPSG:4326", (1e-4, 0, 13, 0, -1e-4, 52), (1e-4, 1e-4, "degree", "transform")),
        ("EPSG:2263", (3, 0, 0, 0, -3, 0), (3.0, 3.0, "US survey foot", "transform")),
        (None, (20, 0, 5e5, 0, -10, 5e6), None),
    ],
    ids=["metres", "turned", "degrees", "feet", "no CRS"],
)
def test_a_raster_says_it_in_the_units_of_its_crs(
    tmp_path: Path,
    crs: str | None,
    transform: tuple[float, ...],
    expected: tuple[float, float, str, str] | None,
) -> None:
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8",
        crs=crs, transform=rasterio.Affine(*transform),
    ) as raster:  # fmt: skip
        raster.write(np.ones((1, 8, 8), np.uint8))
    assert spacing(path) == expected
    # And the user comes first here, too.
    own = open_source(path, source_spacing=3.0).spacing
    assert own is not None
    assert (own.y, own.x, own.origin) == (3.0, 3.0, "user")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("micrometer", (1.0, 0.5, "µm", "NGFF scale")),
        ("millimeter", (1000.0, 500.0, "µm", "NGFF scale")),
        (None, None),
    ],
)
def test_an_ome_zarr_multiplies_the_scales_of_level_and_pyramid(
    tmp_path: Path, unit: str | None, expected: tuple[float, float, str, str] | None
) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("0", shape=(8, 8), dtype="u1", chunks=(8, 8))
    axis = {"type": "space"} | ({"unit": unit} if unit else {})
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": "y", **axis}, {"name": "x", **axis}],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.25]}],
                    }
                ],
                "coordinateTransformations": [{"type": "scale", "scale": [2.0, 2.0]}],
            }
        ],
    }
    assert spacing(path) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CMU-1-Small-Region.svs", (0.499, 0.499, "µm", "aperio.MPP")),
        ("CMU-1-Small-Region-dicom", (0.499, 0.499, "µm", "DICOM PixelSpacing")),
        ("camelyon_challenge_jpeg.dcm", (28.968, 28.969, "µm", "DICOM PixelSpacing")),
        ("test3-TRITC-2-560.ndpi", (0.228175056, 0.228175056, "µm", "openslide.mpp")),
        ("OS-2-ndpi.ome.tif", (0.2271024, 0.2270972, "µm", "OME PhysicalSize")),
    ],
)
def test_real_slides_say_it_where_they_should(
    shared: Path, name: str, expected: tuple[float, float, str, str]
) -> None:
    path = shared / "data" / "slides" / name
    assert spacing(min(path.iterdir()) if path.is_dir() else path) == expected

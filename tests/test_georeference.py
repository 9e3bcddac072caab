from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from gigavim.geometry import Grid, Spacing
from gigavim.georeference import Registration, cell_centres, geo_attributes, grid_mapping

METRES = Spacing(10.0, 10.0, "metre", "transform")
NORTH_UP = (10.0, 0.0, 5e5, 0.0, -10.0, 6e6)
TURNED = (8.0, 6.0, 5e5, 6.0, -8.0, 6e6)
WKT = rasterio.crs.CRS.from_epsg(32633).to_wkt()


@dataclass
class Known:
    """As much of a source as a registration asks for."""

    spacing: Spacing | None
    crs: str | None = None
    transform: Any = None
    path: str = "slide.svs"


def apply(transform: Any, x: float, y: float) -> tuple[float, float]:
    """Go from pixels or cells to the CRS."""
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


@given(
    patch=st.integers(1, 64),
    stride=st.integers(1, 64),
    ratio=st.floats(1, 50),
    row=st.integers(0, 1000),
    factor=st.sampled_from([1, 2, 4]),
)
def test_the_centre_of_a_cell_is_that_of_its_patch(
    patch: int, stride: int, ratio: float, row: int, factor: int
) -> None:
    grid = Grid.over(10_000, 10_000, patch=patch, stride=stride, ratio_y=ratio, ratio_x=ratio)
    spacing = Spacing(0.5, 0.25, "µm", "test")
    registration = Registration.of(grid, Known(spacing)).reduced(factor)
    # Level-0 pixel k is centred on k: an edge at e lies at e - 0.5.
    first = (row * factor * stride + patch / 2) * ratio - 0.5
    last = first + (factor - 1) * stride * ratio
    for axis, size in enumerate((spacing.y, spacing.x)):
        centre = row * registration.scale[axis] + registration.translation[axis]
        assert centre == pytest.approx((first + last) / 2 * size)


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED])
@pytest.mark.parametrize("stride", [16, 8])
def test_cells_and_level_0_pixels_meet_in_the_crs(transform: Any, stride: int) -> None:
    grid = Grid.over(1000, 800, patch=16, stride=stride, ratio_y=2.0, ratio_x=3.0)
    registration = Registration.of(grid, Known(METRES, WKT, transform))
    assert registration.cell_transform is not None
    row, column = 5, 7
    centre = apply(registration.cell_transform, column + 0.5, row + 0.5)
    assert centre == pytest.approx(
        apply(transform, (column * stride + 8) * 3.0, (row * stride + 8) * 2.0)
    )


def test_a_source_without_spacing_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match=r"slide\.svs has no spacing"):
        Registration.of(Grid.over(10, 10, patch=4), Known(None))


def test_the_conventions_say_where_an_array_lies() -> None:
    said = geo_attributes(WKT, NORTH_UP, (100, 50))
    assert said["proj:code"] == "EPSG:32633"
    assert rasterio.crs.CRS.from_wkt(said["proj:wkt2"]).to_epsg() == 32633
    assert said["spatial:transform"] == list(NORTH_UP)
    assert said["spatial:bbox"] == [5e5, 6e6 - 1000, 5e5 + 500, 6e6]
    assert said["spatial:shape"] == [100, 50]
    assert {item["name"] for item in said["zarr_conventions"]} == {"proj", "spatial"}
    left, bottom, right, top = geo_attributes(WKT, TURNED, (100, 50))["spatial:bbox"]
    assert (left, bottom, right, top) == (5e5, 6e6 - 800, 5e5 + 1000, 6e6 + 300)


def test_the_grid_mapping_is_gdals_own() -> None:
    said = grid_mapping(WKT, TURNED)
    numbers = [float(number) for number in said["GeoTransform"].split()]
    assert rasterio.Affine.from_gdal(*numbers) == rasterio.Affine(*TURNED)
    assert rasterio.crs.CRS.from_wkt(said["crs_wkt"]).to_epsg() == 32633


def test_coordinates_are_those_of_centres() -> None:
    centres = cell_centres(NORTH_UP, (3, 2))
    assert centres is not None
    np.testing.assert_array_equal(centres[0], [6e6 - 5, 6e6 - 15, 6e6 - 25])
    np.testing.assert_array_equal(centres[1], [5e5 + 5, 5e5 + 15])
    assert cell_centres(TURNED, (3, 2)) is None

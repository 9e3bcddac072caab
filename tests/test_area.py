from __future__ import annotations

import numpy as np
import pytest
import rasterio.crs

from gigavim.area import cell_areas
from gigavim.geometry import Spacing
from gigavim.georeference import Registration, Transform


def land(crs: str, transform: Transform, unit: str, cell: float = 1.0) -> Registration:
    spacing = Spacing(abs(transform[4]), abs(transform[0]), unit, "transform")
    wkt = rasterio.crs.CRS.from_string(crs).to_wkt()
    return Registration(cell, cell, spacing, crs=wkt, transform=transform)


def test_a_cell_of_a_slide_is_as_large_as_its_sides_say() -> None:
    areas = cell_areas(Registration(16, 16, Spacing(0.5, 0.25, "µm", "user")), 3)
    np.testing.assert_allclose(areas.of_row, [16 * 0.5 * 16 * 0.25 / 1e6] * 3)
    assert areas.unit == "mm²"


@pytest.mark.parametrize(("crs", "metres"), [("EPSG:32632", 1.0), ("EPSG:2264", 0.3048006)])
def test_projected_cells_are_measured_in_the_unit_of_their_crs(crs: str, metres: float) -> None:
    areas = cell_areas(land(crs, (10, 0, 5e5, 0, -10, 6e6), "metre", cell=8), 2)
    np.testing.assert_allclose(areas.of_row, [(80 * metres) ** 2 / 1e6] * 2, rtol=1e-6)
    assert areas.unit == "km²"


def test_what_lies_beyond_the_image_does_not_count() -> None:
    areas = cell_areas(land("EPSG:32632", (10, 0, 0, 0, -10, 0), "metre", cell=8), 3, height=20)
    np.testing.assert_allclose(areas.of_row, np.array([1, 1, 0.5]) * 0.0064)


def test_cells_in_degrees_cover_the_earth() -> None:
    globe = land("EPSG:4326", (1, 0, -180, 0, -1, 90), "degree")
    areas = cell_areas(globe, 180)
    assert areas.of_row is not None
    # The surface of WGS 84, in km² (NIMA TR8350.2).
    assert 360 * areas.of_row.sum() == pytest.approx(510_065_621.7, rel=1e-8)
    # At the equator one degree is 110.574 km by 111.320 km.
    assert areas.of_row[90] == pytest.approx(110.574 * 111.320, rel=1e-3)


@pytest.mark.parametrize(
    ("registration", "why"),
    [
        (land("EPSG:3857", (10, 0, 0, 0, -10, 6e6), "metre"), "Mercator"),
        (land("EPSG:4326", (1, 0.5, 0, 0.5, -1, 50), "degree"), "turned"),
        (Registration(8, 8, Spacing(10, 10, "metre", "user")), "no CRS"),
    ],
)
def test_an_area_that_cannot_be_told_is_left_out_with_the_reason(
    registration: Registration, why: str
) -> None:
    areas = cell_areas(registration, 4)
    assert areas.of_row is None
    assert areas.unit is None
    assert why in str(areas.unknown)

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform_geom

from gigavim.errors import SourceError
from gigavim.foreground import foreground, thumbnail
from gigavim.geometry import Grid, Level, Spacing, Window
from gigavim.masks import Mask, covered
from gigavim.sources.source import RGB, Band, Pixels, ReadError
from gigavim.tissue import tissue

PINK = np.array([214, 150, 190])
UTM = rasterio.CRS.from_epsg(32632)
RNG = np.random.default_rng(7)


@dataclass
class Memory:
    """A source in memory, with one level; it notes the largest window it was asked for."""

    values: np.ndarray
    kind: str = "slide"
    valid: np.ndarray | None = None
    unreadable: Window | None = None
    um: float = 4.0
    transform: tuple[float, ...] | None = None
    largest: int = field(default=0, init=False)
    path = "memory"
    reader = "memory"

    @property
    def levels(self) -> tuple[Level, ...]:
        return (Level(*self.values.shape[:2], 1.0, 1.0),)

    @property
    def bands(self) -> tuple[Band, ...]:
        return RGB[: self.values.shape[2]]

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def spacing(self) -> Spacing:
        return Spacing(self.um, self.um, "µm", "user")

    @property
    def crs(self) -> str | None:
        return UTM.to_wkt() if self.kind == "scene" else None

    @property
    def metadata(self) -> dict[str, str]:
        return {}

    def read_level(self, level: int, window: Window) -> Pixels:
        assert level == 0
        self.largest = max(self.largest, window.height * window.width)
        valid = np.ones(self.values.shape[:2], bool) if self.valid is None else self.valid.copy()
        errors = ()
        if self.unreadable is not None:
            bad = self.unreadable
            valid[bad.y : bad.y + bad.height, bad.x : bad.x + bad.width] = False
            errors = (ReadError(0, bad, "no such tile"),)
        height, width = valid.shape
        far = (max(0, window.y + window.height - height), max(0, window.x + window.width - width))
        values = np.pad(self.values, [(0, far[0]), (0, far[1]), (0, 0)])
        valid = np.pad(valid, [(0, far[0]), (0, far[1])])
        inside = (
            slice(window.y, window.y + window.height),
            slice(window.x, window.x + window.width),
        )
        return Pixels(values[inside] * valid[inside][..., None], valid[inside], errors)


def slide(height: int, width: int, background: int = 243, noise: float = 2.0) -> np.ndarray:
    """An empty slide with sensor noise."""
    return np.full((height, width, 3), background) + RNG.normal(0, noise, (height, width, 3))


def found(image: np.ndarray) -> np.ndarray:
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return tissue(Pixels(image, np.ones(image.shape[:2], bool)))


def paint(image: np.ndarray, part: tuple[slice, slice], colour: np.ndarray, noise: float) -> None:
    image[part] = colour + RNG.normal(0, noise, (*image[part].shape[:2], 1))


PART = (slice(60, 200), slice(100, 260))


@pytest.mark.parametrize(
    ("background", "colour"),
    [
        (243, PINK),
        (243, np.array([238, 222, 232])),
        (200, np.array([170, 120, 150])),
        (np.array([243, 240, 226]), PINK),
        (243, np.array([80, 50, 120])),
    ],
    ids=["on white", "faint", "on grey", "on a yellowish background", "dense"],
)
def test_tissue_is_found_where_it_lies(background, colour) -> None:
    image = slide(300, 400)
    image += background - 243
    paint(image, PART, colour, 6)
    truth = np.zeros(image.shape[:2], bool)
    truth[PART] = True
    mask = found(image)
    assert (mask ^ truth).mean() < 0.015
    assert mask[62:198, 102:258].all()


def test_black_scanner_borders_are_no_tissue() -> None:
    image = slide(300, 400)
    paint(image, PART, PINK, 6)
    image[:40] = image[:, :70] = RNG.normal(6, 2, 3)
    mask = found(image)
    assert not mask[:50].any()
    assert not mask[:, :90].any()
    assert mask[70:190, 110:250].all()


def test_a_border_of_black_over_most_of_a_slide_does_not_make_it_fluorescence() -> None:
    image = np.zeros((300, 400, 3))
    image[20:180, 60:250] = slide(160, 190)
    paint(image, (slice(60, 120), slice(100, 180)), PINK, 6)
    mask = found(image)
    assert mask[62:118, 102:178].all()
    assert 4800 * 0.95 < mask.sum() < 4800 * 1.1


def test_a_slide_that_is_all_tissue_is_not_split() -> None:
    image = PINK + 30 * np.sin(np.linspace(0, 20, 300))[:, None, None] + slide(300, 400, 0, 8)
    image[:, 200:] -= [60, 60, 30]
    assert found(image).all()


@pytest.mark.parametrize("background", [255, 243, 190, 4])
def test_an_empty_slide_has_no_tissue(background: int) -> None:
    assert not found(slide(300, 400, background, noise=4.0)).any()


def test_specks_go_and_small_holes_are_filled() -> None:
    image = slide(300, 400)
    paint(image, PART, PINK, 6)
    image[120:125, 180:185] = 243
    image[20:24, 20:24] = PINK
    mask = found(image)
    assert mask[110:140, 170:200].all()
    assert not mask[:50, :50].any()


def test_on_a_dark_background_tissue_is_what_shines() -> None:
    image = np.zeros((300, 400, 3))
    image[..., 0] = RNG.normal(3, 1.5, (300, 400))
    image[PART][..., 0] = RNG.normal(25, 6, (140, 160))
    image[100:110, 150:160, 0] = 200
    mask = found(image)
    assert mask[64:196, 104:256].all()
    assert mask.sum() < 140 * 160 * 1.05


def test_nothing_valid_is_no_tissue() -> None:
    assert not tissue(Pixels(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), bool))).any()


def test_tissue_of_a_real_slide_lies_on_the_tissue(shared: Path) -> None:
    import openslide

    with openslide.OpenSlide(shared / "data/slides/CMU-1-Small-Region.svs") as real:
        image = np.asarray(real.get_thumbnail((370, 370)))
    mask = found(image)
    grey = image.min(axis=2)
    assert mask[grey < 150].mean() > 0.9
    assert mask[grey > 240].mean() < 0.05


@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 9), st.floats(0.3, 9), st.integers(0, 99)
)
def test_coverage_is_that_of_exact_areas(height, width, ratio_y, ratio_x, seed) -> None:
    """Against a sum over every pair of mask pixel and cell."""
    values = np.random.default_rng(seed).random((height, width)) < 0.5
    grid = Grid.over(50, 70, patch=8, ratio_y=1.25, ratio_x=0.8)
    overlap = []
    for cells, cell, pixels, ratio in (
        (grid.rows, grid.cell_y, height, ratio_y),
        (grid.columns, grid.cell_x, width, ratio_x),
    ):
        low = np.maximum.outer(np.arange(cells) * cell, np.arange(pixels) * ratio)
        high = np.minimum.outer(np.arange(1, cells + 1) * cell, np.arange(1, pixels + 1) * ratio)
        overlap.append(np.clip(high - low, 0, None))
    share = overlap[0] @ values @ overlap[1].T / (grid.cell_y * grid.cell_x)
    clear = np.abs(share - 0.5) > 1e-4
    assert np.array_equal(covered(Mask(values, ratio_y, ratio_x), grid)[clear], share[clear] > 0.5)


def test_a_cell_is_foreground_from_half_its_area_on() -> None:
    grid = Grid.over(64, 64, patch=16)
    values = np.zeros((64, 64), bool)
    values[24:, 33:] = True  # half of row 1, and all but 1/16 of column 2
    expected = np.zeros((4, 4), bool)
    expected[2:, 2:] = expected[1, 3] = True
    assert np.array_equal(covered(Mask(values, 1, 1), grid), expected)
    values[24:, 32] = True
    expected[1, 2:] = True
    assert np.array_equal(covered(Mask(values, 1, 1), grid), expected)


def test_a_cell_that_reaches_beyond_the_image_counts_its_outside_as_background() -> None:
    grid = Grid.over(40, 36, patch=16)
    mask = covered(Mask(np.ones((40, 36), bool), 1, 1), grid)
    assert mask.tolist() == [[True, True, False]] * 3


def test_a_thumbnail_is_the_area_mean_read_in_bounded_pieces() -> None:
    source = Memory(RNG.integers(0, 255, (600, 900, 3), np.uint8))
    pixels, ratio_y, ratio_x = thumbnail(source, 300)
    assert (ratio_y, ratio_x) == (3.0, 3.0)
    expected = source.values.reshape(200, 3, 300, 3, 3).mean(axis=(1, 3))
    assert np.abs(pixels.values - expected).max() <= 0.5 + 1e-4
    assert pixels.valid.all()


def test_a_thumbnail_never_reads_a_large_level_whole() -> None:
    source = Memory(np.broadcast_to(np.uint8(9), (9_000, 6_000, 3)))
    pixels, *_ = thumbnail(source, 100)
    assert source.largest <= 23e6
    assert (pixels.values[pixels.valid] == 9).all()


def test_a_small_image_is_its_own_thumbnail() -> None:
    source = Memory(RNG.integers(0, 2000, (37, 53, 3), np.uint16))
    pixels, *ratios = thumbnail(source)
    assert ratios == [1, 1]
    assert np.array_equal(pixels.values, source.values)


def test_foreground_of_a_slide_is_its_tissue() -> None:
    image = slide(320, 480)
    image[64:224, 96:256] = PINK
    source = Memory(image.astype(np.uint8))
    mask = foreground(source, Grid.over(320, 480, patch=32))
    expected = np.zeros((10, 15), bool)
    expected[2:7, 3:8] = True
    assert np.array_equal(mask, expected)


def test_foreground_of_a_scene_is_its_valid_data() -> None:
    valid = np.zeros((320, 480), bool)
    valid[64:, :250] = True
    source = Memory(np.ones((320, 480, 3), np.float32), "scene", valid)
    mask = foreground(source, Grid.over(320, 480, patch=16, ratio_y=2, ratio_x=2))
    expected = np.zeros((10, 15), bool)
    expected[2:, :8] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(("bands", "share"), [(1, 1.0), (3, 0.6)])
def test_pixels_of_a_scene_that_are_0_in_all_of_several_bands_are_a_border(bands, share) -> None:
    values = np.ones((320, 480, bands), np.uint16)
    values[:, :192] = 0
    values[160:, 192:, 1:] = 0
    source = Memory(values, "scene")
    assert foreground(source, Grid.over(320, 480, patch=32)).mean() == share


def test_reading_all_asks_for_no_pixel() -> None:
    source = Memory(np.zeros((64, 64, 3), np.uint8))
    assert foreground(source, Grid.over(64, 64, patch=16), read_all=True).all()
    assert source.largest == 0


def test_nothing_found_is_an_empty_mask() -> None:
    source = Memory(slide(320, 480).astype(np.uint8))
    assert not foreground(source, Grid.over(320, 480, patch=32)).any()


def test_what_cannot_be_decoded_is_read_again_by_the_run() -> None:
    source = Memory(slide(320, 480).astype(np.uint8), unreadable=Window(96, 64, 64, 96))
    mask = foreground(source, Grid.over(320, 480, patch=32))
    expected = np.zeros((10, 15), bool)
    expected[3:5, 2:5] = True
    assert np.array_equal(mask, expected)


def ring(x0: float, y0: float, x1: float, y1: float) -> dict:
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Polygon", "coordinates": [corners]}


def feature(geometry: dict) -> dict:
    return {"type": "Feature", "geometry": geometry, "properties": {}}


SQUARES = np.zeros((10, 15), bool)
SQUARES[2:7, 3:8] = True
GRID = Grid.over(320, 480, patch=16, ratio_y=2, ratio_x=2)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(ring(96, 64, 256, 224))]},
        [feature(ring(96, 64, 256, 150)), feature(ring(96, 150, 256, 224))],
        feature(ring(96, 64, 256, 224)),
        {"type": "GeometryCollection", "geometries": [ring(96, 64, 256, 224)]},
    ],
    ids=["collection", "QuPath list", "feature", "geometries"],
)
def test_polygons_of_a_slide_are_in_level_0_pixels(tmp_path: Path, content) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps(content))
    source = Memory(np.zeros((320, 480, 3), np.uint8))
    assert np.array_equal(foreground(source, GRID, mask=str(path)), SQUARES)


def scene() -> Memory:
    """10 m pixels, their corner at 500 km east, 5,000 km north in UTM 32."""
    affine = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
    return Memory(np.ones((320, 480, 3), np.uint16), "scene", transform=affine)


@pytest.mark.parametrize("crs", ["scene", "RFC 7946", "named"])
def test_polygons_of_a_scene_lie_where_their_crs_says(tmp_path: Path, crs: str) -> None:
    polygon = ring(500_960, 4_999_360, 502_560, 4_997_760)
    content = feature(polygon)
    if crs == "RFC 7946":
        content = feature(transform_geom(UTM, "EPSG:4326", polygon))
    if crs == "named":
        content = feature(transform_geom(UTM, "EPSG:3857", polygon))
        content["crs"] = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(content))
    assert np.array_equal(foreground(scene(), GRID, mask=str(path)), SQUARES)


@pytest.mark.parametrize("scale", [1, 4, 32])
@pytest.mark.parametrize("bands", [1, 4])
def test_a_plain_image_is_stretched_over_the_whole_source(
    tmp_path: Path, scale: int, bands: int
) -> None:
    from PIL import Image

    small = np.zeros((320 // scale, 480 // scale), np.uint8)
    small[64 // scale : 224 // scale, 96 // scale : 256 // scale] = 1
    image = small if bands == 1 else np.dstack([small] * 3 + [np.full_like(small, 255)])
    path = tmp_path / "mask.png"
    Image.fromarray(image).save(path)
    source = Memory(np.zeros((320, 480, 3), np.uint8))
    assert np.array_equal(foreground(source, GRID, mask=str(path)), SQUARES)


@pytest.mark.parametrize("epsg", [32632, 3857])
def test_a_georeferenced_mask_is_aligned_to_the_scene(tmp_path: Path, epsg: int) -> None:
    from rasterio import Affine
    from rasterio.warp import transform_bounds

    bounds = transform_bounds(UTM, f"EPSG:{epsg}", 500_960, 4_997_760, 502_560, 4_999_360)
    west, south, east, north = bounds
    size = (east - west) / 400
    path = tmp_path / "mask.tif"
    with rasterio.open(
        path, "w", "GTiff", 600, 600, 1, f"EPSG:{epsg}",
        Affine(size, 0, west - 100 * size, 0, -size, north + 100 * size), "uint8",
    ) as image:  # fmt: skip
        values = np.zeros((600, 600), np.uint8)
        values[100 : 100 + round((north - south) / size), 100:500] = 1
        image.write(values, 1)
    mask = foreground(scene(), GRID, mask=str(path))
    assert (mask != SQUARES).sum() == 0


def test_a_mask_that_lies_beside_the_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps(ring(900, 64, 1256, 224)))
    with pytest.raises(SourceError, match=r"covers no patch of memory \(480 x 320") as caught:
        foreground(Memory(np.zeros((320, 480, 3), np.uint8)), GRID, mask=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(480, 320), (100, 170)])
def test_a_plain_image_of_other_proportions_is_refused(tmp_path: Path, shape) -> None:
    from PIL import Image

    path = tmp_path / "mask.png"
    Image.fromarray(np.ones(shape, np.uint8)).save(path)
    with pytest.raises(SourceError, match="other proportions than the 480 x 320") as caught:
        foreground(Memory(np.zeros((320, 480, 3), np.uint8)), GRID, mask=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.geojson", None, "no such mask"),
        ("text.geojson", "polygons", "not GeoJSON"),
        ("odd.geojson", '{"type": "Feature"}', "not GeoJSON"),
        ("point.geojson", '{"type": "Point", "coordinates": [1, 2]}', "holds no polygon"),
        ("text.png", "not an image", "cannot be read as a mask"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError, match=message) as caught:
        foreground(scene(), GRID, mask=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlapping_patch_is_read_where_its_middle_is_foreground() -> None:
    grid = Grid.over(64, 64, patch=16, stride=8)
    mask = np.zeros((64, 64), bool)
    mask[4 + 8 : 4 + 16, 4 + 16 : 4 + 24] = True  # the middle 8 x 8 of the patch at row 1, column 2
    found = covered(Mask(mask, 1.0, 1.0), grid)
    assert np.argwhere(found).tolist() == [[1, 2]]

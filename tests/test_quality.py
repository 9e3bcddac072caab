from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from gigavim.foreground import foreground
from gigavim.geometry import Grid, Window
from gigavim.quality import Quality, examine, exclude_qc
from gigavim.quality.focus import LEAST_SHARPNESS, sharpness
from gigavim.quality.scene import at_rim
from gigavim.sources import Source, open_source
from images import ORIGIN, UTM, write_slide

UM = 0.5
RANDOM = np.random.default_rng(5)
INKS = {"green": (30, 130, 70), "blue": (35, 60, 165), "black": (28, 28, 34), "red": (205, 35, 45)}


def slide(height: int = 2432, width: int = 2432) -> NDArray[np.uint8]:
    """Glass, and a block of tissue with structure at all scales, at 0.5 µm."""
    image = np.full((height, width, 3), 243, np.uint8)
    block = np.s_[height // 4 : -height // 4, width // 4 : -width // 4]
    shape = image[block].shape[:2]
    noise = sum(
        sigma * ndimage.gaussian_filter(RANDOM.normal(size=shape), sigma) for sigma in (1, 2, 4, 8)
    )
    image[block] = np.clip(np.array([200, 120, 175]) + 40 * noise[..., None], 20, 235)
    return image


CLEAN = slide()


def examined(
    path: Path, image: NDArray[np.uint8]
) -> tuple[Quality, NDArray[np.bool_], Source, Grid]:
    source = open_source(write_slide(path, image, mpp=UM))
    grid = Grid.over(*image.shape[:2], patch=32, ratio_y=2, ratio_x=2)
    found = foreground(source, grid)
    return examine(source, grid, found), found, source, grid


def labelled(quality: Quality, fault: str) -> NDArray[np.bool_]:
    return quality.labels == quality.names.index(fault) + 1


def in_middle(window: tuple[slice, slice], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Grid cells, of 64 level-0 pixels, that lie in a window of level-0 pixels."""
    mask = np.zeros(shape, np.bool_)
    rows, columns = (slice(-(-s.start // 64) + 1, s.stop // 64 - 1) for s in window)
    mask[rows, columns] = True
    return mask


def test_a_clean_slide_has_no_fault_and_nothing_is_excluded(tmp_path: Path) -> None:
    quality, found, *_ = examined(tmp_path / "clean.svs", CLEAN)
    assert not quality.labels.any()
    assert quality.found == ()
    np.testing.assert_array_equal(exclude_qc(found, quality), found)


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_of_ink_is_pen_on_glass_and_on_tissue(tmp_path: Path, ink: str) -> None:
    image, stroke = CLEAN.copy(), np.s_[300:2100, 1000:1500]
    image[stroke] = np.rint(image[stroke] * (np.array(INKS[ink]) / 245))
    quality, found, _, grid = examined(tmp_path / "pen.svs", image)
    pen, inside = labelled(quality, "pen"), in_middle(stroke, grid.shape)
    assert pen[inside].mean() > 0.95
    assert pen.sum() < 1.5 * (500 / 64) * (1800 / 64)
    assert not exclude_qc(found, quality)[inside].any()
    assert any(line.startswith("pen:") for line in quality.found)


def test_a_blurred_half_is_out_of_focus_and_the_other_is_not(tmp_path: Path) -> None:
    image = CLEAN.copy()
    for band in range(3):
        image[:, :1200, band] = ndimage.gaussian_filter(CLEAN[..., band], 2 / UM)[:, :1200]
    quality, found, *_ = examined(tmp_path / "blur.svs", image)
    blurred = labelled(quality, "out of focus")
    middle = blurred.shape[1] // 2
    assert blurred[:, : middle - 3][found[:, : middle - 3]].mean() > 0.95
    assert blurred[:, middle + 3 :].sum() == 0
    assert 0.3 < quality.shares["out of focus"] < 0.6


def test_black_along_the_rim_is_a_border_and_a_black_spot_inside_is_none(tmp_path: Path) -> None:
    image = CLEAN.copy()
    image[2240:] = 3
    image[1150:1200, 1150:1200] = 3
    quality, *_ = examined(tmp_path / "border.svs", image)
    border = labelled(quality, "black border")
    assert border[-2:].all()
    assert not border[:-4].any()
    assert quality.shares["black border"] == pytest.approx(1 / 12, abs=0.03)


def test_a_thin_grey_ring_is_a_bubble_and_a_line_is_none(tmp_path: Path) -> None:
    y, x = np.mgrid[:2432, :2432]
    distance = np.hypot(y - 400, x - 400) * UM
    image = CLEAN.copy()
    image[abs(distance - 150) < 12] = 60
    image[2200:2240, 200:2200] = 60
    quality, _, _, grid = examined(tmp_path / "bubble.svs", image)
    bubble = labelled(quality, "bubble")
    assert bubble[400 // 64, 400 // 64]
    assert not bubble[grid.rows // 2 :].any()


def test_a_band_of_two_layers_is_a_fold(tmp_path: Path) -> None:
    image, band = CLEAN.copy(), np.s_[950:1350, 1088:1344]
    under = np.roll(CLEAN, 37, axis=0)[band]
    image[band] = np.rint(image[band] * (under / 245.0) ** 2)
    quality, _, _, grid = examined(tmp_path / "fold.svs", image)
    fold = labelled(quality, "fold")
    assert fold[in_middle(band, grid.shape)].mean() > 0.8
    assert fold.sum() < 1.6 * (256 / 64) * (400 / 64)


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    coarse = open_source(write_slide(tmp_path / "coarse.svs", CLEAN, mpp=2.0))
    grid = Grid.over(2432, 2432, patch=32)
    assert any(
        "too coarse" in line for line in examine(coarse, grid, foreground(coarse, grid)).found
    )
    empty, *_ = examined(tmp_path / "empty.svs", np.full((600, 600, 3), 242, np.uint8))
    assert any("empty" in line for line in empty.found)
    dark, *_ = examined(tmp_path / "dark.svs", (CLEAN < 200) * np.uint8(90))
    assert any("fluorescence" in line for line in dark.found)


def scene(path: Path, qa: str, values: NDArray[np.integer], *, zeros: bool = False) -> Source:
    """A red, a green and a QA band at 10 m, 64 x 64."""
    bands = RANDOM.integers(500, 900, (2, 64, 64)).astype(np.uint16)
    bands[:, 32:48, 32:48] = 65535
    if zeros:
        bands[:, :, :16], values = 0, np.where(np.arange(64) < 16, 0, values)
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=64, count=3, dtype="uint16", crs=UTM,
        transform=rasterio.Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]),
    ) as raster:  # fmt: skip
        raster.write(np.concatenate([bands, values[None].astype(np.uint16)]))
        raster.descriptions = ("red", "green", qa)
    return open_source(path, bands=["red", "green"])


# USGS, Landsat 8-9 C2 L2 guide, table 6-3: 21824 clear, 22280 cloud, 23888 shadow. SCL: 4, 9, 3.
@pytest.mark.parametrize(
    ("band", "clear", "cloud", "shadow"), [("QA_PIXEL", 21824, 22280, 23888), ("SCL", 4, 9, 3)]
)
def test_cloud_and_shadow_are_where_the_qa_band_says(
    tmp_path: Path, band: str, clear: int, cloud: int, shadow: int
) -> None:
    values = np.full((64, 64), clear)
    values[:16], values[16:24] = cloud, shadow
    source = scene(tmp_path / "scene.tif", band, values)
    grid = Grid.over(64, 64, patch=8)
    quality = examine(source, grid, np.ones(grid.shape, np.bool_))
    expected = np.zeros((8, 8), np.bool_)
    expected[:2] = True
    np.testing.assert_array_equal(labelled(quality, "cloud"), expected)
    np.testing.assert_array_equal(
        labelled(quality, "cloud shadow"),
        np.roll(expected[::-1], 3, 0) & (np.arange(8) == 2)[:, None],
    )
    assert quality.shares["cloud"] == 0.25
    assert quality.shares["saturated"] == pytest.approx(4 / 64)


def test_a_border_of_zeros_is_found_and_said(tmp_path: Path) -> None:
    source = scene(tmp_path / "scene.tif", "other", np.full((64, 64), 7), zeros=True)
    grid = Grid.over(64, 64, patch=8)
    quality = examine(source, grid, foreground(source, grid))
    assert labelled(quality, "undeclared border")[:, :2].all()
    assert not labelled(quality, "undeclared border")[:, 2:].any()
    assert any("25 % of the image is 0" in line for line in quality.found)
    assert any("no QA band" in line for line in quality.found)


def test_a_border_of_zeros_is_one_where_the_file_adds_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    scene(path, "other", np.full((64, 64), 7), zeros=True)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (2e-5,) * 3, (-0.1,) * 3
    # As it lies in the file, and brought to another grid.
    for options in ({}, {"bounds": (ORIGIN[0], ORIGIN[1] - 640, ORIGIN[0] + 640, ORIGIN[1])}):
        source = open_source(path, bands=["red", "green"], **options)
        grid = Grid.over(64, 64, patch=8)
        found = foreground(source, grid)
        assert not found[:, :2].any()
        assert found[:, 2:].all()
        quality = examine(source, grid, found)
        assert any("25 % of the image is 0" in line for line in quality.found)


def test_a_lake_of_zeros_is_no_border() -> None:
    zeros = np.zeros((20, 20), np.bool_)
    zeros[5:9, 5:9] = True
    assert not at_rim(zeros).any()


def test_sharpness_falls_with_blur_on_a_real_slide(shared: Path) -> None:
    source = open_source(shared / "data/slides/CMU-1-Small-Region.svs")
    grey = source.read_level(0, Window(1500, 700, 512, 512)).values.mean(axis=2)

    def at_one_um(sigma_um: float) -> float:
        blurred = ndimage.gaussian_filter(grey, sigma_um / 0.499)
        return sharpness(blurred.reshape(256, 2, 256, 2).mean((1, 3)).astype(np.float32))

    found = [at_one_um(sigma) for sigma in (0, 0.5, 1, 1.5, 2)]
    assert found == sorted(found, reverse=True)
    assert found[1] > LEAST_SHARPNESS > found[3]


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "OS-2-ndpi.ome.tif"])
def test_clean_real_slides_raise_no_alarm(shared: Path, name: str) -> None:
    source = open_source(shared / "data/slides" / name)
    finest = source.levels[0]
    grid = Grid.over(finest.height, finest.width, patch=32)
    quality = examine(source, grid, foreground(source, grid))
    assert sum(quality.shares.values()) < 0.01

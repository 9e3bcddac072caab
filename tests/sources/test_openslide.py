"""The general path, and that the fast one gives what it gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest

from gigavim.geometry import Window
from gigavim.sources import Source, open_source
from gigavim.sources.file_source import Options
from gigavim.sources.openslide_source import open_with_openslide
from gigavim.sources.tiff_source import open_tiff

SLIDES = (
    "CMU-1-Small-Region.svs",
    "CMU-1-Small-Region-dicom",
    "camelyon_challenge_j2k.dcm",
    "camelyon_challenge_jpeg.dcm",
    "test3-TRITC-2-560.ndpi",
)

ROUNDING = 2
"""How far two JPEG decoders, or two versions of one, may be apart in a sample."""


def some_windows(source: Source) -> Iterator[tuple[int, Window]]:
    """Corners, the middle, and across the far edge, at each level."""
    for index, level in enumerate(source.levels):
        height, width = min(300, level.height), min(310, level.width)
        bottom, right = level.height - height, level.width - width
        for y, x in ((0, 0), (bottom // 2 + 1, right // 2 + 1), (bottom + 5, right + 7)):
            yield index, Window(y, x, height, width)


def assert_same_pixels(one: Source, other: Source) -> None:
    assert one.levels == other.levels
    for level, window in some_windows(one):
        ours, theirs = one.read_level(level, window), other.read_level(level, window)
        assert np.array_equal(ours.valid, theirs.valid)
        gap = np.abs(ours.values.astype(int) - theirs.values)
        assert gap.max() <= ROUNDING, (level, window)


def test_both_paths_give_the_same_pixels(slide: Path) -> None:
    path = str(slide)
    assert_same_pixels(open_tiff(path, Options()), open_with_openslide(path, Options()))


def test_both_paths_give_the_same_pixels_of_a_real_slide(shared: Path) -> None:
    path = str(shared / "data/slides/CMU-1-Small-Region.svs")
    assert open_source(path).reader == "tifffile"
    assert_same_pixels(open_source(path), open_with_openslide(path, Options()))


def test_both_paths_give_the_same_pixels_of_a_real_pyramid(shared: Path, tmp_path: Path) -> None:
    small, large = shared / "data/slides/CMU-1-Small-Region.svs", tmp_path / "large.svs"
    tool = shared / "tools" / "giga_svs.py"
    subprocess.run([sys.executable, tool, small, large, "16", "16"], check=True)
    fast = open_source(large)
    assert (fast.reader, len(fast.levels)) == ("tifffile", 3)
    assert_same_pixels(fast, open_with_openslide(str(large), Options()))


@pytest.mark.parametrize("name", SLIDES)
def test_every_real_slide_gives_what_openslide_gives(shared: Path, name: str) -> None:
    path = shared / "data/slides" / name
    path = min(path.iterdir()) if path.is_dir() else path
    source = open_source(path)
    with openslide.OpenSlide(path) as slide:
        assert [(level.width, level.height) for level in source.levels] == list(
            slide.level_dimensions
        )
        for level, window in some_windows(source):
            downsample = slide.level_downsamples[level]
            if not downsample.is_integer() and (window.y or window.x):
                # There OpenSlide shifts pixels by a fraction that depends on the window.
                continue
            location = round(window.x * downsample), round(window.y * downsample)
            rgba = np.asarray(slide.read_region(location, level, (window.width, window.height)))
            pixels = source.read_level(level, window)
            assert np.array_equal(pixels.valid, rgba[..., 3] > 0)
            gap = np.abs(pixels.values.astype(int) - rgba[..., :3])[pixels.valid]
            assert gap.max() <= ROUNDING


def test_a_slide_and_its_dicom_twin_are_one_image(shared: Path) -> None:
    slides = shared / "data" / "slides"
    one = open_source(slides / "CMU-1-Small-Region.svs")
    twin = open_source(min((slides / "CMU-1-Small-Region-dicom").iterdir()))
    assert (one.reader, twin.reader) == ("tifffile", "openslide")
    assert (one.levels, one.bands) == (twin.levels, twin.bands)
    # The twin was compressed once more: it is alike, and less so by far when a pixel off.
    image = twin.read_level(0, Window(1000, 900, 400, 400)).values.astype(int)
    gaps = [
        np.abs(one.read_level(0, Window(y, x, 400, 400)).values - image).mean()
        for y, x in ((1000, 900), (999, 900), (1001, 900), (1000, 899), (1000, 901))
    ]
    assert 2 * gaps[0] < min(gaps[1:])


def test_no_pixel_depends_on_the_window_even_between_level_0_pixels(shared: Path) -> None:
    source = open_source(shared / "data/slides/test3-TRITC-2-560.ndpi")
    for index, level in enumerate(source.levels):
        everything = source.read_level(index, Window(0, 0, level.height, level.width)).values
        y, x = level.height // 3, level.width // 5
        part = source.read_level(index, Window(y, x, 50, 60)).values
        here = everything[y : y + 50, x : x + 60]
        assert np.array_equal(part[: here.shape[0], : here.shape[1]], here)


def test_a_tile_that_cannot_be_decoded_is_masked_and_named_and_the_others_are_read(
    write_slide: Callable[..., Path], spoil: Callable[..., None]
) -> None:
    whole = Window(0, 0, 500, 700)
    good = open_with_openslide(str(write_slide("good.svs")), Options()).read_level(0, whole)
    bad = write_slide("bad.svs")
    spoil(bad, 8, kept=0.5)
    source = open_with_openslide(str(bad), Options())
    pixels = source.read_level(0, whole)
    # Narrowed to two by two of the file's tiles, the smallest that is tried alone.
    assert [(error.level, error.window) for error in pixels.errors] == [
        (0, Window(0, 256, 256, 256))
    ]
    assert pixels.valid.sum() == 500 * 700 - 256 * 256
    assert np.array_equal(pixels.values[pixels.valid], good.values[pixels.valid])
    assert not pixels.values[~pixels.valid].any()
    # OpenSlide answers every call after a fault with that fault; ours goes on.
    assert source.read_level(0, Window(0, 0, 250, 250)).valid.all()

"""The fast path: every layout of a TIFF gives the pixels that were written, whatever the window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Level, Window
from gigavim.sources import ReadError, open_source

WHOLE = Window(0, 0, 500, 700)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"rowsperstrip": 33, "compression": "zlib"},
        {"tile": (64, 80)},
        {"tile": (64, 80), "compression": "zstd", "predictor": True},
        {"tile": (64, 80), "compression": "lzw", "byteorder": ">"},
        {"tile": (128, 128), "planarconfig": "separate"},
        {"planarconfig": "separate"},
        {"tile": (128, 128), "bigtiff": True, "compression": "zlib"},
        {"tile": (128, 128), "compression": "jpeg2000"},
    ],
    ids=lambda layout: "-".join(map(str, layout.values())) or "plain",
)
@pytest.mark.parametrize("bands", [None, ["blue"], ["blue", "red"]])
def test_every_layout_gives_the_pixels_that_were_written(
    tmp_path: Path, photo: NDArray[np.uint8], layout: dict[str, Any], bands: list[str] | None
) -> None:
    image = photo.transpose(2, 0, 1) if layout.get("planarconfig") == "separate" else photo
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **layout)
    source = open_source(tmp_path / "a.tif", bands=bands)
    chosen = photo[..., [0, 1, 2] if bands is None else ["red", "green", "blue"].index(bands[0])]
    if bands == ["blue", "red"]:
        chosen = photo[..., [2, 0]]
    for window in (WHOLE, Window(63, 79, 3, 5), Window(120, 100, 300, 333)):
        pixels = source.read_level(0, window)
        part = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
        assert pixels.valid.all()
        assert not pixels.errors
        assert np.array_equal(pixels.values, chosen[part].reshape(pixels.values.shape))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f2", "f4", "f8"])
def test_integer_and_float_samples_keep_their_type(tmp_path: Path, dtype: str) -> None:
    image = (np.random.default_rng(0).random((70, 90)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib")
    source = open_source(tmp_path / "a.tif")
    pixels = source.read_level(0, Window(0, 0, 70, 90))
    assert source.dtype == pixels.values.dtype == dtype
    assert [band.name for band in source.bands] == ["band 1"]
    assert np.array_equal(pixels.values[..., 0], image)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    y=st.integers(-150, 550), x=st.integers(-150, 750),
    height=st.integers(1, 300), width=st.integers(1, 300),
)  # fmt: skip
def test_a_window_may_lie_anywhere_even_beyond_the_image(
    slide: Path, y: int, x: int, height: int, width: int
) -> None:
    source = open_source(slide)
    everything = source.read_level(0, WHOLE).values
    pixels = source.read_level(0, Window(y, x, height, width))
    framed = np.pad(everything, ((150, 360), (150, 360), (0, 0)))
    inside = np.pad(np.ones((500, 700), np.bool_), ((150, 360), (150, 360)))
    part = np.s_[y + 150 : y + 150 + height, x + 150 : x + 150 + width]
    assert np.array_equal(pixels.values, framed[part])
    assert np.array_equal(pixels.valid, inside[part])


def test_a_slide_has_its_levels_and_neither_thumbnail_nor_label(slide: Path) -> None:
    assert open_source(slide).levels == (Level(500, 700, 1.0, 1.0), Level(250, 350, 2.0, 2.0))


def test_a_level_that_was_rounded_still_lies_on_level_0(
    tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    odd = photo[:499, :699]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for step in (1, 2, 4):
            small = odd[::step, ::step]
            file.write(small, tile=(64, 64), photometric="rgb", subfiletype=int(step > 1))
    levels = open_source(tmp_path / "a.tif").levels
    assert [level.downsample_y for level in levels] == [1.0, 2.0, 4.0]
    assert [level.downsample_x for level in levels] == [1.0, 2.0, 4.0]


def test_an_ome_tiff_keeps_pyramid_channels_and_their_names(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 4000, (2, 3, 120, 160), np.uint16)
    meta = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "CD3", "CD8"]}}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(image, subifds=1, tile=(32, 48), compression="zlib", metadata=meta)
        file.write(image[..., ::2, ::2], subfiletype=1, tile=(32, 48), compression="zlib")
    source = open_source(tmp_path / "a.ome.tif", bands=["CD8", "DAPI"])
    assert [level.downsample_x for level in source.levels] == [1.0, 2.0]
    assert [band.name for band in source.bands] == ["CD8", "DAPI"]
    for level, step in enumerate((1, 2)):
        size = source.levels[level]
        pixels = source.read_level(level, Window(0, 0, size.height, size.width))
        # The first plane of depth.
        assert np.array_equal(pixels.values, image[0, [2, 0], ::step, ::step].transpose(1, 2, 0))


def test_a_tile_that_was_never_written_is_not_valid_and_no_error(
    tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    sparse = photo.copy()
    sparse[128:256, 256:384] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, sparse, photometric="rgb", tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages.first
        hole = 6 + 2  # second row of six tiles, third of them
        counts = [*page.databytecounts]
        counts[hole] = 0
        page.tags["TileByteCounts"].overwrite(counts)
    pixels = open_source(path).read_level(0, WHOLE)
    assert not pixels.errors
    assert not pixels.valid[128:256, 256:384].any()
    assert pixels.valid.sum() == 500 * 700 - 128 * 128


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_tile_that_cannot_be_decoded_is_masked_and_named_and_the_others_are_read(
    write_slide: Callable[..., Path], spoil: Callable[..., None], kept: float
) -> None:
    good = open_source(write_slide("good.svs")).read_level(0, WHOLE)
    bad = write_slide("bad.svs")
    spoil(bad, 8, kept)
    source = open_source(bad)
    pixels = source.read_level(0, WHOLE)
    place = np.s_[128:256, 256:384]
    assert [(error.level, error.window) for error in pixels.errors] == [
        (0, Window(128, 256, 128, 128))
    ]
    assert pixels.errors[0].message
    assert not pixels.valid[place].any()
    assert not pixels.values[place].any()
    assert pixels.valid.sum() == 500 * 700 - 128 * 128
    assert np.array_equal(pixels.values[pixels.valid], good.values[pixels.valid])
    # And the same again: a fault does not stay with the thread that met it.
    assert source.read_level(0, WHOLE).errors == pixels.errors
    assert not source.read_level(0, Window(0, 0, 128, 700)).errors


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "jpeg2000"])
def test_every_codec_names_what_it_cannot_decode(
    tmp_path: Path,
    photo: NDArray[np.uint8],
    spoil: Callable[..., None],
    compression: str,
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, photo, photometric="rgb", tile=(128, 128), compression=compression)
    spoil(path, 0, kept=0.5)
    errors = open_source(path).read_level(0, WHOLE).errors
    assert [type(error) for error in errors] == [ReadError]
    assert errors[0].window == Window(0, 0, 128, 128)


def test_the_real_file_with_an_unreadable_tile_opens_and_says_so(shared: Path) -> None:
    source = open_source(shared / "data/slides/unreadable.svs")
    pixels = source.read_level(0, Window(0, 0, 16, 16))
    assert not pixels.valid.any()
    assert [error.window.y for error in pixels.errors] == [0]


def test_strips_too_large_to_decode_in_bounded_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    # One strip of 40,000 x 30,000 pixels: the size is claimed, the bytes are few.
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag, value in (
            ("ImageLength", 40_000),
            ("ImageWidth", 30_000),
            ("RowsPerStrip", 40_000),
        ):
            file.pages.first.tags[tag].overwrite(value)
    with pytest.raises(SourceError, match=r"a\.tif has strips of over 1 GiB"):
        open_source(path)

"""Whatever the bytes of a file, it is read or refused in one line; nothing crashes or hangs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import KINDS, SHARED, damage, set_tag, write_originals
from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources import open_source
from images import tissue, write_model
from sandbox import GOOD, Sandbox

pytestmark = pytest.mark.faults
WIDTH, LENGTH, NEXT, TILE_WIDTH, TILE_OFFSETS = 256, 257, 0, 322, 324


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_originals(tmp_path_factory.mktemp("originals") / "all")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    if not hasattr(os, "fork"):
        pytest.skip("needs forks of a process")
    with Sandbox(write_model(tmp_path_factory.mktemp("model") / "model.safetensors")) as sandbox:
        yield sandbox


def test_every_whole_image_is_read(originals: list[Path], sandbox: Sandbox) -> None:
    results = {path.name: sandbox.open(path) for path in originals}
    assert {name: r for name, r in results.items() if r["outcome"] != "read" or r["errors"]} == {}


@settings(max_examples=60, derandomize=True)
@given(number=st.integers(0, 1000), kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6))
def test_a_damaged_image_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    originals: list[Path],
    sandbox: Sandbox,
    number: int,
    kind: str,
    seed: int,
) -> None:
    original = originals[number % len(originals)]
    result = sandbox.open(damage(original, kind, seed, tmp_path_factory.mktemp("damaged")))
    assert result["outcome"] in GOOD, (original.name, kind, seed, result)


@pytest.fixture
def tiled(tmp_path: Path) -> Path:
    path = tmp_path / "tiled.tif"
    image = tissue(448, 640)
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", compression="zlib")
    return path


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({WIDTH: 10**9, LENGTH: 10**9}, "is damaged: it lists 20 of its"),
        ({TILE_WIDTH: 0}, "is damaged"),
        ({TILE_WIDTH: 16}, "is damaged: it lists 20 of its 160 tiles"),
        ({TILE_WIDTH: 0x7FFFFFF0}, "has strips of over 1 GiB"),
        ({TILE_OFFSETS: 0xFFFFFFF0}, "is cut short"),
        ({WIDTH: 0}, "is damaged"),
    ],
    ids=["10^9 x 10^9", "no tile side", "small tiles", "huge tiles", "offsets", "no width"],
)
def test_a_tiff_header_that_lies_is_refused_in_words(
    tiled: Path, tags: dict[int, int], message: str
) -> None:
    content = bytearray(tiled.read_bytes())
    for tag, value in tags.items():
        content = bytearray(set_tag(content, tag, value))
    tiled.write_bytes(content)
    with pytest.raises(SourceError, match=rf"tiled\.tif.*{message}") as caught:
        open_source(tiled)
    assert "\n" not in str(caught.value)


def test_an_image_of_a_billion_pixels_to_a_side_is_refused_though_no_tile_is_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "empty.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="1000000000" rasterYSize="1000000000">'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    with pytest.raises(SourceError, match=r"empty\.vrt claims to have 1000000000 x 1000000000"):
        open_source(path)


def test_a_zarr_whose_chunks_have_no_size_is_refused(tmp_path: Path) -> None:
    (zarr,) = (path for path in write_originals(tmp_path) if path.name == "three.zarr")
    about = zarr / "0/zarr.json"
    text = about.read_text()
    assert text.count("128") == 2
    about.write_text(text.replace("128", "0", 1))
    with pytest.raises(SourceError, match=r"three\.zarr: its array '0' has chunks of no size"):
        open_source(zarr)


def test_a_property_whose_name_is_no_text_is_left_out(tmp_path: Path, shared: Path) -> None:
    original = shared / SHARED[0]
    content = original.read_bytes()
    assert b"\ncalibration.version=" in content
    slide = tmp_path / "slide.ndpi"
    slide.write_bytes(content.replace(b"\ncalibration.version=", b"\ncalibration.versi\xff\xff="))
    assert open_source(slide).spacing == open_source(original).spacing


def test_what_a_library_says_in_lines_is_refused_in_one(tmp_path: Path, shared: Path) -> None:
    damaged = damage(shared / SHARED[1], "shift", 8, tmp_path)
    with pytest.raises(SourceError, match=r"cannot have VR") as caught:
        open_source(damaged)
    assert "\n" not in str(caught.value)


def test_directories_in_a_circle_end(tmp_path: Path) -> None:
    path = tmp_path / "circle.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(tissue(64, 64), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        first, second = (page.aspage().offset for page in file.pages)
        after = second + 2 + 12 * len(file.pages[1].aspage().tags)
    with path.open("r+b") as raw:
        raw.seek(after)
        raw.write(first.to_bytes(4, "little"))
    try:
        pixels = open_source(path).read_level(0, Window(0, 0, 64, 64))
    except SourceError as error:
        assert "circle.tif" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(pixels.values, tissue(64, 64))

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources import Source, open_source


def read_all(source: Source) -> NDArray[np.uint8]:
    level = source.levels[0]
    return source.read_level(0, Window(0, 0, level.height, level.width)).values


def scene(path: Path) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", height=40, width=50, count=2, dtype="int16", tiled=True,
        blockxsize=16, blockysize=16, compress="deflate",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as raster:  # fmt: skip
        raster.write(np.arange(4000, dtype=np.int16).reshape(2, 40, 50))
    return path


@pytest.mark.parametrize("name", ["slide.svs", "slide.tif", "slide.png", "slide"])
def test_a_slide_is_known_by_content_whatever_its_name(
    write_slide: Callable[..., Path], photo: NDArray[np.uint8], name: str
) -> None:
    source = open_source(write_slide(name))
    assert (source.kind, source.reader, len(source.levels)) == ("slide", "tifffile", 2)
    assert source.metadata["vendor"] == "aperio"
    np.testing.assert_allclose(read_all(source), photo, atol=12)


@pytest.mark.parametrize("name", ["scene.tif", "scene.svs", "scene"])
def test_a_scene_is_known_by_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    source = open_source(scene(tmp_path / name))
    assert (source.kind, source.reader) == ("scene", "rasterio")
    assert source.crs is not None
    assert "32633" in source.crs
    assert source.transform == (10, 0, 5e5, 0, -10, 5e6)
    assert np.array_equal(read_all(source), np.arange(4000).reshape(2, 40, 50).transpose(1, 2, 0))


@pytest.mark.parametrize(("encoder", "loss"), [("png", 0), ("jpeg", 12)])
@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.svs"])
def test_a_plain_picture_is_a_slide_without_spacing(
    tmp_path: Path, photo: NDArray[np.uint8], encoder: str, loss: int, name: str
) -> None:
    (tmp_path / name).write_bytes(getattr(imagecodecs, f"{encoder}_encode")(photo))
    source = open_source(tmp_path / name)
    assert (source.kind, source.spacing, source.crs, source.transform) == (
        "slide",
        None,
        None,
        None,
    )
    assert [band.name for band in source.bands] == ["red", "green", "blue"]
    np.testing.assert_allclose(read_all(source), photo, atol=loss)


def test_what_is_transparent_is_not_valid(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    opaque = np.ones((500, 700, 1), np.uint8) * 255
    opaque[100:200, 300:450] = 0
    rgba = np.concatenate([photo, opaque], -1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(rgba))
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        source = open_source(tmp_path / name)
        pixels = source.read_level(0, Window(0, 0, 500, 700))
        assert len(source.bands) == 3
        assert np.array_equal(pixels.valid, opaque[..., 0] > 0)
        assert np.array_equal(pixels.values, np.where(opaque > 0, photo, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; check the path"),
        (b"", "is empty; copy it again"),
        (b"Patient 7, see attached slide", "is no image that can be read"),
        (b"II*\0 and then nothing that a TIFF has", "is cut short: .*; copy it again"),
        (b"\x89PNG\r\n\x1a\n and then nothing", "is no image that can be read"),
    ],
    ids=["missing", "empty", "text", "half a TIFF", "half a PNG"],
)
def test_what_is_no_image_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.svs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"a\.svs\W.*{message}") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_ome_zarr_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder, but no OME-Zarr"):
        open_source(tmp_path)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
def test_a_slide_that_is_cut_short_is_refused(slide: Path, kept: float) -> None:
    content = slide.read_bytes()
    slide.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SourceError, match=r"slide.svs is (damaged|cut short)"):
        open_source(slide)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.svs", "is no image that can be read"),
        ("pathml_small_dicom.dcm", "OpenSlide knows the format but cannot open it"),
    ],
)
def test_real_files_that_are_no_slides_are_refused(shared: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=f"{name}.*{message}"):
        open_source(shared / "data" / "slides" / name)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_a_real_slide_that_is_cut_short_is_refused(
    shared: Path, tmp_path: Path, kept: float
) -> None:
    content = (shared / "data/slides/CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SourceError, match=r"cut\.svs"):
        open_source(path)


@pytest.mark.parametrize("kind", ["slide", "scene"])
def test_many_threads_read_one_source_and_get_the_same(
    slide: Path, tmp_path: Path, kind: str
) -> None:
    source = open_source(slide if kind == "slide" else scene(tmp_path / "scene.tif"))
    windows = [Window(y, x, 30, 30) for y in (0, 7, 20) for x in (0, 5, 20)] * 10

    def read(window: Window) -> NDArray[np.uint8]:
        return source.read_level(0, window).values

    alone = [read(window) for window in windows]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, alone, pool.map(read, windows)))


def test_a_source_pickles_with_its_options(slide: Path) -> None:
    source = open_source(slide, source_spacing=0.3, bands=["green"])
    again = pickle.loads(pickle.dumps(source))
    assert (again.spacing, again.bands) == (source.spacing, source.bands)
    assert np.array_equal(read_all(again), read_all(source))

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio

from gigavim.errors import SourceError, StoreError
from gigavim.foreground import foreground
from gigavim.geometry import Grid, Window
from gigavim.sample import fetch_slide, make_full_scene, make_scene, make_slide, real
from gigavim.sample.scene import BANDS_NM
from gigavim.sources import open_source

TILES = (4, 5)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "slide.svs"
    make_slide(path, tiles=TILES)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "scene.tif"
    make_scene(path, shape=(700, 900))
    return path


def test_openslide_opens_the_slide_as_one_of_aperio(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert opened.level_dimensions == ((1280, 1024), (320, 256), (80, 64))
        assert opened.level_downsamples == (1, 4, 16)
        assert float(opened.properties["openslide.mpp-x"]) == 0.499
        assert opened.properties["openslide.objective-power"] == "20"
        assert list(opened.associated_images) == ["thumbnail"]


def test_the_levels_of_the_slide_show_the_same(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        fine, middle, coarse = (
            np.asarray(opened.read_region((0, 0), level, size).convert("RGB"), np.float32)
            for level, size in enumerate(opened.level_dimensions)
        )
    for shrunk, factor in ((middle, 4), (coarse, 16)):
        height, width, _ = shrunk.shape
        expected = fine.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), expected.ravel())[0, 1] > 0.98


def test_tissue_of_the_slide_is_found_and_most_of_its_glass_is_not(slide: Path) -> None:
    source = open_source(str(slide))
    height, width = source.levels[0].height, source.levels[0].width
    share = foreground(source, Grid.over(height, width, patch=32)).mean()
    assert 0.25 < share < 0.6


def test_the_slide_is_pink_and_purple_on_white(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        image = np.asarray(opened.read_region((0, 0), 2, (80, 64)).convert("RGB"), int)
    red, green, blue = np.moveaxis(image, 2, 0)
    glass = image.min(axis=2) > 235
    assert 0.3 < glass.mean() < 0.8
    assert (green < red)[~glass].mean() > 0.95
    assert (green < blue)[~glass].mean() > 0.9


def test_the_scene_says_what_its_bands_are_and_where_it_lies(scene: Path) -> None:
    with rasterio.open(scene) as opened:
        assert opened.crs == rasterio.CRS.from_epsg(32632)
        assert opened.res == (10, 10)
        assert opened.descriptions == tuple(BANDS_NM)
        assert set(opened.dtypes) == {"uint16"}
        assert set(opened.scales) == {1e-4}
        assert opened.nodata == 0
        assert opened.overviews(1) == [2]
        assert opened.tags(4, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "0.842"
        assert opened.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_the_scene_has_nodata_at_its_tilted_sides_alone(scene: Path) -> None:
    with rasterio.open(scene) as opened:
        valid = opened.dataset_mask() > 0
    assert 0.6 < valid.mean() < 0.95
    first, last = valid.argmax(axis=1), valid.shape[1] - valid[:, ::-1].argmax(axis=1)
    assert first[0] > first[-1] > 0
    assert last[-1] < last[0]
    assert np.array_equal(valid.sum(axis=1), last - first)


def test_water_plants_and_soil_of_the_scene_are_told_apart_by_their_spectra(scene: Path) -> None:
    source = open_source(str(scene), bands=["green", "red", "nir"])
    level = source.levels[0]
    pixels = source.read_level(0, Window(0, 0, level.height, level.width))
    green, red, nir = pixels.values[pixels.valid].T
    assert 0 < pixels.values[pixels.valid].min() < pixels.values.max() < 1
    ndvi, ndwi = (nir - red) / (nir + red), (green - nir) / (green + nir)
    assert 0.05 < np.mean(ndwi > 0.2) < 0.5
    assert 0.2 < np.mean(ndvi > 0.6) < 0.9
    assert 0.03 < np.mean((ndvi > 0) & (ndvi < 0.35)) < 0.4


def test_the_same_sample_comes_out_each_time(slide: Path, scene: Path, tmp_path: Path) -> None:
    make_slide(tmp_path / "slide.svs", tiles=TILES)
    make_scene(tmp_path / "scene.tif", shape=(700, 900))
    assert (tmp_path / "slide.svs").read_bytes() == slide.read_bytes()
    assert (tmp_path / "scene.tif").read_bytes() == scene.read_bytes()


def test_a_full_scene_has_the_bands_of_sentinel_2_and_the_same_pixels_each_time(
    tmp_path: Path,
) -> None:
    paths = tmp_path / "a.tif", tmp_path / "b.tif"
    for path in paths:
        make_full_scene(path, shape=(600, 800))
    source = open_source(str(paths[0]))
    assert [band.name for band in source.bands][7:9] == ["B08", "B8A"]
    assert [band.wavelength_nm for band in source.bands][-1] == 2190
    assert [(level.height, level.width) for level in source.levels] == [(600, 800), (300, 400)]
    with rasterio.open(paths[0]) as first, rasterio.open(paths[1]) as second:
        assert (first.dtypes[0], first.nodata, first.crs.to_epsg()) == ("uint16", 0, 32632)
        pixels = first.read()
        np.testing.assert_array_equal(pixels, second.read())
    # A tilted swath: nothing at the upper left and the lower right.
    assert not pixels[:, 0, 0].any()
    assert not pixels[:, -1, -1].any()
    assert pixels[:, 300, 400].all()
    # What is mirrored is not the same.
    assert not np.array_equal(pixels[3, :, 390:400], pixels[3, :, 409:399:-1])


@pytest.mark.parametrize("make", [make_slide, make_scene, make_full_scene, fetch_slide])
def test_no_file_is_overwritten(make, tmp_path: Path) -> None:
    path = tmp_path / "mine.tif"
    path.write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        make(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_slide, {"tiles": (1, 1)}),
        (make_scene, {"shape": (64, 64)}),
        (make_full_scene, {"shape": (64, 64)}),
    ],
)
def test_a_folder_that_is_missing_is_an_error_of_one_line(make, options, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write") as caught:
        make(tmp_path / "missing" / "sample.tif", **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_halfway_is_not_left_behind(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gigavim.sample.slide._shrunk", fail)
    with pytest.raises(KeyboardInterrupt):
        make_slide(tmp_path / "slide.svs", tiles=(1, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_slide_is_checked(tmp_path: Path, monkeypatch) -> None:
    from http.server import HTTPServer, SimpleHTTPRequestHandler
    from threading import Thread

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a slide")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        monkeypatch.setattr(real, "URL", f"http://127.0.0.1:{server.server_port}/slide.svs")
        with pytest.raises(SourceError, match="cannot be fetched") as caught:
            fetch_slide(tmp_path / "wrong.svs")
        monkeypatch.setattr(real, "SHA256", hashlib.sha256(b"a slide").hexdigest())
        fetch_slide(tmp_path / "right.svs")
        server.shutdown()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "right.svs").read_bytes() == b"a slide"
    assert [path.name for path in tmp_path.iterdir()] == ["right.svs"]

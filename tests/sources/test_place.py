"""Scenes read elsewhere than they lie: cropped, reprojected, turned, and from a server."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from product_files import NORTH, WEST, ramp, write_item, write_raster
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.warp import transform, transform_bounds

from gigavim.errors import SourceError
from gigavim.geometry import Grid, Window
from gigavim.sources import Pixels, Plane, Source, open_source


def read_all(source: Source) -> Pixels:
    size = source.levels[0]
    return source.read_level(0, Window(0, 0, size.height, size.width))


def centres(source: Source, crs: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the pixels of a source lie in a CRS: x and y of each."""
    assert source.transform is not None
    size = source.levels[0]
    columns, rows = np.meshgrid(np.arange(size.width) + 0.5, np.arange(size.height) + 0.5)
    a, b, c, d, e, f = source.transform
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    assert source.crs is not None
    xs, ys = transform(source.crs, crs, x.ravel(), y.ravel())
    return np.reshape(xs, x.shape), np.reshape(ys, y.shape)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A plane at 10 m, as floats."""
    return write_raster(tmp_path / "scene.tif", dtype="float64", side_m=960, tiled=True,
                        blockxsize=32, blockysize=32)  # fmt: skip


def test_pixels_are_as_they_lie_unless_something_else_is_asked_for(scene: Path) -> None:
    source = open_source(scene)
    with rasterio.open(scene) as raster:
        stored = raster.read(1)
    assert np.array_equal(read_all(source).values[..., 0], stored)
    same = open_source(scene, crs="EPSG:32633")
    assert (same.transform, same.levels) == (source.transform, source.levels)
    assert np.array_equal(read_all(same).values[..., 0], stored)


def test_bounds_cut_out_whole_pixels(scene: Path) -> None:
    bounds = (WEST + 204, NORTH - 306, WEST + 400, NORTH - 100)
    source = open_source(scene, bounds=bounds)
    assert source.transform == (10, 0, WEST + 200, 0, -10, NORTH - 100)
    assert np.array_equal(
        read_all(source).values, read_all(open_source(scene)).values[10:31, 20:40]
    )


def test_bounds_beside_the_scene_are_refused_and_it_is_said_where_it_lies(scene: Path) -> None:
    with pytest.raises(SourceError, match=r"--bounds 0, 0, 1, 1 covers none .* 500000, 4999040"):
        open_source(scene, bounds=(0, 0, 1, 1))


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:32632", "EPSG:3035"])
def test_a_reprojected_scene_lies_where_it_lay(scene: Path, crs: str) -> None:
    source = open_source(scene, crs=crs)
    pixels = read_all(source)
    assert source.crs is not None
    assert rasterio.CRS.from_wkt(source.crs) == rasterio.CRS.from_string(crs)
    x, y = centres(source, "EPSG:32633")
    inside = (x - WEST > 15) & (WEST + 945 - x > 0) & (NORTH - y > 15) & (y - NORTH + 945 > 0)
    assert pixels.valid[inside].all()
    gap = np.abs(pixels.values[..., 0] - ramp(x - WEST, NORTH - y))[inside]
    # The plane rises by 36 from a pixel to the next; GDAL's kernel is off by less than a tenth.
    assert gap.max() < 0.1 * 36
    outside = (x < WEST - 10) | (x > WEST + 970) | (y > NORTH + 10) | (y < NORTH - 970)
    assert not pixels.valid[outside].any()


def test_a_reprojected_scene_does_not_depend_on_how_it_is_cut(scene: Path) -> None:
    source = open_source(scene, crs="EPSG:3035")
    whole = read_all(source)
    window = Window(17, 31, 40, 44)
    part = pickle.loads(pickle.dumps(source)).read_level(0, window)
    assert np.array_equal(part.values, whole.values[17:57, 31:75])
    assert np.array_equal(part.valid, whole.valid[17:57, 31:75])


def test_bounds_are_in_the_crs_that_is_read_in(scene: Path) -> None:
    west, south, east, north = transform_bounds(
        "EPSG:32633", "EPSG:4326", WEST + 200, NORTH - 400, WEST + 400, NORTH - 200
    )
    source = open_source(scene, crs="EPSG:4326", bounds=(west, south, east, north))
    x, y = centres(source, "EPSG:32633")
    assert abs(x.min() - WEST - 205) < 15
    assert abs(x.max() - WEST - 395) < 15
    assert abs(y.max() - NORTH + 205) < 15
    assert read_all(source).valid.all()


def triangle(path: Path, crs: str | None = None) -> Path:
    """Write a triangle in the scene: its north-west half, in degrees unless a CRS is said."""
    xs, ys = [WEST, WEST + 480, WEST, WEST], [NORTH, NORTH, NORTH - 480, NORTH]
    if crs is None:
        xs, ys = transform("EPSG:32633", "OGC:CRS84", xs, ys)
    content = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {},
                "geometry": {"type": "Polygon", "coordinates": [list(zip(xs, ys, strict=True))]},
            }
        ],
    }
    if crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("crs", [None, "EPSG:32633"])
def test_an_area_of_interest_cuts_the_scene_and_masks_the_rest(
    tmp_path: Path, scene: Path, crs: str | None
) -> None:
    source = open_source(scene, aoi=str(triangle(tmp_path / "a.geojson", crs)))
    level = source.levels[0]
    assert abs(level.height - 48) <= 1
    assert abs(level.width - 48) <= 1
    pixels = read_all(source)
    x, y = centres(source, "EPSG:32633")
    depth = 480 - (x - WEST) - (NORTH - y)
    assert pixels.valid[depth > 1].all()
    assert not pixels.valid[depth < -1].any()
    part = source.read_level(0, Window(20, 10, 9, 30))
    assert np.array_equal(part.valid, pixels.valid[20:29, 10:40])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "is no GeoJSON that can be read"),
        ('{"type": "Point", "coordinates": [15, 45]}', "holds no polygon"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
    ],
)
def test_an_area_that_is_none_is_refused(
    tmp_path: Path, scene: Path, content: str, message: str
) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(SourceError, match=message):
        open_source(scene, aoi=str(tmp_path / "a.geojson"))


def test_an_area_elsewhere_is_refused(tmp_path: Path, scene: Path) -> None:
    (tmp_path / "a.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 1]]]}'
    )
    with pytest.raises(SourceError, match=r"--aoi .* covers none of the scene"):
        open_source(scene, aoi=str(tmp_path / "a.geojson"))


def test_a_crs_that_is_none_is_refused(scene: Path) -> None:
    with pytest.raises(SourceError, match=r"'EPSG:1' is no CRS; write an EPSG code"):
        open_source(scene, crs="EPSG:1")


def test_a_scene_without_crs_cannot_be_reprojected_but_cut(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", crs=None, side_m=960)
    with pytest.raises(SourceError, match=r"a\.tif has no CRS and cannot be brought to another"):
        open_source(path, crs="EPSG:3857")
    cut = open_source(path, bounds=(WEST, NORTH - 100, WEST + 50, NORTH))
    assert (cut.levels[0].height, cut.levels[0].width) == (10, 5)


@pytest.mark.parametrize(("a", "e"), [(10, 10), (-10, -10), (-10, 10)])
def test_a_scene_with_south_up_or_west_right_is_read_north_up(
    tmp_path: Path, a: float, e: float
) -> None:
    values = np.random.default_rng(0).integers(1, 999, (30, 40)).astype(np.int16)
    stored = values[:: -1 if e > 0 else 1, :: -1 if a < 0 else 1]
    corner = WEST + (400 if a < 0 else 0), NORTH - (300 if e > 0 else 0)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=30, width=40, count=1, dtype="int16",
        crs="EPSG:32633", transform=Affine(a, 0, corner[0], 0, e, corner[1]),
    ) as raster:  # fmt: skip
        raster.write(stored, 1)
    source = open_source(tmp_path / "a.tif")
    assert source.transform == (10, 0, WEST, 0, -10, NORTH)
    pixels = read_all(source)
    assert pixels.valid.all()
    assert np.array_equal(pixels.values[..., 0], values)


def turned(path: Path, degrees: float = 30.0) -> Path:
    """Write the plane in pixels that lie askew."""
    affine = Affine.translation(WEST + 300, NORTH - 300) @ Affine.rotation(degrees)
    affine = affine @ Affine.scale(10, -10)
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    x = affine.a * columns + affine.b * rows + affine.c
    y = affine.d * columns + affine.e * rows + affine.f
    with rasterio.open(
        path, "w", driver="GTiff", height=30, width=40, count=1, dtype="float64",
        crs="EPSG:32633", transform=affine,
    ) as raster:  # fmt: skip
        raster.write(ramp(x - WEST, NORTH - y), 1)
    return path


@pytest.mark.parametrize("crs", [None, "EPSG:32633", "EPSG:3857"])
def test_a_turned_scene_lies_where_it_lay(tmp_path: Path, crs: str | None) -> None:
    source = open_source(turned(tmp_path / "a.tif"), crs=crs)
    pixels = read_all(source)
    x, y = centres(source, "EPSG:32633")
    gap = np.abs(pixels.values[..., 0] - ramp(x - WEST, NORTH - y))
    inside = pixels.valid.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(pixels.valid, step, axis)
    assert inside.sum() > 500
    assert gap[inside].max() < 0.1 * 36
    if crs is None:
        assert pixels.valid.all()
        assert gap.max() < 1e-9


def test_a_scene_with_control_points_alone_is_refused(tmp_path: Path) -> None:
    points = [
        GroundControlPoint(row, column, WEST + 10 * column, NORTH - 10 * row)
        for row in (0, 40)
        for column in (0, 40)
    ]
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=40, width=40, count=1, dtype="uint8",
        gcps=points, crs="EPSG:32633",
    ):  # fmt: skip
        pass
    with pytest.raises(SourceError, match=r"lies by ground control points alone; .* gdalwarp"):
        open_source(tmp_path / "a.tif", crs="EPSG:32633")


@pytest.mark.parametrize(
    ("crs", "origin", "torn_in"),
    [
        # Fiji: UTM zone 1 begins at the antimeridian, and its tiles reach beyond.
        ("EPSG:32701", (180_000.0, 8_150_000.0), "EPSG:4326"),
        # Around the pole itself, in polar stereographic.
        ("EPSG:3413", (-50_000.0, 50_000.0), "EPSG:4326"),
    ],
)
def test_a_scene_across_the_antimeridian_or_a_pole_is_read_in_its_own_crs_and_not_torn(
    tmp_path: Path, crs: str, origin: tuple[float, float], torn_in: str
) -> None:
    path = write_raster(
        tmp_path / "a.tif", lambda x, y: 1 + 0 * (x + y), 1000, side_m=100_000, crs=crs,
        origin=origin,
    )  # fmt: skip
    source = open_source(path)
    assert read_all(source).valid.all()
    assert source.transform == (1000, 0, origin[0], 0, -1000, origin[1])
    with pytest.raises(
        SourceError, match="lies across the antimeridian or a pole, where EPSG:4326"
    ):
        open_source(path, crs=torn_in)


def test_a_scene_in_utm_near_the_antimeridian_reprojects_to_its_neighbour_zone(
    tmp_path: Path,
) -> None:
    path = write_raster(
        tmp_path / "a.tif", lambda x, y: 1 + 0 * (x + y), 1000, side_m=100_000, crs="EPSG:32701",
        origin=(180_000.0, 8_150_000.0),
    )  # fmt: skip
    source = open_source(path, crs="EPSG:32760")
    assert read_all(source).valid.mean() > 0.9


def test_a_scene_smaller_than_a_patch_is_one_patch(tmp_path: Path) -> None:
    source = open_source(write_raster(tmp_path / "a.tif", side_m=50), crs="EPSG:32633")
    size = source.levels[0]
    assert Grid.over(size.height, size.width, patch=16).shape == (1, 1)
    pixels = Plane.at(source).read(Window(0, 0, 16, 16))
    assert pixels.valid.sum() == 25


@pytest.mark.parametrize("options", [{}, {"crs": "EPSG:32633"}])
def test_complex_values_are_refused_wherever_they_are_read(
    tmp_path: Path, options: dict[str, str]
) -> None:
    path = write_raster(tmp_path / "a.tif", dtype="complex64", side_m=50)
    with pytest.raises(SourceError, match="is complex; write its amplitude"):
        open_source(path, **options)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, with the ranges that GDAL asks for, and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with a range of a file."""
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header(
            "Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        )
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address at which the temporary folder is served."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes calls and never answers."""
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_raster_and_an_item_are_read_from_a_server(
    tmp_path: Path, scene: Path, server: str
) -> None:
    expected = read_all(open_source(scene)).values
    source = open_source(f"{server}/scene.tif")
    assert np.array_equal(read_all(source).values, expected)
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(read_all(again).values, expected)
    item = {"href": "./scene.tif", "type": "image/tiff", "roles": ["data"]}
    write_item(tmp_path / "item.json", {"B04": item})
    source = open_source(f"{server}/item.json")
    assert [band.name for band in source.bands] == ["B04"]
    assert np.array_equal(read_all(source).values, expected)


@pytest.mark.parametrize("name", ["scene.tif", "item.json"])
def test_a_server_that_does_not_answer_is_named_in_one_line(silent_server: str, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name} could not be reached \(.*time") as error:
        open_source(f"{silent_server}/{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gone.tif", "gone.json"])
def test_what_a_server_has_not_is_named(server: str, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name} could not be reached \(.*404"):
        open_source(f"{server}/{name}")

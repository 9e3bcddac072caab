from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.warp import transform_bounds

from gigavim.cli import main
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.pipelines.evaluate import evaluate_result
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.figures import figures_of, figures_of_counts
from images import ORIGIN, UTM, write_model, write_scene

WEST, NORTH = ORIGIN
BORDER = WEST + 1600
"""Water is west of it, meadow east."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clusters, water and meadow, with a rim of 160 m where there is nothing."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = write_model(folder / "four.safetensors", bands=("blue", "green", "red", "nir"), patch=8)
    store = folder / "scene.gigavim.zarr"
    config = RunConfig(model=str(model), clusters=2)
    run_image(str(write_scene(folder / "scene.tif")), store, config, Resources("cpu", 1))
    return store


@pytest.fixture(scope="module")
def names(store: Path) -> dict[str, str]:
    """Which cluster is which, as the labels name it."""
    with rasterio.open(store.with_name("scene.clusters.tif")) as raster:
        water = int(next(raster.sample([(WEST + 400, NORTH - 1000)]))[0])
    return {f"cluster {water}": "water", "*": "meadow"}


def write_labels(path: Path, crs: str, step: float, wrong: int = 0) -> Path:
    """Write 1 for water and 7 for meadow, on a grid of its own; so many columns are wrong."""
    west, south, east, north = transform_bounds(UTM, crs, WEST, NORTH - 2560, WEST + 3200, NORTH)
    width, height = round((east - west) / step), round((north - south) / step)
    xs = west + (np.arange(width) + 0.5) * step
    (border, *_), _ = rasterio.warp.transform(UTM, crs, [BORDER], [NORTH - 1280])
    values = np.where(xs < border, 1, 7).astype(np.uint8)
    at = int(np.searchsorted(xs, border))
    values[at - wrong : at] = 7
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype="uint8", crs=crs,
        transform=rasterio.Affine(step, 0, west, 0, -step, north),
    ) as raster:  # fmt: skip
        raster.write(np.broadcast_to(values, (height, width)), 1)
    return path


@pytest.mark.parametrize(("crs", "step"), [(UTM, 10.0), (UTM, 35.0), ("EPSG:4326", 1e-4)])
def test_labels_lie_on_any_grid(
    store: Path, names: dict[str, str], tmp_path: Path, crs: str, step: float
) -> None:
    labels = write_labels(tmp_path / "labels.tif", crs, step)
    found = evaluate_result(store, labels, values={"water": 1, "meadow": 7}, names=names)
    # In degrees the border, and the box around the scene, are askew by some pixels.
    least = 1 if crs == UTM else 0.99
    slack = 0.01 if crs == UTM else 0.03
    assert found["figures"]["accuracy"]["value"] >= least
    inside = (3200 - 320) * (2560 - 320) / (3200 * 2560)
    assert found["pixels"] / (found["pixels"] + found["unmapped"]) == pytest.approx(
        inside, abs=slack
    )


def test_what_is_wrong_is_counted(store: Path, names: dict[str, str], tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.tif", UTM, 10.0, wrong=36)
    found = evaluate_result(store, labels, values={"water": 1, "meadow": 7}, names=names)
    rows = 224
    assert found["classes"] == ["water", "meadow"]
    assert found["confusion"] == [[(144 - 36) * rows, 0], [36 * rows, 144 * rows]]
    accuracy = found["figures"]["accuracy"]
    assert accuracy["value"] == pytest.approx(1 - 36 / 288)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]


def test_shapes_count_for_the_pixels_in_them(
    store: Path, names: dict[str, str], tmp_path: Path
) -> None:
    geopandas = pytest.importorskip("geopandas")
    from shapely import Point, box

    shapes = [
        box(WEST + 400, NORTH - 1000, WEST + 500, NORTH - 800),
        box(BORDER + 400, NORTH - 1000, BORDER + 500, NORTH - 900),
        Point(BORDER + 1000, NORTH - 2000),
        Point(WEST + 40, NORTH - 40),
    ]
    table = geopandas.GeoDataFrame(
        {"class": ["water", "meadow", "water", "water"]}, geometry=shapes, crs=UTM
    )
    expected = [[200, 1], [0, 100]]
    for name, crs in (("s.gpkg", UTM), ("s.geojson", "EPSG:4326")):
        table.to_crs(crs).to_file(tmp_path / name)
        found = evaluate_result(store, tmp_path / name, names=names)
        order = [found["classes"].index(name) for name in ("water", "meadow")]
        np.testing.assert_array_equal(np.array(found["confusion"])[np.ix_(order, order)], expected)
        assert (found["groups"], found["unmapped"]) == (3, 1)


def test_a_raster_without_crs_is_of_the_pixels_of_the_scene(
    store: Path, names: dict[str, str], tmp_path: Path
) -> None:
    from PIL import Image

    values = np.where(np.arange(320) < 160, 1, 7) * np.ones((256, 1))
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "labels.png")
    found = evaluate_result(
        store, tmp_path / "labels.png", values={"water": 1, "meadow": 7}, names=names
    )
    assert found["figures"]["accuracy"]["value"] == 1
    Image.fromarray(values[:99].astype(np.uint8)).save(tmp_path / "part.png")
    with pytest.raises(GigavimError, match="no CRS, and with 320 x 99 pixels not the size"):
        evaluate_result(store, tmp_path / "part.png", names=names)


def test_what_does_not_fit_is_said(store: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.tif", UTM, 10.0)
    with pytest.raises(GigavimError, match="say which is which with --as"):
        evaluate_result(store, labels)
    with pytest.raises(GigavimError, match="has no class sea; it has cluster 1, cluster 2"):
        evaluate_result(store, labels, names={"sea": "water"})
    with pytest.raises(GigavimError, match="its numbers are 1, 7: name them with --values"):
        evaluate_result(store, labels, values={"water": 3})
    (tmp_path / "no.geojson").write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [{"type": "Feature", "geometry": None, "properties": {"kind": 3}}],
            }
        )
    )
    with pytest.raises(GigavimError, match="name the column with --column: kind"):
        evaluate_result(store, tmp_path / "no.geojson")


def test_the_command_prints_figures_and_confusion(
    store: Path,
    names: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = write_labels(tmp_path / "labels.tif", UTM, 10.0)
    called = ",".join(f"{name}={other}" for name, other in names.items())
    command = ["evaluate", str(store), str(labels), "--values", "water=1,meadow=7", "--as", called]
    monkeypatch.setattr("sys.argv", ["gigavim", *command, "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out)["confusion"] == [[144 * 224, 0], [0, 144 * 224]]


def test_counts_give_the_figures_of_torchmetrics() -> None:
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 4, 400), random.integers(0, 9, 400)
    probs = random.random((400, 4)) + np.eye(4)[labels] * 0.6
    classes = ("a", "b", "c", "d")
    expected = figures_of(
        torch.from_numpy(probs), torch.from_numpy(labels), [str(g) for g in groups], classes
    )
    counts = np.zeros((9, 4, 4), np.int64)
    np.add.at(counts, (groups, labels, probs.argmax(1)), 1)
    found = figures_of_counts(counts, classes)
    assert found.confusion == expected.confusion
    assert set(found.by_name) == set(expected.by_name)
    for name, figure in expected.by_name.items():
        assert found.by_name[name].value == pytest.approx(figure.value, abs=1e-6)
        # Bootstraps of other draws.
        assert found.by_name[name].low == pytest.approx(figure.low, abs=0.02)
        assert found.by_name[name].high == pytest.approx(figure.high, abs=0.02)


def test_a_class_that_is_nowhere_has_no_part_in_the_figures() -> None:
    two = np.array([[[3, 1], [1, 1]]])
    three = np.pad(two, ((0, 0), (0, 1), (0, 1)))
    expected, found = figures_of_counts(two, "ab"), figures_of_counts(three, "abc")
    assert found.by_name == expected.by_name
    assert found.by_name["mean_iou"].value == pytest.approx((3 / 5 + 1 / 3) / 2)

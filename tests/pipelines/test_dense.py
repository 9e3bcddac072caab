"""A run that finds nuclei: where they are, how many, and all of them once."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from numpy.typing import NDArray

from gigavim.checkpoint import load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.dense import Decoder, DecoderConfig
from gigavim.errors import ModelError
from gigavim.nuclei import OUTPUTS, NucleiConfig
from gigavim.pipelines import dense
from gigavim.pipelines.report import Silent, Summary
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore, running, windows
from gigavim.store.running import Filling
from images import write_model

SIDE = 128
"""Of the windows here, in pixels that the model sees: 256 of level 0."""
RADIUS = 16
PLACES = [
    (60.0, 60.0), (256.0, 100.0), (250.5, 256.0), (512.0, 512.0), (96.0, 512.0), (700.0, 253.0),
    (300.0, 380.0), (752.5, 400.25), (420.0, 20.0), (640.0, 610.0),
]  # fmt: skip
"""x and y of dark discs, in level-0 pixels; some lie across the borders of windows."""


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SIDE", SIDE)
    monkeypatch.setattr(dense, "SIDE", SIDE)
    monkeypatch.setattr(dense, "DECODED", 10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model whose nuclei are what is dark: its decoder passes one number through."""
    plain = load_model(write_model(tmp_path / "plain.safetensors", patch=8, spacing=0.5))
    config = DecoderConfig(OUTPUTS, (2, 2, 2))
    decoder = Decoder(plain.encoder.config, config).eval()
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
    finest_skip, finest_up = decoder.skips[0], decoder.ups[-1]
    with torch.no_grad():
        finest_skip[0].weight[0, :, 1, 1] = -1 / 3  # dark is positive
        finest_skip[3].weight[0, 0, 1, 1] = 1
        finest_up[0].weight[0, 2, 1, 1] = 1  # after the two channels from below
        finest_up[3].weight[0, 0, 1, 1] = 1
        decoder.out.weight[:, 0] = 20
        decoder.out.bias[:] = -10
    spec = dataclasses.replace(plain.spec, decoder=config, nuclei=NucleiConfig())
    path = tmp_path / "dark.safetensors"
    save_model(path, plain.encoder, spec, decoder=decoder)
    return path


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Return a slide at 0.25 µm/px of bright tissue with dark discs."""
    y, x = np.mgrid[:640, :800] + 0.5
    image = np.full((640, 800, 3), (225, 180, 210), np.uint8)
    for cx, cy in PLACES:
        image[(x - cx) ** 2 + (y - cy) ** 2 < RADIUS**2] = (40, 20, 60)
    path = tmp_path / "discs.svs"
    tifffile.imwrite(
        path, image, photometric="rgb", tile=(256, 256), compression="deflate", metadata=None,
        description="Aperio Image Library\n800x640|AppMag = 40|MPP = 0.25",
    )  # fmt: skip
    return path


def run(slide: Path, model: Path, output: Path, **options: Any) -> Summary:
    config = RunConfig(model=str(model), read_all=True, **options)
    return run_image(str(slide), output, config, Resources(device="cpu", readers=1))


def points(path: str | None) -> NDArray[np.float64]:
    assert path is not None
    with Path(path).open(newline="") as file:
        return np.array([(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)])


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_every_nucleus_is_found_once_where_it_is(
    slide: Path, model: Path, tmp_path: Path, mode: str
) -> None:
    summary = run(slide, model, tmp_path / "discs.gigavim.zarr", mode=mode)
    found = points(summary.table)
    assert summary.nuclei == len(found) == len(PLACES)
    for place in PLACES:
        assert np.hypot(*(found - place).T).min() < 0.5
    assert summary.nuclei_per_mm2 is not None
    assert summary.nuclei_per_mm2 == pytest.approx(len(PLACES) / (640 * 800 / 16 / 1e6))


def test_windows_show_as_they_come(slide: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "discs.gigavim.zarr"
    filling, found = Filling(store), list[int]()

    class Watches(Silent):
        stage = ""

        def start(self, title: str, tokens: int) -> None:
            self.stage = title

        def advance(self, tokens: int, megapixels: float = 0.0) -> None:
            if self.stage == "nuclei":
                filling.update()
                found.append(np.count_nonzero(filling.maps["nuclei"].labels))

    config = RunConfig(model=str(model), read_all=True)
    run_image(str(slide), store, config, Resources("cpu", readers=1), progress=Watches())
    final = ResultStore.open(store).values("labels/nuclei/0")
    np.testing.assert_array_equal(filling.maps["nuclei"].labels, final)
    assert 0 < found[0] < found[4] < found[-1]
    assert filling.maps["nuclei"].cell == (2, 2)


def test_a_map_too_large_for_a_screen_shows_thinned(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PREVIEW_SIDE", 110)
    store = tmp_path / "discs.gigavim.zarr"
    filling = Filling(store)

    class Watches(Silent):
        def advance(self, tokens: int, megapixels: float = 0.0) -> None:
            filling.update()

    config = RunConfig(model=str(model), read_all=True)
    run_image(str(slide), store, config, Resources("cpu", readers=1), progress=Watches())
    final = ResultStore.open(store).values("labels/nuclei/0")
    np.testing.assert_array_equal(filling.maps["nuclei"].labels, final[::4, ::4])
    assert filling.maps["nuclei"].cell == (8, 8)


def test_outlines_are_in_pixels_of_level_0_as_qupath_reads_them(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    summary = run(slide, model, tmp_path / "discs.gigavim.zarr")
    assert summary.geojson is not None
    content = json.loads(Path(summary.geojson).read_text())
    assert content["type"] == "FeatureCollection"
    outlines = []
    for feature in content["features"]:
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"]["name"] == "nucleus"
        outlines.append(shapely.geometry.shape(feature["geometry"]))
    assert all(outline.is_valid for outline in outlines)
    for x, y in PLACES:
        (mine,) = (outline for outline in outlines if outline.contains(shapely.Point(x, y)))
        disc = shapely.Point(x, y).buffer(RADIUS)
        assert mine.intersection(disc).area / mine.union(disc).area > 0.9


def test_maps_and_table_are_in_the_store(slide: Path, model: Path, tmp_path: Path) -> None:
    summary = run(slide, model, tmp_path / "discs.gigavim.zarr")
    store = ResultStore.open(tmp_path / "discs.gigavim.zarr")
    labels, probs = store.values("labels/nuclei/0"), store.values("maps/nuclei/0")
    assert labels.shape == (320, 400)
    assert probs.shape == (1, 320, 400)
    y, x = np.mgrid[:320, :400] * 2 + 1
    inside = np.zeros(labels.shape, np.bool_)
    near = inside.copy()
    for cx, cy in PLACES:
        distance = np.hypot(x - cx, y - cy)
        inside |= distance < RADIUS - 2
        near |= distance < RADIUS + 2
    assert (labels[inside] == 1).all()
    assert (labels[~near] == 0).all()
    assert (probs[0, inside] > 230).all()
    assert (probs[0, ~near] < 25).all()
    assert (probs > 0).all()  # everything was read
    centroids, areas = (
        store.values("objects/nuclei/centroids"),
        store.values("objects/nuclei/area_um2"),
    )
    np.testing.assert_allclose(centroids, points(summary.table), atol=0.01)
    np.testing.assert_allclose(areas, np.pi * RADIUS**2 / 16, rtol=0.1)
    ends = store.values("objects/nuclei/ends")
    assert ends[-1] == len(store.values("objects/nuclei/vertices"))


def test_what_was_not_looked_at_has_no_probability(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    mask = np.zeros((640, 800), np.uint8)
    mask[:, :320] = 255
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    config = RunConfig(model=str(model), mask=str(tmp_path / "mask.tif"))
    path = tmp_path / "half.gigavim.zarr"
    summary = run_image(str(slide), path, config, Resources(device="cpu", readers=1))
    store = ResultStore.open(path)
    probs = store.values("maps/nuclei/0")[0]
    assert (probs[:, :160] > 0).all()
    assert (probs[:, 160:] == 0).all()
    assert (store.values("labels/nuclei/0")[:, 160:] == 0).all()
    assert summary.nuclei == sum(x < 320 for x, _ in PLACES)


def test_a_run_that_was_stopped_goes_on_with_the_windows_that_are_missing(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(slide, model, tmp_path / "whole.gigavim.zarr")
    commit, committed = windows.WindowedMap.commit, []

    def stop_after_three(self: windows.WindowedMap, number: int, *rest: Any) -> None:
        if len(committed) == 3:
            raise KeyboardInterrupt
        commit(self, number, *rest)
        committed.append(number)

    monkeypatch.setattr(windows.WindowedMap, "commit", stop_after_three)
    path = tmp_path / "stopped.gigavim.zarr"
    with pytest.raises(KeyboardInterrupt):
        run(slide, model, path)

    def go_on(self: windows.WindowedMap, number: int, *rest: Any) -> None:
        commit(self, number, *rest)
        committed.append(number)

    monkeypatch.setattr(windows.WindowedMap, "commit", go_on)
    resumed = run(slide, model, path)
    assert len(committed) == len(set(committed)) == 12
    assert resumed.resumed
    for kind in ("geojson", "table"):
        whole, stopped = getattr(undisturbed, kind), getattr(resumed, kind)
        assert Path(whole).read_bytes() == Path(stopped).read_bytes()
    stores = [ResultStore.open(tmp_path / f"{name}.gigavim.zarr") for name in ("whole", "stopped")]
    for name in ("labels/nuclei/0", "maps/nuclei/0", "objects/nuclei/vertices"):
        first, second = (store.values(name) for store in stores)
        assert np.array_equal(first, second)


def test_a_model_without_decoder_finds_no_nuclei(slide: Path, tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain.safetensors", patch=8, spacing=0.5)
    with pytest.raises(ModelError, match="not trained to find nuclei"):
        run(slide, plain, tmp_path / "out.gigavim.zarr", heads=("nuclei",))


def test_a_stain_that_the_model_does_not_know_warns(
    slide: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(model)

    def with_stain(name: str, *shares: tuple[float, float]) -> Path:
        spec = dataclasses.replace(loaded.spec, stain=shares)
        save_model(tmp_path / name, loaded.encoder, spec, decoder=loaded.decoder)
        return tmp_path / name

    known = with_stain("known.safetensors", (0, 1), (0.4, 0.7), (0, 1))
    run(slide, known, tmp_path / "known.gigavim.zarr")
    assert "of the stain" not in caplog.text
    unknown = with_stain("unknown.safetensors", (0, 1), (0, 1), (0.45, 1))
    run(slide, unknown, tmp_path / "unknown.gigavim.zarr")
    assert "blue has" in caplog.text
    assert caplog.text.count("of the stain") == 1

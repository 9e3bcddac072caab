"""A threshold of probability: what it leaves of class maps, and what it says of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import small_runs
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from gigavim.area import CellAreas
from gigavim.geometry import Grid, Spacing
from gigavim.georeference import Registration
from gigavim.pipelines.report import Summary
from gigavim.plugins.napari.results import open_results
from gigavim.plugins.napari.threshold import (
    Above,
    NucleiMap,
    PatchMap,
    read_map,
    registration_of,
)
from gigavim.sources import open_source
from gigavim.store import ResultStore

SPACING = Spacing(0.5, 0.5, "µm", "test")
thresholds = st.floats(0, 1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return small_runs.classified_scene(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return small_runs.slide_with_nuclei(tmp_path_factory.getbasetemp())


def map_of(summary: Summary, head: str) -> PatchMap | NucleiMap:
    assert summary.store is not None
    return read_map(open_results(summary.store), head)


@st.composite
def patch_maps(draw: st.DrawFn) -> PatchMap:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    labels = draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 3)))
    best = draw(arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    best[labels == 0] = np.nan
    areas = draw(arrays.arrays(np.float64, shape[0], elements=st.floats(0, 10)))
    registration = Registration(16, 16, SPACING)
    return PatchMap(
        ("a", "b", "c"), ((1, 1, 1),) * 3, labels, best, CellAreas(areas, "mm²"), registration
    )


@given(patch_maps(), thresholds, thresholds)
def test_a_higher_threshold_never_adds_a_cell_nor_area(
    patches: PatchMap, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    more, less = patches.above(low), patches.above(high)
    assert set(np.unique(less[less != more])) <= {0}
    assert (patches.sizes(high) <= patches.sizes(low)).all()


@given(patch_maps(), thresholds)
def test_areas_are_those_of_the_cells_that_are_left(patches: PatchMap, threshold: float) -> None:
    shown = patches.above(threshold)
    assert patches.areas.of_row is not None
    for label, size in enumerate(patches.sizes(threshold), start=1):
        cells = [patches.areas.of_row[row] for row, _ in np.argwhere(shown == label)]
        assert math.isclose(size, math.fsum(cells), abs_tol=1e-9)


@given(patch_maps())
def test_without_a_threshold_the_map_is_the_stored_one(patches: PatchMap) -> None:
    np.testing.assert_array_equal(patches.above(0), patches.labels)


def test_the_map_follows_the_probabilities_of_the_tokens_exactly(scene: Summary) -> None:
    patches = map_of(scene, "classify")
    assert isinstance(patches, PatchMap)
    group = zarr.open_group(scene.store, mode="r")
    highest = group["tokens/probs"][:].astype(np.float64).max(1)
    rows, columns = group["tokens/grid_index"][:].T
    stored = group["labels/classify/0"][:]
    # Where a token lies exactly at the threshold it stays.
    for threshold in (*np.quantile(highest, (0.1, 0.5, 0.9)), highest.max()):
        shown = patches.above(float(threshold))
        kept = np.zeros(stored.shape, bool)
        kept[rows, columns] = highest >= threshold
        assert 0 < kept.sum() < len(highest)
        np.testing.assert_array_equal(shown, np.where(kept, stored, 0))
    np.testing.assert_array_equal(zarr.open_group(scene.store)["labels/classify/0"][:], stored)


def test_areas_are_those_that_the_run_told(scene: Summary) -> None:
    patches = map_of(scene, "classify")
    np.testing.assert_allclose(patches.sizes(0), list(scene.class_areas.values()))
    assert patches.columns[0] == scene.area_unit
    shares = [float(share) for _, share in patches.rows(0) if share != "–"]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_coarser_levels_are_those_that_the_store_would_have(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (300, 601), np.uint8).repeat(3, 0).repeat(2, 1)
    names, colours, registration = ("a", "b"), ((1, 1, 1), (2, 2, 2)), Registration(16, 16, SPACING)
    with ResultStore.create(tmp_path / "x.zarr", {"version": "0"}) as store:
        store.write_label_map("classify", labels, names, colours, registration)
        stored = store.group["labels/classify"]
        best = np.ones(labels.shape, np.float32)
        areas = CellAreas(None, None, "a test")
        patches = PatchMap(names, colours, labels, best, areas, registration)
        levels = patches.levels(0.5, 4)
        for number, level in enumerate(levels):
            # What a pyramid has beyond the map is background.
            expected = stored[str(number)][:]
            framed = np.zeros(level.shape, np.uint8)
            framed[: expected.shape[0], : expected.shape[1]] = expected
            np.testing.assert_array_equal(level, framed)


@given(
    arrays.arrays(np.float32, (9, 7), elements=st.floats(0, 1, width=32) | st.just(np.nan)),
    thresholds,
    thresholds,
    st.slices(9),
    st.slices(7),
)
def test_pixels_are_compared_where_somebody_looks(
    probabilities: NDArray[np.float32], one: float, other: float, rows: slice, columns: slice
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (9, 7), np.uint8)
    low, high = (Above(labels, probabilities, t) for t in sorted((one, other)))
    assert not (np.asarray(high) > np.asarray(low)).any()
    np.testing.assert_array_equal(low[rows, columns], np.asarray(low)[rows, columns])


def test_nuclei_are_counted_by_their_mean_probability(discs: Summary) -> None:
    nuclei = map_of(discs, "nuclei")
    assert isinstance(nuclei, NucleiMap)
    assert discs.table is not None
    with Path(discs.table).open(newline="") as file:
        found = [float(row["probability"]) for row in csv.DictReader(file)]
    assert nuclei.sizes(0)[0] == discs.nuclei == 12
    assert nuclei.sizes(0.9)[0] == sum(p >= 0.9 for p in found) == 6
    assert nuclei.rows(0) == [("12", f"{discs.nuclei_per_mm2:.0f}")]


def test_pixels_of_less_probable_nuclei_become_background(discs: Summary) -> None:
    nuclei = map_of(discs, "nuclei")
    finest = np.asarray(nuclei.levels(0.9, 2)[0])[:320, :400]
    stored = zarr.open_group(discs.store, mode="r")["labels/nuclei/0"][:]
    assert stored[:, 200:].any()
    assert not finest[:, 200:].any()
    np.testing.assert_array_equal(finest[:, :200] > 0, stored[:, :200] > 0)


def test_clusters_have_no_probability_and_stay_whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    summary = small_runs.clustered_slide(tmp_path_factory.getbasetemp())
    patches = map_of(summary, "clusters")
    assert isinstance(patches, PatchMap)
    assert patches.best is None
    np.testing.assert_array_equal(patches.above(0.99), patches.labels)
    np.testing.assert_allclose(patches.sizes(0.99), list(summary.class_areas.values()))


def test_the_registration_is_that_of_the_run(scene: Summary) -> None:
    assert scene.store is not None
    found = registration_of(open_results(scene.store), "labels/classify")
    source = open_source(scene.image)
    ran = Registration.of(Grid.over(256, 320, patch=8), source)
    assert (found.cell_y, found.cell_x) == pytest.approx((ran.cell_y, ran.cell_x))
    assert (found.corner_y, found.corner_x) == pytest.approx((0, 0), abs=1e-6)
    assert found.transform == pytest.approx(ran.transform)
    assert found.scale == pytest.approx(ran.scale)

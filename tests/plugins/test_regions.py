"""Regions that one is led through: which, in which order, and where they lie in the world."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import small_runs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from gigavim.plugins.napari.regions import connected, order_of, regions_of
from gigavim.plugins.napari.results import open_results
from gigavim.plugins.napari.threshold import PatchMap, read_map
from images import ORIGIN


def flooded(inside: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Return the cells of each connected region, by flooding one after the other."""
    left, regions = set(map(tuple, np.argwhere(inside).tolist())), []
    while left:
        queue, region = deque([left.pop()]), set()
        while queue:
            y, x = queue.popleft()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        regions.append(region)
    return regions


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 10), st.integers(1, 10)),
        elements=st.floats(0, 1, width=32),
    ),
    st.floats(0, 1),
)
def test_every_region_comes_once_and_the_largest_sum_first(
    probability: NDArray[np.float32], threshold: float
) -> None:
    inside = probability >= np.float32(threshold)
    expected = flooded(inside)
    found = connected(inside, probability)
    assert sorted(r.cells for r in found) == sorted(len(cells) for cells in expected)
    totals = [region.total for region in found]
    assert totals == sorted(totals, reverse=True)
    wanted = sorted((sum(float(probability[c]) for c in cells) for cells in expected), reverse=True)
    assert totals == pytest.approx(wanted)
    boxes = {
        (min(y), min(x), max(y) + 1, max(x) + 1)
        for y, x in (zip(*cells, strict=True) for cells in expected)
    }
    assert {(r.top, r.left, r.bottom, r.right) for r in found} == boxes


def test_regions_of_a_scene_lie_where_its_transform_says(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    summary = small_runs.classified_scene(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    results = open_results(summary.store)
    patches = read_map(results, "classify")
    assert isinstance(patches, PatchMap)
    label = int(patches.sizes(0).argmax()) + 1
    regions = regions_of(results, "classify", patches, label, 0)
    largest = max(flooded(patches.labels == label), key=lambda c: sum(patches.best[i] for i in c))
    rows, columns = zip(*largest, strict=True)
    # Cells of 8 pixels of 10 m; y runs south.
    west = ORIGIN[0] + 80 * min(columns)
    east = ORIGIN[0] + 80 * (max(columns) + 1)
    north = ORIGIN[1] - 80 * min(rows)
    south = ORIGIN[1] - 80 * (max(rows) + 1)
    first = regions[0]
    assert (first.y, first.x) == pytest.approx((-(north + south) / 2, (west + east) / 2))
    assert (first.height, first.width) == pytest.approx((north - south, east - west))
    assert f"{len(largest) * 0.0064:.3g} km²" in first.words
    assert "sum of probability" in order_of(patches)


def test_a_higher_threshold_leaves_regions_inside_of_those_there_were(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    summary = small_runs.classified_scene(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    results = open_results(summary.store)
    patches = read_map(results, "classify")
    assert isinstance(patches, PatchMap)
    assert patches.best is not None
    threshold = float(np.nanmedian(patches.best))
    for label in (1, 2, 3):
        whole = regions_of(results, "classify", patches, label, 0)
        parts = regions_of(results, "classify", patches, label, threshold)
        assert all(any(abs(p.y - w.y) <= w.height for w in whole) for p in parts)
        # What is left over is as sure as was asked for.
        means = [float(region.words.split()[-1]) for region in parts]
        assert all(mean >= round(threshold, 2) for mean in means)


def test_nuclei_come_by_their_probability(tmp_path_factory: pytest.TempPathFactory) -> None:
    summary = small_runs.slide_with_nuclei(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    results = open_results(summary.store)
    nuclei = read_map(results, "nuclei")
    everyone = regions_of(results, "nuclei", nuclei, 1, 0)
    assert len(everyone) == 12
    # The dark discs, left of the middle, are the most probable: 0.25 µm to a pixel.
    assert all(region.x < 100 for region in everyone[:6])
    assert all(region.x > 100 for region in everyone[6:])
    assert len(regions_of(results, "nuclei", nuclei, 1, 0.9)) == 6
    middles = {(round(region.y), round(region.x)) for region in everyone}
    assert middles == {(25 + 50 * row, 25 + 50 * column) for row in range(3) for column in range(4)}

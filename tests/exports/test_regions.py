from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.exports.regions import Regions, regions, to_level0
from gigavim.exports.result import Layer, Result
from gigavim.geometry import Spacing
from gigavim.georeference import Registration

MAPS = st.integers(0, 2**32 - 1).map(lambda seed: _map(seed))


def _map(seed: int) -> NDArray[np.uint8]:
    """Patches of three classes and background, from lone cells to large fields."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 4, random.integers(1, 12, 2), np.uint8)
    factor = int(random.integers(1, 5))
    labels = coarse.repeat(factor, 0).repeat(factor, 1)
    noise = random.random(labels.shape) < 0.1
    labels[noise] = random.integers(0, 4, noise.sum(), np.uint8)
    return labels


def regions_of(labels: NDArray[np.uint8]) -> Regions:
    place = Registration(16, 16, Spacing(0.5, 0.5, "µm", "user"))
    layer = Layer("clusters", (labels,), ("a", "b", "c"), ((0, 0, 0),) * 3, place)  # type: ignore[arg-type]
    return regions(None, layer)  # type: ignore[arg-type]


@given(MAPS)
def test_neighbours_share_their_borders_and_nothing_else(labels: NDArray[np.uint8]) -> None:
    found = regions_of(labels)
    assert shapely.is_valid(found.polygons).all()
    assert len(found.polygons) == 0 or shapely.coverage_is_valid(found.polygons)
    overlap = shapely.area(found.polygons).sum() - shapely.area(shapely.union_all(found.polygons))
    assert overlap == pytest.approx(0, abs=1e-6)


@given(MAPS)
def test_no_outline_moves_by_more_than_a_cell(labels: NDArray[np.uint8]) -> None:
    found = regions_of(labels)
    for class_ in (1, 2, 3):
        cells = shapely.union_all(
            [shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(labels == class_)]
        )
        drawn = shapely.union_all(found.polygons[found.classes == class_])
        assert cells.symmetric_difference(drawn).area == 0 or (
            shapely.hausdorff_distance(cells, drawn) <= 1.0
        )


@given(MAPS)
def test_areas_and_shares_are_those_of_the_cells(labels: NDArray[np.uint8]) -> None:
    found = regions_of(labels)
    assert found.areas.sum() == pytest.approx((labels > 0).sum() * 64.0)
    for class_ in (1, 2, 3):
        share = found.shares[found.classes == class_].sum()
        assert share == pytest.approx((labels == class_).sum() / max(1, (labels > 0).sum()))


def test_straight_sides_and_lone_cells_keep_their_corners() -> None:
    labels = np.ones((9, 9), np.uint8)
    labels[4, 4] = 2
    found = regions_of(labels)
    field, cell = found.polygons
    assert cell.equals(shapely.box(4, 4, 5, 5))
    assert field.equals(shapely.box(0, 0, 9, 9) - cell)
    assert len(field.exterior.coords) == 5


def test_stairs_become_a_slope() -> None:
    labels = np.tril(np.full((20, 20), 1, np.uint8))
    (triangle,) = regions_of(labels).polygons
    assert len(triangle.exterior.coords) < 12


def test_the_mean_probability_is_that_of_the_regions_own_class(scene: Result) -> None:
    layer = scene.layer("classify")
    found = regions(scene, layer)
    probs = scene.store.values("tokens/probs").astype(np.float64)
    index = scene.store.values("tokens/grid_index")
    largest = int(np.argmax(found.shares))
    cells = found.numbers[index[:, 0], index[:, 1]] == largest + 1
    expected = probs[cells, found.classes[largest] - 1].mean()
    assert found.probabilities[largest] == pytest.approx(expected, abs=1e-6)


def test_cells_of_overlapping_patches_lie_in_their_middle() -> None:
    square = np.array([shapely.box(0, 0, 1, 1)], object)
    place = Registration(8, 8, Spacing(1, 1, "µm", "user"), corner_y=4, corner_x=4)
    (moved,) = to_level0(square, place)
    assert moved.equals(shapely.box(4, 4, 12, 12))

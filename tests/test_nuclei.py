"""Nuclei told apart, and described once each."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.io import imread

from gigavim.nuclei import NucleiConfig, depth_of, instances, measure

CONFIG = NucleiConfig(smallest=1)


def discs(shape: tuple[int, int], places: list[tuple[float, float, float]]) -> NDArray[np.int32]:
    """Draw discs, each (x, y, radius) with x and y counted from the corner of the image."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    labels = np.zeros(shape, np.int32)
    for number, (cx, cy, radius) in enumerate(places, 1):
        labels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = number
    return labels


def test_touching_nuclei_are_told_apart() -> None:
    truth = discs((60, 80), [(25, 30, 12), (48, 30, 12), (65, 12, 6)])
    found = instances((truth > 0).astype(np.float32), depth_of(truth), CONFIG)
    assert found.max() == 3
    assert ((found > 0) == (truth > 0)).all()
    for number in (1, 2, 3):
        mine = np.bincount(found[truth == number]).argmax()
        both = ((found == mine) & (truth == number)).sum()
        assert both / ((found == mine) | (truth == number)).sum() > 0.95


def test_depth_is_one_in_the_middle_and_nothing_outside() -> None:
    truth = discs((40, 40), [(20.5, 20.5, 10)])
    depth = depth_of(truth)
    assert depth[20, 20] == 1
    assert (depth[truth == 0] == 0).all()
    assert (depth[truth > 0] > 0).all()


def test_a_nucleus_cut_by_the_rim_is_deep_there() -> None:
    truth = discs((40, 40), [(0, 20, 10)])
    assert depth_of(truth)[20, 0] == 1


def test_small_specks_are_no_nuclei() -> None:
    truth = discs((40, 40), [(10, 10, 1.5), (25, 25, 8)])
    found = instances((truth > 0).astype(np.float32), depth_of(truth), NucleiConfig(smallest=20))
    assert len(np.unique(found)) == 2
    assert found[10, 10] == 0


def test_a_nucleus_is_described_where_it_is() -> None:
    truth = discs((64, 96), [(30, 20, 9), (70.25, 40.75, 12)])
    nucleus = np.where(truth > 0, 0.75, 0).astype(np.float32)
    found = measure(truth, nucleus, depth_of(truth), CONFIG, np.s_[0:64, 0:96])
    np.testing.assert_allclose(found.centroids, [(30, 20), (70.25, 40.75)], atol=0.1)
    np.testing.assert_allclose(found.areas, [np.pi * 81, np.pi * 144], rtol=0.03)
    np.testing.assert_allclose(found.probabilities, 0.75)
    first, second = found.outlines()
    np.testing.assert_allclose(np.hypot(*(first - (30, 20)).T), 9, atol=0.8)
    np.testing.assert_allclose(np.hypot(*(second - (70.25, 40.75)).T), 12, atol=0.8)
    np.testing.assert_array_equal(first[0], first[-1])


def test_of_nothing_nothing_is_described() -> None:
    empty = np.zeros((8, 8), np.float32)
    found = measure(instances(empty, empty, CONFIG), empty, empty, CONFIG, np.s_[0:8, 0:8])
    assert found.centroids.shape == found.vertices.shape == (0, 2)
    assert found.outlines() == []


@pytest.mark.parametrize("side", [64, 97, 128])
def test_no_nucleus_is_lost_or_counted_twice_at_the_borders_of_windows(
    shared: Path, side: int
) -> None:
    margin = 64
    folder = shared / "data/labelled/nuclei_dsb2018_cc0"
    with (folder / "index.csv").open(newline="") as file:
        rows = [row["id"] for row in csv.DictReader(file) if row["split"] == "train"]
    labels = [imread(folder / "labels" / f"{name}.png").astype(np.int32) for name in rows[:4]]
    # Blurred at seams and noisy, as predictions are.
    depth = np.vstack([np.hstack([depth_of(each) for each in labels[i : i + 2]]) for i in (0, 2)])
    nucleus = np.vstack([np.hstack([each > 0 for each in labels[i : i + 2]]) for i in (0, 2)])
    noise = np.random.default_rng(0).normal(0, 0.05, depth.shape)
    depth, nucleus = depth + noise, nucleus + noise
    height, width = depth.shape
    whole = measure(
        instances(nucleus, depth, CONFIG), nucleus, depth, CONFIG, np.s_[0:height, 0:width]
    )
    nucleus, depth = (np.pad(each, ((margin, margin + side),) * 2) for each in (nucleus, depth))
    parts = []
    for y in range(0, height, side):
        for x in range(0, width, side):
            seen = np.s_[y : y + side + 2 * margin, x : x + side + 2 * margin]
            found = instances(nucleus[seen], depth[seen], CONFIG)
            owned = np.s_[margin : margin + side, margin : margin + side]
            part = measure(found, nucleus[seen], depth[seen], CONFIG, owned)
            parts.append(part.centroids + np.array([x - margin, y - margin]))
    joined = np.concatenate(parts)
    assert len(whole.centroids) > 100
    assert len(joined) == len(whole.centroids)

    def in_order(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return points[np.lexsort(points.round(3).T)]

    np.testing.assert_allclose(in_order(joined), in_order(whole.centroids), atol=0.5)

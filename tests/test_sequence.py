from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gigavim.geometry import Grid
from gigavim.orders import ORDERS, order_index
from gigavim.sequence import PatchSequence

sides = st.integers(1, 23)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.bool_, shape))
orders = st.sampled_from(ORDERS)


def sequence_of(mask: np.ndarray, order: str, tile: int = 4) -> PatchSequence:
    rows, columns = mask.shape
    grid = Grid.over(rows * 16, columns * 16, patch=16)
    return PatchSequence.from_foreground(grid, mask, order, tile=tile)


def steps(sequence: PatchSequence) -> np.ndarray:
    return np.abs(np.diff(sequence.index, axis=0)).sum(axis=1)


@given(masks, orders)
def test_an_order_visits_every_foreground_patch_once(mask: np.ndarray, order: str) -> None:
    index = np.argwhere(mask)
    permutation = order_index(index, mask.shape, order)
    assert np.array_equal(np.sort(permutation), np.arange(mask.sum()))


@given(masks, orders, st.randoms(use_true_random=False))
def test_an_order_does_not_depend_on_how_the_patches_came(mask, order, random) -> None:
    index = np.argwhere(mask)
    shuffled = index[random.sample(range(len(index)), len(index))]
    expected = index[order_index(index, mask.shape, order)]
    assert np.array_equal(shuffled[order_index(shuffled, mask.shape, order)], expected)


@given(masks, orders)
def test_scatter_undoes_sequence(mask: np.ndarray, order: str) -> None:
    sequence = sequence_of(mask, order)
    picture = np.random.default_rng(0).normal(size=(*mask.shape, 3))
    values = picture[sequence.index[:, 0], sequence.index[:, 1]]
    expected = np.where(mask[..., None], picture, -7.0)
    assert np.array_equal(sequence.scatter(values, -7.0), expected)


@given(masks)
def test_raster_order_is_that_of_argwhere(mask: np.ndarray) -> None:
    assert np.array_equal(sequence_of(mask, "raster").index, np.argwhere(mask))


@given(masks)
def test_column_major_order_is_raster_order_of_the_transposed_grid(mask: np.ndarray) -> None:
    assert np.array_equal(sequence_of(mask, "column-major").index, np.argwhere(mask.T)[:, ::-1])


@given(st.tuples(sides, sides))
def test_neighbours_in_a_snake_are_neighbours_on_the_grid(shape: tuple[int, int]) -> None:
    assert (steps(sequence_of(np.ones(shape, bool), "snake")) == 1).all()


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 64])
def test_neighbours_on_a_hilbert_curve_are_neighbours_on_the_grid(side: int) -> None:
    sequence = sequence_of(np.ones((side, side), bool), "hilbert")
    assert (steps(sequence) == 1).all()
    assert sequence.index[0].tolist() == [0, 0]
    assert sequence.index[-1].tolist() == [0, side - 1]


def test_a_hilbert_curve_fills_a_quadrant_before_the_next() -> None:
    sequence = sequence_of(np.ones((16, 16), bool), "hilbert")
    for quarter in np.split(sequence.index, 4):
        assert (np.ptp(quarter, axis=0) == 7).all()


def test_tile_major_order_fills_a_square_before_the_next_in_raster_order() -> None:
    index = sequence_of(np.ones((6, 10), bool), "tile-major").index
    squares = index // 4
    number = squares[:, 0] * 3 + squares[:, 1]
    assert (np.diff(number) >= 0).all()
    for square in np.unique(number):
        inside = index[number == square]
        assert inside.tolist() == sorted(inside.tolist())


@given(masks, orders)
def test_positions_are_those_of_the_patches_and_minus_1_elsewhere(mask, order) -> None:
    sequence = sequence_of(mask, order)
    assert np.array_equal(sequence.positions_of(sequence.index), np.arange(len(sequence)))
    assert (sequence.positions_of(np.argwhere(~mask)) == -1).all()
    rows, columns = mask.shape
    beyond = np.array([(-1, 0), (0, -1), (rows, 0), (0, columns), (-rows, -columns)])
    assert (sequence.positions_of(beyond) == -1).all()


@given(masks, st.integers(1, 50))
def test_chunks_cover_the_sequence_without_a_gap(mask: np.ndarray, size: int) -> None:
    sequence = sequence_of(mask, "snake")
    positions = np.arange(len(sequence))
    parts = [positions[chunk] for chunk in sequence.chunks(size)]
    assert all(0 < len(part) <= size for part in parts)
    assert np.array_equal(np.concatenate([[], *parts]), positions)


def test_coords_are_level_0_x_and_y() -> None:
    grid = Grid.over(100, 300, patch=16, ratio_y=2.0, ratio_x=4.0)
    mask = np.zeros(grid.shape, bool)
    mask[1, 3] = True
    assert PatchSequence.from_foreground(grid, mask, "raster").coords.tolist() == [[192, 32]]


def test_an_unknown_order_and_a_mask_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="there are raster, snake"):
        sequence_of(np.ones((3, 3), bool), "zigzag")
    with pytest.raises(ValueError, match=r"\(2, 3\) for a grid of \(2, 2\)"):
        PatchSequence.from_foreground(Grid.over(32, 32, patch=16), np.ones((2, 3), bool), "snake")
    with pytest.raises(ValueError, match="2 values for a sequence of 9"):
        sequence_of(np.ones((3, 3), bool), "snake").scatter(np.zeros(2), 0)

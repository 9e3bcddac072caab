from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigavim.errors import GigavimError
from gigavim.pipelines.train.split import split_by_group, split_hash
from gigavim.pipelines.train.tiles import SplitName, Tile, TileSet


def tile_set(tiles: list[Tile]) -> TileSet:
    return TileSet(tuple(tiles), np.zeros((len(tiles), 1, 1, 3), np.uint8))


def grouped(groups: int, each: int = 3) -> TileSet:
    """Groups of two classes."""
    return tile_set(
        [Tile(f"{g}/{i}", "ab"[i % 2], f"group {g}") for g in range(groups) for i in range(each)]
    )


@given(st.integers(3, 40), st.integers(0, 10))
def test_no_group_is_torn_and_no_split_is_empty(groups: int, seed: int) -> None:
    divided = split_by_group(grouped(groups), seed)

    splits: dict[str, set[object]] = {}
    for tile in divided.tiles:
        splits.setdefault(tile.group, set()).add(tile.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {tile.split for tile in divided.tiles} == {"train", "val", "test"}


def test_a_seed_and_tiles_give_one_split() -> None:
    assert split_hash(split_by_group(grouped(20), 1)) == split_hash(split_by_group(grouped(20), 1))
    assert split_hash(split_by_group(grouped(20), 1)) != split_hash(split_by_group(grouped(20), 2))


def test_a_split_that_is_given_is_kept_and_validation_is_taken_from_training() -> None:
    tiles = tile_set(
        [Tile(f"{i}", "ab"[i % 2], f"{i}", "test" if i < 6 else "train") for i in range(30)]
    )

    divided = split_by_group(tiles)

    assert [tile.split for tile in divided.tiles[:6]] == ["test"] * 6
    assert Counter(tile.split for tile in divided.tiles[6:]) == {"train": 20, "val": 4}


def test_tiles_without_groups_are_said_to_be_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split_by_group(tile_set([Tile(f"{i}", "a", f"{i}") for i in range(12)]))

    assert "tiles have no groups" in caplog.text


def test_a_class_that_is_never_tested_is_said_to_be_so(caplog: pytest.LogCaptureFixture) -> None:
    splits: list[tuple[str, SplitName]] = [("a", "train"), ("b", "train"), ("a", "val"),
                                           ("b", "val"), ("a", "test")]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        split_by_group(tile_set([Tile(f"{i}", c, f"{i}", s) for i, (c, s) in enumerate(splits)]))

    assert "class 'b' has no tile in split 'test'" in caplog.text


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (
            [Tile("1", "a", "slide", "train"), Tile("2", "a", "slide", "test")],
            "1 groups are in more than one split, as 'slide'",
        ),
        ([Tile("1", "a", "1", "train"), Tile("2", "a", "2")], "1 of 2 tiles have no split"),
        ([Tile("1", "a", "1"), Tile("2", "a", "1")], "1 groups cannot be split"),
        (
            [
                Tile("1", "a", "1", "train"),
                Tile("2", "a", "2", "val"),
                Tile("3", "b", "3", "test"),
            ],
            "class 'b' has no tile to train on",
        ),
    ],
)
def test_a_faulty_split_is_one_clear_error(tiles: list[Tile], message: str) -> None:
    with pytest.raises(GigavimError, match=message):
        split_by_group(tile_set(tiles))

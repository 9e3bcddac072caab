"""Which tiles are trained on, which choose the model, and which are kept for its figures.

Groups are split, never tiles: with tiles of one slide on both sides, a figure holds for that slide
alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from gigavim.errors import GigavimError
from gigavim.pipelines.train.tiles import (
    SPLITS,
    SplitName,
    Tile,
    TileSet,
    tiles_in_table,
    with_splits,
)

logger = logging.getLogger(__name__)

PARTS = 6
"""Of these, one is for validation and one for the test."""


def split_by_group(tiles: TileSet, seed: int = 0) -> TileSet:
    """Give each tile its split: the one that it comes with, or one of its group.

    Where no tile comes with a split, a sixth of the groups is for validation and a sixth for the
    test, with the classes shared out evenly; where only those for validation are missing, a sixth
    of the training groups is taken.

    Raises
    ------
    GigavimError
        If a group is in two splits, some tiles have a split and others none, there are too few
        groups, or a class has nothing to be trained on.
    """
    given = [tile.split for tile in tiles.tiles]
    if None in given and any(given):
        raise GigavimError(
            f"{given.count(None)} of {len(given)} tiles have no split; give one to all or to none"
        )
    if all(tile.group == tile.file for tile in tiles.tiles):
        logger.warning(
            "tiles have no groups: neighbours may fall on both sides of the split, and figures "
            "come out too good; a CSV with a column group keeps them together"
        )
    check_groups(tiles.tiles)
    splits: list[SplitName] = [split or "train" for split in given]
    if None in given:
        _take(tiles.tiles, splits, "test", seed)
    if "val" not in splits:
        _take(tiles.tiles, splits, "val", seed + 1)
    divided = with_splits(tiles, splits)
    _check_classes(divided.tiles)
    return divided


def _take(tiles: Sequence[Tile], splits: list[SplitName], name: SplitName, seed: int) -> None:
    """Move some of the training groups to another split."""
    rows = [i for i, split in enumerate(splits) if split == "train"]
    groups = [tiles[i].group for i in rows]
    labels = [tiles[i].label for i in rows]
    parts = min(PARTS, len(set(groups)), max(Counter(labels).values()))
    needed = 3 if name == "test" else 2
    if parts < needed:
        raise GigavimError(
            f"{parts} groups cannot be split for training, validation and test; at least {needed} "
            "are needed, and as many of a class"
        )
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):
        # A class in fewer groups than parts is absent from some; that is said where it matters.
        _, taken = next(folds.split(np.zeros(len(rows)), labels, groups))
    for i in taken:
        splits[rows[i]] = name


def check_groups(tiles: Sequence[Tile]) -> None:
    """See that each group is in one split as a whole.

    Raises
    ------
    GigavimError
        If one is in two.
    """
    splits_of = defaultdict(set)
    for tile in tiles:
        splits_of[tile.group].add(tile.split)
    torn = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if torn:
        raise GigavimError(
            f"{len(torn)} groups are in more than one split, as {torn[0]!r}; "
            "a patient, slide or scene belongs to one of them as a whole"
        )


def _check_classes(tiles: Sequence[Tile]) -> None:
    counts = Counter((tile.label, tile.split) for tile in tiles)
    for name in sorted({tile.label for tile in tiles}):
        for split in SPLITS:
            if counts[name, split]:
                continue
            if split == "train":
                raise GigavimError(f"class {name!r} has no tile to train on; add some, or drop it")
            logger.warning("class %r has no tile in split %r; its figures mean little", name, split)


def split_table(tiles: TileSet) -> str:
    """Return the CSV ``file,label,group,split`` by which the same split can be had again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "group", "split"])
    ordered = sorted(tiles.tiles, key=lambda tile: tile.file)
    writer.writerows((tile.file, tile.label, tile.group, tile.split) for tile in ordered)
    return text.getvalue()


def split_hash(tiles: TileSet) -> str:
    """Return the SHA-256 of `split_table`, in hexadecimal."""
    return hashlib.sha256(split_table(tiles).encode()).hexdigest()


def write_split(path: Path, tiles: TileSet) -> None:
    """Write `split_table` to a file."""
    path.write_text(split_table(tiles), encoding="utf-8", newline="\n")


def split_of(tiles: TileSet, path: Path) -> TileSet:
    """Give tiles the split and groups of a table that `write_split` wrote, if it names them all."""
    by_file = {tile.file: tile for tile in tiles_in_table(path, there=False)}
    if any(tile.file not in by_file for tile in tiles.tiles):
        return tiles
    listed = [by_file[tile.file] for tile in tiles.tiles]
    return replace(tiles, tiles=tuple(listed))

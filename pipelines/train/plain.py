"""Images without labels: which there are, and which of them are not learned from."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gigavim.errors import GigavimError
from gigavim.pipelines.train.listing import ListedImage, NamedImage, open_alike
from gigavim.pipelines.train.project import Project
from gigavim.pipelines.train.split import check_groups
from gigavim.pipelines.train.tiles import IMAGES, Tile, TileSet, split_named

SUFFIXES = IMAGES | {".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".dcm", ".jp2"}
"""Of the files in folders that are taken for images."""
FIELDS = {"file", "group", "split", "spacing"}
"""Columns of a table; ``spacing`` is for files that do not say it."""
HELD_OUT = 10
"""One group in so many chooses the weights, where a table does not say which; of fewer, none."""


def plain_images(
    paths: Sequence[str | Path], project: Project
) -> tuple[list[ListedImage], TileSet]:
    """List images without labels, and open all but those of the split ``test``.

    Parameters
    ----------
    paths
        Images, and folders of them. If the project's data is a table, the one folder in which the
        files of the table are.

    Returns
    -------
    images
        Of the splits ``train`` and ``val``.
    split
        All that are listed, without labels.

    Raises
    ------
    GigavimError
        If there are none, the table is at fault, a group is in two splits, or no image can be
        read. Single images that cannot be read are left out, with a warning.
    """
    named = _in_table(paths, project) if project.data else _in_folders(paths, project)
    tiles = tuple(_held_out([each.tile for each in named]))
    check_groups(tiles)
    divided = [
        dataclasses.replace(each, tile=tile) for each, tile in zip(named, tiles, strict=True)
    ]
    learned = [each for each in divided if each.tile.split != "test"]
    return open_alike(learned, project.bands), TileSet(tiles, np.empty(0))


def _in_folders(paths: Sequence[str | Path], project: Project) -> list[NamedImage]:
    """List images, those of folders by their names; a folder of OME-Zarr is an image."""
    files: list[tuple[str, Path]] = []
    for path in map(Path, paths):
        if path.is_dir() and path.suffix != ".zarr":
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise GigavimError(f"{path}: no image is in this folder; name the files")
            names = [f"{path.resolve().name}/{f.relative_to(path).as_posix()}" for f in inside]
            files += zip(names, inside, strict=True)
        else:
            files.append((path.name, path))
    return [NamedImage(Tile(name, "", name), file, project.source_spacing) for name, file in files]


def _in_table(paths: Sequence[str | Path], project: Project) -> list[NamedImage]:
    """List the images of the project's table."""
    table = Path(project.data)
    if len(paths) != 1 or not Path(paths[0]).is_dir():
        raise GigavimError(
            f"{table} names the images; give the one folder that its files are in, not "
            f"{', '.join(map(str, paths))}"
        )
    folder = Path(paths[0])
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        named = [_named(row, folder, project) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise GigavimError(f"{table} is no readable table ({error}); correct it") from error
    if not named:
        raise GigavimError(f"{table} names no image; it needs lines of file,group,split")
    missing = [each for each in named if each.tile.split != "test" and not each.path.exists()]
    if missing:
        raise GigavimError(
            f"{table} names {len(missing)} files that are not in {folder}, as "
            f"{missing[0].tile.file}; give the folder that they are in"
        )
    return named


def _named(row: dict[str, str], folder: Path, project: Project) -> NamedImage:
    if set(row) - FIELDS or not row.get("file"):
        raise ValueError(f"a line is {row}, and has file, perhaps group, split and spacing")
    split = split_named(row["split"]) if row.get("split") else None
    tile = Tile(row["file"], "", row.get("group") or row["file"], split)
    spacing = float(row["spacing"]) if row.get("spacing") else project.source_spacing
    return NamedImage(tile, folder / row["file"], spacing)


def _held_out(tiles: Sequence[Tile]) -> list[Tile]:
    """Give each image its split; where none is for validation, a tenth of the groups is."""
    given = [tile.split for tile in tiles]
    if None in given and any(given):
        raise GigavimError(
            f"{given.count(None)} of {len(given)} images have no split; give one to all or to none"
        )
    if "val" in given:
        return list(tiles)
    groups = list(dict.fromkeys(tile.group for tile in tiles if tile.split != "test"))
    held_out = groups[::HELD_OUT] if len(groups) >= HELD_OUT else ()
    return [
        tile
        if tile.split == "test"
        else dataclasses.replace(tile, split="val" if tile.group in held_out else "train")
        for tile in tiles
    ]

"""Which images a project names, with annotations or with one label each, and their split."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gigavim.errors import GigavimError, SourceError
from gigavim.pipelines.train.project import Project
from gigavim.pipelines.train.split import split_by_group, split_of
from gigavim.pipelines.train.tiles import Tile, TileSet, split_named, tiles_in_table
from gigavim.sources import Source, open_source

logger = logging.getLogger(__name__)

FIELDS = {"file", "labels", "group", "split"}


@dataclass(frozen=True)
class ListedImage:
    """A slide or scene that is trained on or measured with."""

    tile: Tile
    """Its file and split; its label is its class, or the file of its annotations."""
    source: Source


@dataclass(frozen=True)
class NamedImage:
    """An image that was named, and is perhaps never opened."""

    tile: Tile
    path: Path
    spacing: float | None
    """Of its pixels, where the file does not say it."""


def names_annotations(project: Project) -> bool:
    """Tell whether a project is of images with annotations: it lists them, or its table does."""
    path = Path(project.data)
    if project.images or path.suffix.lower() != ".csv" or not path.is_file():
        return bool(project.images)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return "labels" in next(csv.reader(file), [])


def folder_of(project: Project) -> Path:
    """Return where the files of a project are looked for."""
    data = Path(project.data)
    return data if project.images else data.parent


def annotated_images(project: Project) -> list[ListedImage]:
    """List and open the images of a project, each with the file of its annotations.

    Raises
    ------
    GigavimError
        If the list cannot be read, names files that are not there, or none can be opened. Single
        images that cannot be opened are left out, with a warning.
    """
    tiles = [_tile(row, project) for row in _rows(project)]
    folder = folder_of(project)
    named = [name for tile in tiles for name in (tile.file, tile.label)]
    missing = [name for name in named if not (folder / name).exists()]
    if missing:
        raise GigavimError(
            f"{len(missing)} files of {len(named)} are not there, as {missing[0]}; "
            f"they are looked for in {folder}"
        )
    return _opened(folder, tiles, project)


def labelled_images(project: Project) -> list[ListedImage]:
    """List and open the images of a table ``file,label[,group][,split]``.

    Raises
    ------
    GigavimError
        As `annotated_images`.
    """
    table = Path(project.data)
    if table.suffix.lower() != ".csv" or not table.is_file():
        raise GigavimError(
            f"{table}: no such table; images with one label each come in a CSV file,label,group"
        )
    return _opened(table.parent, tiles_in_table(table), project)


def table_of(images: Sequence[ListedImage]) -> TileSet:
    """Return what the split is written from."""
    return TileSet(tuple(each.tile for each in images), np.empty(0))


def _rows(project: Project) -> list[dict[str, str]]:
    if project.images:
        return [dict(row) for row in project.images]
    path = Path(project.data)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows: list[dict[str, str]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GigavimError(f"{path} is no readable table ({error}); save it as CSV") from error
    if not rows:
        raise GigavimError(f"{path} names no image; it needs lines of file,labels,group")
    return rows


def _tile(row: dict[str, str], project: Project) -> Tile:
    unknown = sorted(set(row) - FIELDS)
    if unknown or not row.get("file") or not row.get("labels"):
        raise GigavimError(
            f"an image of {project.data} is {row}; it needs file and labels, perhaps group and "
            "split, and nothing else"
        )
    split = split_named(row["split"]) if row.get("split") else None
    return Tile(row["file"], row["labels"], row.get("group") or row["file"], split)


def _opened(folder: Path, tiles: Sequence[Tile], project: Project) -> list[ListedImage]:
    named = [NamedImage(tile, folder / tile.file, project.source_spacing) for tile in tiles]
    return open_alike(named, project.bands)


def open_alike(named: Sequence[NamedImage], bands: Sequence[str]) -> list[ListedImage]:
    """Open images that are alike in bands and numbers.

    Raises
    ------
    GigavimError
        If they are not, or none can be opened. Single images that cannot be are left out, with a
        warning.
    """
    opened, faults = [], []
    for each in named:
        try:
            source = open_source(each.path, bands=bands or None)
            if source.spacing is None and each.spacing is not None:
                source = open_source(each.path, bands=bands or None, source_spacing=each.spacing)
        except SourceError as error:
            faults.append(str(error))
            continue
        opened.append(ListedImage(each.tile, source))
    if not opened:
        raise GigavimError(f"no image can be read, the first is {faults[0]}")
    if faults:
        logger.warning(
            "%d of %d images cannot be read and are left out, as %s",
            len(faults), len(named), faults[0],
        )  # fmt: skip
    first = opened[0].source
    for other in opened:
        if len(other.source.bands) != len(first.bands) or other.source.dtype != first.dtype:
            raise GigavimError(
                f"{other.source.path} has {len(other.source.bands)} bands of {other.source.dtype}, "
                f"and {first.path} {len(first.bands)} of {first.dtype}; choose the same with bands"
            )
    return opened


def divided(listed: Sequence[ListedImage], seed: int, *, by_label: bool) -> list[ListedImage]:
    """Give each image the split that it comes with, or one of its group, as `split_by_group` does.

    Parameters
    ----------
    by_label
        Whether labels are classes, to be shared out evenly, and not files.

    Raises
    ------
    GigavimError
        As `split_by_group`.
    """
    table = table_of(listed)
    if not by_label:
        table = replace(table, tiles=tuple(replace(t, label="annotated") for t in table.tiles))
    return _in_splits(listed, split_by_group(table, seed))


def tested(listed: Sequence[ListedImage], beside: Path) -> tuple[str, list[ListedImage]]:
    """Return the images that a model is measured with, and what they are.

    Those of the split ``test``, if images come with a split or are those of the table that was
    written beside the model; else ``all``.
    """
    if beside.is_file() and all(each.tile.split is None for each in listed):
        listed = _in_splits(listed, split_of(table_of(listed), beside))
    test = [each for each in listed if each.tile.split == "test"]
    return ("test", test) if test else ("all", list(listed))


def _in_splits(listed: Sequence[ListedImage], table: TileSet) -> list[ListedImage]:
    return [
        replace(each, tile=replace(each.tile, group=tile.group, split=tile.split))
        for each, tile in zip(listed, table.tiles, strict=True)
    ]

"""Labelled tiles: folders, archives and tables of them, decoded once into one array."""

from __future__ import annotations

import csv
import io
import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from gigavim.errors import GigavimError

logger = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One image with one label."""

    file: str
    """Relative to the folder, archive or table that lists it, with ``/``."""
    label: str
    group: str
    """What must not be split: a patient, a slide, a scene; the file itself where none is given."""
    split: SplitName | None = None
    """None where it is not given."""


@dataclass(frozen=True, slots=True)
class TileSet:
    """Tiles and their pixels, in one order."""

    tiles: tuple[Tile, ...]
    pixels: NDArray[Any]
    """As stored, shape (n, height, width, band)."""

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the index of each tile's class, shape (n,)."""
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[tile.label] for tile in self.tiles], np.int64)

    def rows(self, split: SplitName) -> NDArray[np.int64]:
        """Return which tiles are in a split, shape (m,)."""
        return np.flatnonzero([tile.split == split for tile in self.tiles])


def read_tiles(path: str | Path) -> TileSet:
    """Read a data set of labelled tiles.

    Parameters
    ----------
    path
        A folder with a folder of images for each class, the same as a zip archive, which is read in
        place, or a table ``file,label`` with the optional columns ``group`` and ``split``. In
        folders and archives, folders ``train``, ``val`` and ``test`` above the classes are splits.

    Raises
    ------
    GigavimError
        If there are no tiles, the table names files that are not there, a class has none, or tiles
        differ in size or bands. Tiles that cannot be read are left out, with a warning.
    """
    path = Path(path)
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                folders = [name for name in archive.namelist() if name.endswith("/")]
                files = [name for name in archive.namelist() if not name.endswith("/")]
                return _decoded(path, tiles_in_folders(path, files, folders), archive.read)
        except (OSError, zipfile.BadZipFile) as error:
            raise GigavimError(f"{path} is no readable archive ({error}); get it again") from error
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        files = [file.relative_to(path).as_posix() for file in inside if file.is_file()]
        folders = [file.relative_to(path).as_posix() for file in inside if file.is_dir()]
        return _decoded(path, tiles_in_folders(path, files, folders), _bytes_in(path))
    if path.suffix.lower() == ".csv" and path.is_file():
        return _decoded(path, tiles_in_table(path), _bytes_in(path.parent))
    raise GigavimError(
        f"{path}: no such folder, .zip, .csv or .toml; give a folder with one folder of tiles per "
        "class, a zip of it, a CSV with the columns file, label and group, or a project.toml"
    )


def tiles_in_folders(path: Path, files: Sequence[str], folders: Sequence[str]) -> list[Tile]:
    """List tiles by the folders they are in, ``[root/][split/]class/file``."""
    images = [PurePosixPath(name) for name in files if PurePosixPath(name).suffix.lower() in IMAGES]
    images = sorted(name for name in images if not name.name.startswith("."))
    if not images or any(len(name.parts) < 2 for name in images):
        raise GigavimError(
            f"{path}: {'there are tiles outside of folders' if images else 'no tiles were found'}; "
            "expected one folder of images for each class, named as the class"
        )
    top = 0
    while all(len(name.parts) > top + 2 for name in images) and (
        len({name.parts[top] for name in images}) == 1 and images[0].parts[top] not in SPLITS
    ):
        top += 1
    tops = {name.parts[top] for name in images}
    divided = tops <= set(SPLITS) and all(len(name.parts) > top + 2 for name in images)
    depth = top + divided
    tiles = [
        Tile(
            str(name),
            name.parts[depth],
            str(name),
            split_named(name.parts[top]) if divided else None,
        )
        for name in images
    ]
    found = {tile.label for tile in tiles}
    parts = [PurePosixPath(folder).parts for folder in folders]
    empty = sorted({part[depth] for part in parts if len(part) == depth + 1} - found)
    if empty:
        raise GigavimError(
            f"{path}: {_some(empty, 'class')} has no tile; fill or remove the folder"
        )
    return tiles


def tiles_in_table(path: Path, *, there: bool = True) -> list[Tile]:
    """List the tiles of a CSV ``file,label[,group][,split]``; files are relative to it.

    Parameters
    ----------
    there
        Whether the files are looked for.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GigavimError(f"{path} is no readable table ({error}); save it as CSV") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        has = ", ".join(rows[0]) if rows else "no rows"
        raise GigavimError(
            f"{path} has {has}; it needs the columns file and label, and better group too"
        )
    tiles = [
        Tile(
            row["file"],
            row["label"],
            row.get("group") or row["file"],
            split_named(row["split"]) if row.get("split") else None,
        )
        for row in rows
    ]
    unlabelled = [tile.file for tile in tiles if not tile.label]
    if unlabelled:
        raise GigavimError(f"{path}: {_some(unlabelled, 'file')} has no label; add or remove it")
    missing = [tile.file for tile in tiles if not (path.parent / tile.file).is_file()]
    if there and missing:
        raise GigavimError(
            f"{path} names {len(missing)} files that are not there, as {missing[0]}; "
            "files are looked for in the folder of the table"
        )
    counts = Counter(tile.file for tile in tiles)
    twice = [file for file, count in counts.items() if count > 1]
    if twice:
        raise GigavimError(f"{path}: {_some(twice, 'file')} is listed twice; keep one line of it")
    return tiles


def split_named(name: str) -> SplitName:
    """Return the split of a name."""
    for split in SPLITS:
        if name == split:
            return split
    raise GigavimError(f"there is no split {name!r}; there are {', '.join(SPLITS)}")


def _some(names: Sequence[str], what: str) -> str:
    """Name the first and count the others."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{what} {names[0]!r}{more}"


def _bytes_in(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _decoded(path: Path, tiles: Sequence[Tile], read: Callable[[str], bytes]) -> TileSet:
    """Decode all tiles; those that cannot be are left out."""
    pixels: NDArray[Any] | None = None
    kept: list[Tile] = []
    faults: list[str] = []
    for tile in tiles:
        try:
            image = decode(read(tile.file))
        except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
            faults.append(f"{tile.file} ({str(error).splitlines()[0]})")
            continue
        if pixels is None:
            pixels = _room((len(tiles), *image.shape), image.dtype)
        if image.shape != pixels.shape[1:] or image.dtype != pixels.dtype:
            raise GigavimError(
                f"{path}: {tile.file} is {image.shape} {image.dtype}, and {kept[0].file} is "
                f"{pixels.shape[1:]} {pixels.dtype}; tiles need one height, width and number of "
                "bands: cut them to one size"
            )
        pixels[len(kept)] = image
        kept.append(tile)
    if pixels is None:
        raise GigavimError(f"{path}: no tile can be read, the first is {faults[0]}; get them again")
    if faults:
        logger.warning(
            "%s: %d of %d tiles cannot be read and are left out, as %s",
            path, len(faults), len(tiles), faults[0],
        )  # fmt: skip
    gone = sorted({tile.label for tile in tiles} - {tile.label for tile in kept})
    if gone:
        raise GigavimError(
            f"{path}: {_some(gone, 'class')} has no tile that can be read; get its tiles again"
        )
    return TileSet(tuple(kept), pixels[: len(kept)])


def decode(content: bytes) -> NDArray[Any]:
    """Decode an image file, shape (height, width, band), without its alpha band.

    Raises
    ------
    OSError, SyntaxError, ValueError
        If it cannot be read in full; which one is up to the decoder.
    """
    if content[:2] in (b"II", b"MM"):
        return _decode_tiff(content)
    # GDAL takes half a PNG for a whole one, Pillow does not.
    with Image.open(io.BytesIO(content)) as image:
        opaque = image if image.mode in ("L", "RGB", "I;16") else image.convert("RGB")
        values = np.asarray(opaque)
    return values if values.ndim == 3 else values[..., None]


def _decode_tiff(content: bytes) -> NDArray[Any]:
    """Decode a TIFF of any number of bands."""
    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            MemoryFile(content) as memory,
            memory.open() as image,
        ):
            colours = enumerate(image.colorinterp, 1)
            bands = [index for index, colour in colours if colour != ColorInterp.alpha]
            values: NDArray[Any] = image.read(bands)
    except RasterioError as error:
        raise OSError(str(error)) from error
    return values.transpose(1, 2, 0)


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an empty array, in memory if it takes at most half of what is free, else on disk."""
    if np.prod(shape, dtype=np.int64) * dtype.itemsize < psutil.virtual_memory().available // 2:
        return np.empty(shape, dtype)
    with TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def with_splits(tiles: TileSet, splits: Sequence[SplitName]) -> TileSet:
    """Return the same tiles in other splits."""
    moved = (replace(tile, split=split) for tile, split in zip(tiles.tiles, splits, strict=True))
    return replace(tiles, tiles=tuple(moved))

"""What a batch is to do: from files, folders, globs and tables to jobs with a store each."""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from gigavim.config import Mode, RunConfig
from gigavim.errors import GigavimError
from gigavim.orders import ORDERS
from gigavim.store.naming import SUFFIX, store_path

SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide",
     ".czi", ".dcm", ".jp2", ".img", ".vrt", ".nc")
)  # fmt: skip
"""Of files that are taken from a folder; one that is named is taken whatever it is called."""
SERIES = re.compile(rb"\x20\x00\x0d\x00UI..[\d.\0]+\x20\x00\x0e\x00UI..([\d.]+)", re.DOTALL)
"""Study and series of a DICOM file, which stand side by side in explicit little-endian, PS3.5."""
DICOM_HEADER = 1 << 18
"""Bytes from its start in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be mapped."""

    image: str
    store: Path
    config: RunConfig


@dataclass(frozen=True, slots=True)
class _Found:
    """An image that was named, or found in a folder."""

    image: str
    config: RunConfig
    name: str
    """Of its store in the output folder, with slashes."""
    line: str = ""
    """Where it is from, for messages."""
    chosen: bool = False
    """Whether the user gave the name."""


def read_manifest(entries: Sequence[str], output: Path, config: RunConfig) -> list[Job]:
    """Find all images of a batch.

    Parameters
    ----------
    entries
        Files; folders, which are searched with all that is in them; globs; and tables, ``*.csv``,
        with a column ``image`` and others of `COLUMNS`, which go before ``config`` where a cell is
        not empty. Paths in a table are relative to it.
    output
        Stores lie here as the images lie in their folder. Images that would have the same store get
        a few letters more, which depend on nothing but the image and its settings.

    Returns
    -------
    jobs
        Each image and its settings once.

    Raises
    ------
    GigavimError
        If a table cannot be read or has unknown columns or values, a store would lie outside
        ``output``, or there are no images.
    """
    found = {
        (os.path.realpath(item.image), item.config, item.chosen and item.name): item
        for item in itertools.chain.from_iterable(_of(entry, config) for entry in entries)
    }
    if not found:
        raise GigavimError(f"no images in {', '.join(entries)}; check the path")
    # Also for disks that do not tell large letters from small ones.
    uses = Counter(item.name.casefold() for item in found.values())
    inside = Path(os.path.realpath(output))
    jobs = []
    for item in found.values():
        name = item.name
        if uses[name.casefold()] > 1:
            if item.chosen:
                raise GigavimError(
                    f"{item.line}: output {name} is that of another image too; give each its own"
                )
            name = name.removesuffix(SUFFIX) + f"-{_digest(item)}{SUFFIX}"
        store = output / name
        if not Path(os.path.realpath(store)).is_relative_to(inside):
            raise GigavimError(
                f"{item.line or item.image}: {store} leads out of {output}; remove the link there"
            )
        jobs.append(Job(item.image, store, item.config))
    return jobs


def _of(entry: str, config: RunConfig) -> Iterator[_Found]:
    """Yield the images of what a user named."""
    path = Path(entry)
    if path.suffix.lower() == ".csv":
        yield from _table(path, config)
    elif path.exists() or not glob.has_magic(entry):
        yield from _path(path, config)
    else:
        matches = sorted(glob.glob(entry, recursive=True))  # noqa: PTH207 - also of absolute ones
        if not matches:
            raise GigavimError(f"nothing matches {entry}; check the path")
        for match in matches:
            yield from _path(Path(match), config)


def _path(path: Path, config: RunConfig) -> Iterator[_Found]:
    """Yield an image, or those of a folder."""
    if path.is_dir() and not _is_image(path):
        for image in _search(path):
            inside = image.relative_to(path).parent.as_posix()
            yield _Found(str(image), config, str(PurePosixPath(inside, _name(str(image)))))
    else:
        yield _Found(str(path), config, _name(str(path)))


def _search(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder in the order of their names; a series of files once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        real = os.path.realpath(here)
        if real in seen:  # a link that leads in circles
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in list(folders):
            # The pixels of an MRXS slide lie in a folder beside it.
            pixels = f"{name}.mrxs" in files
            if pixels or name.endswith(SUFFIX) or _is_image(here / name):
                folders.remove(name)
            if not pixels and not name.endswith(SUFFIX) and _is_image(here / name):
                yield here / name
        series: set[bytes] = set()
        for name in sorted(files):
            path = here / name
            if path.suffix.lower() not in SUFFIXES or _is_result(path):
                continue
            if path.suffix.lower() == ".dcm":
                uid = dicom_series(path)
                if uid in series:
                    continue
                series |= {uid} if uid else set()
            yield path


def _is_image(folder: Path) -> bool:
    """Tell whether a folder is one image: OME-Zarr, or a Sentinel-2 product."""
    if folder.suffix == ".SAFE":
        return True
    return any((folder / name).is_file() for name in ("zarr.json", ".zattrs"))


def _is_result(path: Path) -> bool:
    """Tell whether a file is a map that a run put beside its store, ``NAME.HEAD.tif``."""
    stem, dot, head = path.stem.rpartition(".")
    if not dot or head not in ("classify", "clusters", "nuclei"):
        return False
    return path.with_name(f"{stem}{SUFFIX}").is_dir()


def dicom_series(path: Path) -> bytes | None:
    """Return the series of a DICOM file; None where it does not say it, or cannot be read."""
    try:
        with path.open("rb") as file:
            match = SERIES.search(file.read(DICOM_HEADER))
    except OSError:
        return None
    return match and match[1]


def _name(image: str) -> str:
    return store_path(image, Path(), alone=False).name


def _digest(item: _Found) -> str:
    """Return letters that tell an image and its settings from others, today and tomorrow."""
    settings = json.dumps(item.config.as_dict(), sort_keys=True)
    return hashlib.sha256(f"{os.path.abspath(item.image)}\0{settings}".encode()).hexdigest()[:8]  # noqa: PTH100 - links stay


def _table(path: Path, config: RunConfig) -> Iterator[_Found]:
    """Yield the images of a table, a row at a time."""
    try:
        # Excel begins with a mark; where it writes commas in numbers, it puts semicolons between.
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = ";" if ";" in first and "," not in first else ","
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip().lower() for name in next(rows, [])]
            _check_header(path, names)
            for cells in rows:
                if any(cell.strip() for cell in cells):
                    yield _row(path, rows.line_num, names, cells, config)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise GigavimError(
            f"{path} cannot be read: {fault}; a table is CSV in UTF-8, with a line of names"
        ) from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    known = f"there are image, output, {', '.join(COLUMNS)}"
    for name in names:
        if name not in ("image", "output", *COLUMNS):
            raise GigavimError(f"{path}, line 1: there is no column {name!r}; {known}")
        if names.count(name) > 1:
            raise GigavimError(f"{path}, line 1: the column {name!r} is there twice; remove one")
    if "image" not in names:
        raise GigavimError(f"{path}, line 1: it has no column 'image'; {known}")


def _row(
    path: Path, number: int, names: Sequence[str], cells: Sequence[str], config: RunConfig
) -> _Found:
    """Read a row; empty cells say nothing."""
    line = f"{path}, line {number}"
    if len(cells) > len(names):
        raise GigavimError(
            f"{line}: {len(cells)} cells for {len(names)} columns; put quotes around commas"
        )
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
    if "image" not in row:
        raise GigavimError(f"{line}: it names no image; give one, or remove the line")
    image = str(path.parent / row.pop("image"))
    output = row.pop("output", None)
    changes = {}
    for name, cell in row.items():
        field, read = COLUMNS[name]
        try:
            changes[field] = read(cell)
        except ValueError as error:
            raise GigavimError(f"{line}, {name}: {cell!r} {error}") from error
        if name in ("mask", "aoi", "model", "encoder") and (path.parent / cell).is_file():
            changes[field] = str(path.parent / cell)
    name = _name(image) if output is None else _chosen_name(output, line)
    return _Found(
        image, dataclasses.replace(config, **changes), name, line, chosen=output is not None
    )


def _chosen_name(text: str, line: str) -> str:
    """Return the name of a store as a user gave it, if it lies in the output folder."""
    windows, posix = PureWindowsPath(text), PurePosixPath(text)
    outside = windows.drive or windows.root or ".." in windows.parts or ".." in posix.parts
    if outside or not posix.name or any(ord(letter) < 32 for letter in text):
        raise GigavimError(
            f"{line}: output {text!r} is no name inside the output folder; "
            "write a name, or folders and a name, as in patient-1/slide-2"
        )
    return str(posix) if text.endswith(SUFFIX) else f"{posix}{SUFFIX}"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("is no size of a pixel; write a number above 0")
    return value


def _count(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"is no number from {least} to {most}")
        return int(text)

    return read


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    known = tuple(names)

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"is none of {', '.join(known)}")
        return text

    return read


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in re.split(r"[\s,]+", text) if name)


def _square(text: str) -> tuple[float, float]:
    return _positive(text), _positive(text)


def _bounds(text: str) -> tuple[float, ...]:
    try:
        west, south, east, north = map(float, _names(text))
    except ValueError:
        raise ValueError("is not west, south, east, north") from None
    return west, south, east, north


def _yes_or_no(text: str) -> bool:
    return _one_of(("yes", "no"))(text.lower()) == "yes"


COLUMNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "spacing": ("spacing", _positive),
    "source_spacing": ("source_spacing", _square),
    "mask": ("mask", str),
    "crs": ("crs", str),
    "bounds": ("bounds", _bounds),
    "aoi": ("aoi", str),
    "mask_clouds": ("mask_clouds", _yes_or_no),
    "model": ("model", str),
    "encoder": ("encoder", str),
    "mode": ("mode", _one_of(get_args(Mode))),
    "bands": ("bands", _names),
    "order": ("order", _one_of(ORDERS)),
    "heads": ("heads", _names),
    "clusters": ("clusters", _count(1, 255)),
    "seed": ("seed", _count(0, 2**32 - 1)),
}
"""Columns of a table besides ``image`` and ``output``: what they set, and how they are read."""

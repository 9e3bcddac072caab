"""Copies of images on a local disk: the next one is made while one is read.

A copy is whole or not used: all files of the image, each of the size that the original had, and the
original not touched meanwhile. Where there is no room, or the copy fails, the image is read where
it lies.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gigavim.errors import SourceError
from gigavim.pipelines.batches.manifest import dicom_series
from gigavim.sources import open_source

logger = logging.getLogger(__name__)

FREE_SHARE = 0.8
"""Of the free space of the disk, that copies take without a limit."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Where copies go."""

    folder: Path
    limit: int | None = None
    """Bytes of all copies of all workers in this folder; `FREE_SHARE` of what is free if None."""


class Stage:
    """The copies of one process: of the image that it reads, and of the next one."""

    def __init__(self, plan: StagePlan) -> None:
        self._plan = plan
        self._own = plan.folder / f"gigavim-{os.getpid()}"
        self._copies: dict[str, _Copy] = {}
        _remove_abandoned(plan.folder)

    @contextmanager
    def holding(self, image: str, upcoming: str | None) -> Iterator[Path | None]:
        """Give the copy of an image, and make that of the next one meanwhile.

        Parameters
        ----------
        upcoming
            The image that is likely to come next; None where nobody knows.

        Yields
        ------
        copy
            None where the image is to be read where it lies.
        """
        for other in self._copies.keys() - {image, upcoming}:
            self._copies.pop(other).remove()
        path = self._copies[image].wait() if image in self._copies else None
        if path is None:  # where it was to be the next one, there is more room now
            path = self._begin(image).wait()
        if upcoming is not None and upcoming not in self._copies:
            self._begin(upcoming)
        try:
            yield path
        finally:
            self._copies.pop(image).remove()
            with suppress(OSError):  # there is another copy
                self._own.rmdir()

    def clear(self) -> None:
        """Remove all copies: those that were made in vain."""
        for copy in self._copies.values():
            copy.remove()
        self._copies.clear()
        shutil.rmtree(self._own, ignore_errors=True)

    def _begin(self, image: str) -> _Copy:
        name = hashlib.sha256(image.encode()).hexdigest()[:12]
        copy = _Copy(image, self._own / name, self._plan)
        self._copies[image] = copy
        return copy


class _Copy:
    """The files of an image, copied in the background."""

    def __init__(self, image: str, folder: Path, plan: StagePlan) -> None:
        self._image, self._folder, self._plan = image, folder, plan
        self._path: Path | None = None
        self._thread = threading.Thread(target=self._make, name=f"copy of {image}", daemon=True)
        self._thread.start()

    def wait(self) -> Path | None:
        """Return the copy once it is made; None where it could not be."""
        self._thread.join()
        return self._path

    def remove(self) -> None:
        """Remove the files, once nobody writes them any more."""
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> None:
        try:
            files = image_files(self._image)
            if files is None:
                logger.info("%s: read where it lies, its files are all over", self._image)
                return
            before = [file.stat() for file in files]
            size = sum(about.st_size for about in before)
            free = _room(self._plan)
            if size > free:
                logger.warning(
                    "%s: read where it lies, %s has %.1f GB left for its %.1f GB",
                    self._image, self._plan.folder, free / 1e9, size / 1e9,
                )  # fmt: skip
                return
            top = Path(self._image).parent
            for file, about in zip(files, before, strict=True):
                target = self._folder / file.relative_to(top)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                after = file.stat()
                same = (after.st_size, after.st_mtime_ns) == (about.st_size, about.st_mtime_ns)
                if not same or target.stat().st_size != about.st_size:
                    raise OSError(f"{file} changed while it was copied")
            self._path = self._folder / Path(self._image).name
        except (OSError, SourceError) as error:
            # Whatever is wrong with the image itself, the run will say.
            logger.warning("%s: read where it lies, it cannot be copied: %s", self._image, error)
            shutil.rmtree(self._folder, ignore_errors=True)


def image_files(image: str) -> list[Path] | None:
    """Return all files that an image is made of; None where some lie outside of its folder.

    Raises
    ------
    SourceError
        If it cannot be opened.
    OSError
        If a folder cannot be listed.
    """
    path = Path(image)
    if path.is_dir():
        return _below(path)
    reader = open_source(path).reader
    suffix = path.suffix.lower()
    if reader == "tifffile":
        return [path]
    if reader == "openslide":
        if suffix == ".mrxs":
            return [path, *_below(path.with_suffix(""))]
        beside = [file for file in sorted(path.parent.iterdir()) if file.is_file()]
        if suffix in (".vms", ".vmu"):
            return beside  # it names them
        series = dicom_series(path)
        return [file for file in beside if series and dicom_series(file) == series] or [path]
    if reader != "rasterio":
        return None
    import rasterio

    with rasterio.open(path) as raster:
        files = [Path(name) for name in raster.files]
    inside = all(file.is_file() and file.is_relative_to(path.parent) for file in files)
    return files if inside and path in files else None


def _below(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _room(plan: StagePlan) -> int:
    """Return how many bytes may still be copied."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.folder).free
    if plan.limit is None:
        return int(FREE_SHARE * free)
    taken = 0
    for file in plan.folder.glob("gigavim-*/**/*"):
        with suppress(OSError):  # another worker removes its own meanwhile
            taken += file.stat().st_size
    return min(free, plan.limit - taken)


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes left that were killed."""
    for left in folder.glob("gigavim-*"):
        number = left.name.removeprefix("gigavim-")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)

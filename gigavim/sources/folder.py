"""The files of a product: in a folder, or in the zip or tar that it was downloaded as."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gigavim.errors import SourceError

ZARR = (".zgroup", ".zattrs", ".zarray", "zarr.json")


@dataclass(frozen=True, slots=True)
class Folder:
    """Files under one root."""

    path: str
    names: tuple[str, ...]
    """Relative to the root, with forward slashes, sorted."""
    vsi: str = ""
    """What GDAL puts before the path of an archive: ``/vsizip/`` or ``/vsitar/``."""

    def dataset(self, name: str) -> str:
        """Return what GDAL calls a file."""
        if self.vsi:
            return f"{self.vsi}{Path(self.path).absolute().as_posix()}/{name}"
        return str(Path(self.path) / name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        SourceError
            If it cannot be read.
        """
        try:
            if self.vsi == "/vsizip/":
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(name)
            if self.vsi == "/vsitar/":
                with tarfile.open(self.path) as archive:
                    member = archive.extractfile(name)
                    return member.read() if member else b""
            return (Path(self.path) / name).read_bytes()
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise SourceError(f"{self.path}: {name} cannot be read ({error})") from error


def open_folder(path: str) -> Folder | None:
    """List the files of a folder or archive; None for a Zarr, and for any other file."""
    root = Path(path)
    if root.is_dir():
        # A Zarr may have a million files, and is no folder of rasters.
        if any((root / name).exists() for name in ZARR):
            return None
        files = (file for file in root.rglob("*") if file.is_file())
        return Folder(path, tuple(sorted(file.relative_to(root).as_posix() for file in files)))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return Folder(path, tuple(sorted(archive.namelist())), "/vsizip/")
        if root.suffix == ".tar" and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                return Folder(path, tuple(sorted(archive.getnames())), "/vsitar/")
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SourceError(f"{path} cannot be read ({error}); copy it again") from error
    return None

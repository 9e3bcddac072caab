"""What the store of an image is called."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".gigavim.zarr"


def store_path(path: str, output: Path, *, alone: bool) -> Path:
    """Return where the store of an image goes.

    >>> store_path("a/slide.ome.tif", Path("out"), alone=True).name
    'slide.gigavim.zarr'
    """
    if alone and output.name.endswith(".zarr"):
        return output
    name = Path(path).name
    for suffix in (Path(name).suffix, ".ome"):
        # A DICOM file's name is a number with dots; only a suffix that says what it is goes.
        if not suffix[1:].isdigit():
            name = name.removesuffix(suffix)
    return output / f"{name}{SUFFIX}"

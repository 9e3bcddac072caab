"""Slides and scenes, opened by content and read at any spacing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gigavim.errors import SourceError
from gigavim.sources.file_source import Options
from gigavim.sources.plane import Plane
from gigavim.sources.source import Band, Pixels, ReadError, Source

__all__ = ["Band", "Pixels", "Plane", "ReadError", "Source", "open_source"]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

GEO_TAGS = (
    "ModelPixelScaleTag",
    "ModelTiepointTag",
    "ModelTransformationTag",
    "GeoKeyDirectoryTag",
    "GDAL_METADATA",
    "GDAL_NODATA",
)
"""TIFF tags that only GDAL understands."""

PLAIN_TILES = (None, "aperio", "generic-tiff")
"""What OpenSlide calls the TIFF dialects whose tiles abut and lie in TIFF's own tables."""


def open_source(
    path: str | Path,
    *,
    source_spacing: float | tuple[float, float] | None = None,
    bands: Sequence[str] | None = None,
) -> Source:
    """Open a slide or a scene with the reader that its content asks for.

    Parameters
    ----------
    path
        A file, or the folder of an OME-Zarr.
    source_spacing
        Side of a level-0 pixel, or its height and width, where the file does not say it or is
        wrong; in µm for a slide and CRS units for a scene.
    bands
        Names, common names, wavelengths (``665nm``) or 1-based indices; ``NAME=INDEX`` gives a band
        a name that the file does not know. All bands if None.

    Raises
    ------
    SourceError
        If there is no such file, or it is no image that can be read.
    BandError
        If the image has no band that was asked for.
    """
    path = str(path)
    options = Options.of(source_spacing, bands)
    if not Path(path).exists():
        raise SourceError(f"{path}: there is no such file; check the path")
    if Path(path).is_dir():
        from gigavim.sources.ngff_source import open_ngff

        return open_ngff(path, options)
    return _open_file(path, options)


def _open_file(path: str, options: Options) -> Source:
    # The readers' libraries are heavy, and a run needs one of them.
    import openslide

    from gigavim.sources.openslide_source import open_with_openslide
    from gigavim.sources.raster_source import open_raster
    from gigavim.sources.tiff_source import open_tiff

    try:
        with Path(path).open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its rights") from error
    if not magic:
        raise SourceError(f"{path} is empty; copy it again")
    vendor = openslide.OpenSlide.detect_format(path)
    if magic in TIFF_MAGIC and vendor in PLAIN_TILES:
        return open_raster(path, options) if _is_geo(path) else open_tiff(path, options)
    if vendor:
        return open_with_openslide(path, options)
    return open_raster(path, options)


def _is_geo(path: str) -> bool:
    """Whether a TIFF carries what only GDAL understands."""
    from gigavim.sources.tiff_layout import open_pages

    with open_pages(path) as file:
        return any(tag in file.pages.first.tags for tag in GEO_TAGS)

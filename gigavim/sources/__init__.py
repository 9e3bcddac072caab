"""Slides and scenes, opened by content and read at any spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gigavim.errors import SourceError
from gigavim.sources.file_source import FileSource, Options
from gigavim.sources.plane import Plane
from gigavim.sources.source import Band, Pixels, ReadError, Source

__all__ = ["Band", "Pixels", "Plane", "ReadError", "Source", "open_source", "reopen"]

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
    crs: str | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    aoi: str | None = None,
    mask_clouds: bool = False,
) -> Source:
    """Open a slide or a scene with the reader that its content asks for.

    Parameters
    ----------
    path
        A file; the folder of an OME-Zarr; a satellite product: a SAFE or Landsat folder or the
        archive of one, a folder of one file a band, a STAC item; the address of a raster or item.
    source_spacing
        Side of a level-0 pixel, or its height and width, where the file does not say it or is
        wrong; in µm for a slide and CRS units for a scene.
    bands
        Names, common names, wavelengths (``665nm``) or 1-based indices; ``NAME=INDEX`` gives a band
        a name that the file does not know. All bands if None, but of a product not those that
        are no part of its picture: quality, aerosol, thermal, panchromatic.
    crs
        Reproject a scene to this CRS, as in ``EPSG:32633``. In its own, pixels are as they lie.
    bounds
        Read this part of a scene: west, south, east, north, in the CRS in which it is read.
    aoi
        A GeoJSON file of polygons; what is outside is not valid, and the scene is cut to them.
    mask_clouds
        Clouds and their shadows are not valid, where the quality band of a product says they are.

    Raises
    ------
    SourceError
        If there is no such file, or it is no image that can be read.
    BandError
        If the image has no band that was asked for.
    """
    path = str(path)
    return open_with(path, Options.of(source_spacing, bands, crs, bounds, aoi, mask_clouds))


def reopen(source: Source, bands: Sequence[str]) -> Source:
    """Open an image again, as it was but for its bands."""
    options = source.options if isinstance(source, FileSource) else Options()
    return open_with(source.path, replace(options, bands=tuple(bands)))


def open_with(path: str, options: Options) -> Source:
    """Open a slide or a scene; see `open_source`."""
    from gigavim.sources.recognise import product_at, single_raster
    from gigavim.sources.remote import is_remote
    from gigavim.sources.stack import open_stack

    if not is_remote(path) and not Path(path).exists():
        raise SourceError(f"{path}: there is no such file; check the path")
    product = product_at(path)
    if product is None and options.changes_grid:
        product = single_raster(path)
    if product is not None:
        return open_stack(product, options)
    if Path(path).is_dir():
        from gigavim.sources.ngff_source import open_ngff

        return open_ngff(path, options)
    source = _open_file(path, options)
    return open_stack(single_raster(path), options) if _must_move(source) else source


def _must_move(source: Source) -> bool:
    """Whether pixels must be moved to where they belong.

    South is up, or west is right; or coarse levels of JPEG 2000 lie beside the fine ones.
    """
    if source.kind != "scene" or source.transform is None:
        return False
    a, b, _, d, e, _ = source.transform
    is_flipped = b == d == 0 and not a > 0 > e
    return is_flipped or source.metadata.get("format", "").startswith("JP2")


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

"""A folder that holds one file a band, or a few files of some bands each."""

from __future__ import annotations

from pathlib import PurePosixPath

from gigavim.errors import SourceError
from gigavim.sources.bands import band_in_file_name, sensor_bands
from gigavim.sources.clouds import is_quality_band
from gigavim.sources.folder import Folder
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.raster_source import RasterBand, dataset_names, open_dataset, stored_bands
from gigavim.sources.source import Band

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".nc")


def raster_files(folder: Folder) -> list[str]:
    """Return the rasters that lie in a folder itself."""
    return [name for name in folder.names if "/" not in name and name.lower().endswith(SUFFIXES)]


def band_files_product(folder: Folder) -> Product:
    """Join the rasters of a folder.

    A band is called what its file says; else, where a file has a single one, by the band id in the
    name of the file (``..._B04.tif``), else by what its name has and the others' have not.

    Raises
    ------
    SourceError
        If one of them cannot be read, or two bands are called the same.
    """
    names = raster_files(folder)
    stems = [PurePosixPath(name).stem for name in names]
    common = _common_words([stem.split("_") for stem in stems])
    found: list[tuple[str, Band, RasterBand]] = []
    for name, stem in zip(names, stems, strict=True):
        path = folder.dataset(name)
        bands, stored = stored_bands(dataset_names(path), path)
        for band, where in zip(bands, stored, strict=True):
            is_nameless = band.name == f"band {where.index}"
            told = band_in_file_name(name) or "_".join(stem.split("_")[common:])
            if is_nameless and len(bands) == 1:
                band = Band(told, band.wavelength_nm)
            elif is_nameless and len(names) > 1:
                band = Band(f"{told} {where.index}", band.wavelength_nm)
            found.append((name, band, where))
    _check_names(folder.path, found)
    wavelengths = sensor_bands([band.name for _, band, _ in found], names[0])
    joined = [
        ProductBand(
            Band(band.name, band.wavelength_nm or known.wavelength_nm),
            where.dataset,
            where.index,
            where.scale,
            where.offset,
            has_classes=is_quality_band(band.name),
            is_extra=is_quality_band(band.name),
        )
        for (_, band, where), known in zip(found, wavelengths, strict=True)
    ]
    joined.sort(key=lambda each: each.is_extra)
    return Product(folder.path, tuple(joined), {"format": f"folder of {len(names)} rasters"})


def raster_product(path: str) -> Product:
    """Take a single raster for a product, to be read on another grid than its own.

    Raises
    ------
    SourceError
        If GDAL does not know the format.
    """
    bands, stored = stored_bands(dataset_names(path), path)
    joined = [
        ProductBand(
            band, where.dataset, where.index, where.scale, where.offset,
            has_classes=is_quality_band(band.name),
        )
        for band, where in zip(bands, stored, strict=True)
    ]  # fmt: skip
    with open_dataset(stored[0].dataset) as raster:
        return Product(path, tuple(joined), {"format": raster.driver})


def _common_words(names: list[list[str]]) -> int:
    """Return how many words all names begin with, short of any whole one."""
    common = 0
    while all(len(words) > common + 1 and words[common] == names[0][common] for words in names):
        common += 1
    return common


def _check_names(path: str, found: list[tuple[str, Band, RasterBand]]) -> None:
    first: dict[str, str] = {}
    for name, band, _ in found:
        if first.setdefault(band.name, name) != name:
            raise SourceError(
                f"{path}: both {first[band.name]} and {name} have a band {band.name}; "
                "keep one date and one product to a folder"
            )

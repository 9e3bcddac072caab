"""Which product a path is, if any."""

from __future__ import annotations

from pathlib import Path

from gigavim.errors import SourceError
from gigavim.sources.band_files import band_files_product, raster_files, raster_product
from gigavim.sources.folder import Folder, open_folder
from gigavim.sources.geozarr import zarr_product
from gigavim.sources.landsat import METADATA as LANDSAT_METADATA
from gigavim.sources.landsat import is_landsat, landsat_product
from gigavim.sources.products import Product
from gigavim.sources.remote import is_remote, network, reaching
from gigavim.sources.safe import METADATA as SAFE_METADATA
from gigavim.sources.safe import is_safe, safe_product
from gigavim.sources.stac import is_stac, stac_product


def product_at(path: str) -> Product | None:
    """Return the product that a path is; None where it is a single image.

    A product is a folder, zip or tar of rasters, its metadata file, a STAC item, a Zarr of arrays
    that lie somewhere, or whatever lies elsewhere.

    Raises
    ------
    SourceError
        If it is one that cannot be read.
    """
    if is_stac(path):
        return stac_product(path)
    if is_remote(path):
        return single_raster(path)
    name = Path(path).name
    if SAFE_METADATA.fullmatch(name) or LANDSAT_METADATA.fullmatch(name):
        path = str(Path(path).parent)
    folder = open_folder(path)
    if folder is None:
        return zarr_product(path) if Path(path).is_dir() else None
    if len(products := _products(folder)) > 1:
        raise SourceError(
            f"{path} holds {len(products)} products ({', '.join(sorted(products)[:2])}, ...); "
            "name one of them"
        )
    if is_safe(folder):
        return safe_product(folder)
    if is_landsat(folder):
        return landsat_product(folder)
    if raster_files(folder):
        return band_files_product(folder)
    return None


def is_product(path: str) -> bool:
    """Whether a folder is one scene, and not a folder of images: a SAFE or Landsat product."""
    folder = open_folder(path) if Path(path).exists() else None
    return folder is not None and len(_products(folder)) == 1


def _products(folder: Folder) -> set[str]:
    """Return the folders below one that hold the metadata of a product."""
    patterns = SAFE_METADATA, LANDSAT_METADATA
    found = (name for name in folder.names if any(each.fullmatch(name) for each in patterns))
    return {name.rpartition("/")[0] for name in found}


def single_raster(path: str) -> Product:
    """Take one raster for a product.

    Raises
    ------
    SourceError
        If it cannot be read or reached.
    """
    with network((path,)), reaching(path):
        return raster_product(path)

"""Landsat products of collection 2, levels 1 and 2: a folder of GeoTIFFs with an MTL file.

Formulas: USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide, and Landsat 8 Data Users
Handbook, section 5.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from gigavim.errors import SourceError
from gigavim.sources.bands import sensor_bands
from gigavim.sources.folder import Folder
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.source import Band

METADATA = re.compile(r"(?:.*/)?L[COTEM]\d\d_[^/]*_MTL\.(json|txt)", re.IGNORECASE)

IMAGE = re.compile(
    r"L[COTEM]\d\d_.*?_(?P<name>(?P<kind>SR_|ST_)?B(?P<band>\d{1,2})|QA_PIXEL|QA_RADSAT)\.TIF",
    re.IGNORECASE,
)

PANCHROMATIC = {"LANDSAT_7": ("8",), "LANDSAT_8": ("8",), "LANDSAT_9": ("8",)}
THERMAL = {"LANDSAT_8": ("10", "11"), "LANDSAT_9": ("10", "11")}
"""Of the others, band 6."""

NODATA = 0.0


def is_landsat(folder: Folder) -> bool:
    """Whether a folder holds the metadata of a Landsat product."""
    return any(METADATA.fullmatch(name) for name in folder.names)


def landsat_product(folder: Folder) -> Product:
    """Read which bands a folder holds, and how they become reflectances and kelvins.

    Raises
    ------
    SourceError
        If its metadata cannot be read, or it holds no image.
    """
    found = [name for name in folder.names if METADATA.fullmatch(name)]
    # The JSON comes first, and says the same.
    about = _metadata(folder, min(found))
    satellite = str(about.get("SPACECRAFT_ID", ""))
    bands: list[ProductBand] = []
    extras: list[ProductBand] = []
    for name in folder.names:
        if match := IMAGE.fullmatch(PurePosixPath(name).name):
            band = _band(folder.dataset(name), match, about, satellite)
            (extras if band.is_extra else bands).append(band)
    if not bands:
        raise SourceError(
            f"{folder.path}: there is no image beside {min(found)}; download it again"
        )
    bands.sort(key=lambda each: int(re.sub(r"\D", "", each.band.name)))
    return Product(
        folder.path,
        (*bands, *extras),
        {
            "format": f"Landsat collection {about.get('COLLECTION_NUMBER', '?')}, "
            f"{about.get('PROCESSING_LEVEL', 'level unknown')}",
            "satellite": satellite,
            "sensed": str(about.get("DATE_ACQUIRED", "")),
            "cloud cover": f"{about['CLOUD_COVER']} %" if "CLOUD_COVER" in about else "",
        },
    )


def _band(
    dataset: str, match: re.Match[str], about: Mapping[str, Any], satellite: str
) -> ProductBand:
    name, number = match["name"].upper(), match["band"]
    if number is None:
        return ProductBand(Band(name), dataset, 1, 1.0, 0.0, has_classes=True, is_extra=True)
    is_thermal = match["kind"] == "ST_" or number in THERMAL.get(satellite, ("6",))
    scale, offset = _scaling(about, name, number, is_thermal)
    return ProductBand(
        sensor_bands([name.removeprefix("SR_")], PurePosixPath(dataset).name)[0],
        dataset,
        scale=scale,
        offset=offset,
        nodata=NODATA,
        is_extra=is_thermal or number in PANCHROMATIC.get(satellite, ()),
    )


def _scaling(
    about: Mapping[str, Any], name: str, number: str, is_thermal: bool
) -> tuple[float, float]:
    """Return scale and offset: to surface reflectance or kelvin, or to those above the atmosphere.

    Level 1 holds them for a sun at the zenith. Its thermal bands become radiances.
    """
    if name.startswith("ST_"):
        key, group, sun = f"TEMPERATURE_{{}}_BAND_{name}", "LEVEL2_SURFACE_TEMPERATURE", 1.0
    elif name.startswith("SR_"):
        key, group, sun = f"REFLECTANCE_{{}}_BAND_{number}", "LEVEL2_SURFACE_REFLECTANCE", 1.0
    else:
        quantity = "RADIANCE" if is_thermal else "REFLECTANCE"
        key, group, sun = f"{quantity}_{{}}_BAND_{number}", "LEVEL1_RADIOMETRIC", 1.0
        if not is_thermal and "SUN_ELEVATION" in about:
            sun = math.sin(math.radians(float(about["SUN_ELEVATION"])))
    values: Mapping[str, Any] = next(
        (value for title, value in about.items() if title.startswith(group)), {}
    )
    try:
        return float(values[key.format("MULT")]) / sun, float(values[key.format("ADD")]) / sun
    except (KeyError, ValueError) as error:
        raise SourceError(
            f"the MTL file does not say how the numbers of {name} become physical ones ({error}); "
            "download it again"
        ) from error


def _metadata(folder: Folder, name: str) -> dict[str, Any]:
    """Return the groups of an MTL file, and beside them what the groups but the scalings say."""
    text = folder.read(name).decode("utf-8", "replace")
    try:
        tree = json.loads(text) if name.lower().endswith("json") else _parse(text)
        (groups,) = tree.values()
        flat: dict[str, Any] = dict(groups)
        for group in groups.values():
            flat = {**group, **flat}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise SourceError(
            f"{folder.path}: {name} is not as USGS writes it ({error}); download it again"
        ) from error
    return flat


def _parse(text: str) -> dict[str, Any]:
    """Read ``KEY = value`` lines in nested ``GROUP``s."""
    tree: dict[str, Any] = {}
    open_groups = [tree]
    for line in text.splitlines():
        key, sign, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            open_groups.append(open_groups[-1].setdefault(value, {}))
        elif key == "END_GROUP":
            open_groups.pop()
        elif sign:
            open_groups[-1][key] = value.strip('"')
    return tree

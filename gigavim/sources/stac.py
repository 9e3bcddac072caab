"""STAC items: the assets of one scene, wherever they lie.

Of the bands it takes the common ``bands`` of STAC 1.1 and the extensions ``eo`` and ``raster`` of
1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gigavim.errors import SourceError
from gigavim.sources.bands import sensor_bands
from gigavim.sources.clouds import is_quality_band
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.remote import fetch, is_remote
from gigavim.sources.safe import OFFSET, needs_offset
from gigavim.sources.source import Band

if TYPE_CHECKING:
    import pystac

RASTERS = ("tiff", "jp2", "geotiff", "netcdf", "x-hdf")
"""In the media types of rasters."""

SUFFIXES = (".tif", ".tiff", ".jp2", ".nc", ".vrt")

PICTURES = {"visual", "overview", "thumbnail"}
"""Roles of assets that are made to be looked at."""

SENTINEL_2_QUANTUM = 10_000


def is_stac(path: str) -> bool:
    """Whether a path can be a STAC item's, by its name."""
    name = path.partition("?")[0].lower()
    return name.endswith((".json", ".geojson")) or "/items/" in name


def stac_product(path: str) -> Product:
    """Read which bands the assets of an item hold.

    Parameters
    ----------
    path
        A file or an address.

    Raises
    ------
    SourceError
        If it is no item, cannot be reached, or has no raster among its assets.
    """
    try:
        import pystac
        from pystac.errors import STACError, STACTypeError
    except ImportError as error:
        raise SourceError(f"{path}: to read STAC items, pip install pystac") from error
    text = fetch(path) if is_remote(path) else Path(path).read_bytes()
    try:
        content = json.loads(text)
        item = pystac.Item.from_dict(content, href=path)
    except (ValueError, TypeError, KeyError, AttributeError, STACError, STACTypeError) as error:
        kind = _kind(text)
        raise SourceError(
            f"{path} is no STAC item ({kind or error}); name the address of one item"
        ) from error
    found = [band for key, asset in item.assets.items() for band in _bands(item, key, asset)]
    unique = {band.band.name: band for band in reversed(found)}
    bands = [band for band in found if unique[band.band.name] is band]
    if not bands:
        raise SourceError(
            f"{path}: none of its assets ({', '.join(item.assets)}) is a raster with bands"
        )
    if all(band.is_extra for band in bands):
        bands = [replace(band, is_extra=band.has_classes) for band in bands]
    bands.sort(key=lambda band: band.is_extra)
    return Product(path, tuple(bands), _about(item))


def _bands(item: pystac.Item, key: str, asset: pystac.Asset) -> Iterator[ProductBand]:
    """Yield the bands of an asset; none of what is no raster, or a picture."""
    href = asset.get_absolute_href() or asset.href
    media = (asset.media_type or "").lower()
    is_raster = any(word in media for word in RASTERS) or href.lower().endswith(SUFFIXES)
    if not is_raster or PICTURES & set(asset.roles or ()) or key.lower() in PICTURES:
        return
    said = _said(asset)
    is_spectral = any(
        any(word in band for word in ("common_name", "center_wavelength")) for band in said
    )
    for index, facts in enumerate(said or [{}], 1):
        band = _band(item, key, facts, href, len(said) > 1 and index)
        is_quality = is_quality_band(key) or is_quality_band(band.name)
        scale, offset = _scaling(item, facts, is_spectral)
        nodata = facts.get("nodata")
        yield ProductBand(
            band,
            href,
            index,
            1.0 if is_quality else scale,
            0.0 if is_quality else offset,
            # JSON has no NaN, which the files themselves declare.
            float(nodata) if isinstance(nodata, (int, float)) else None,
            has_classes=is_quality or "classification:classes" in facts,
            is_extra=not is_spectral,
        )


def _said(asset: pystac.Asset) -> list[dict[str, Any]]:
    """Join what an item says of the bands of an asset, without the prefixes of extensions."""
    fields = asset.extra_fields
    lists: list[Sequence[Mapping[str, Any]]] = [
        fields.get(name) or [] for name in ("raster:bands", "eo:bands", "bands")
    ]
    whole = {
        key.removeprefix("eo:").removeprefix("raster:"): value for key, value in fields.items()
    }
    shared: dict[str, Any] = {
        key: value for key, value in whole.items() if key in ("scale", "offset", "nodata")
    }
    joined: list[dict[str, Any]] = []
    for index in range(max(len(each) for each in lists)):
        facts = dict(shared)
        for each in lists:
            if index < len(each):
                for key, value in each[index].items():
                    facts[key.removeprefix("eo:").removeprefix("raster:")] = value
        joined.append(facts)
    return joined


def _band(
    item: pystac.Item, key: str, facts: Mapping[str, Any], href: str, number: int | bool
) -> Band:
    """Name a band as the item does, and else by its asset."""
    name = str(facts.get("name") or (f"{key} {number}" if number else key))
    centre = facts.get("center_wavelength")
    if centre:
        return Band(name, float(centre) * 1000)
    (known,) = sensor_bands([name], Path(href).name)
    if known.wavelength_nm is None and "common_name" in facts:
        # Without a wavelength, the common name is all that it could be asked for by.
        return Band(str(facts["common_name"]))
    return known


def _scaling(
    item: pystac.Item, facts: Mapping[str, Any], is_spectral: bool
) -> tuple[float | None, float | None]:
    """Return scale and offset to reflectance; None where only the file can say.

    Earth Search keeps an offset of -0.1 in items whose files it is already taken from, and says so
    in ``boa_offset_applied`` (Element84/earth-search, issue 9).
    """
    about = item.properties
    scale, offset = facts.get("scale"), facts.get("offset")
    is_applied = about.get("earthsearch:boa_offset_applied") or about.get(
        "sentinel:boa_offset_applied"
    )
    if scale is not None or offset is not None:
        return float(scale or 1), 0.0 if is_applied else float(offset or 0)
    baseline = about.get("s2:processing_baseline") or about.get("sentinel:processing_baseline")
    if is_spectral and baseline is not None:
        is_shifted = needs_offset(str(baseline)) and not is_applied
        return 1 / SENTINEL_2_QUANTUM, OFFSET / SENTINEL_2_QUANTUM if is_shifted else 0.0
    return None, None


def _about(item: pystac.Item) -> dict[str, str]:
    about = item.properties
    facts = {
        "format": "STAC item",
        "item": item.id,
        "satellite": about.get("platform"),
        "sensed": about.get("datetime"),
        "processing baseline": about.get("s2:processing_baseline")
        or about.get("processing:version"),
        "cloud cover": f"{about['eo:cloud_cover']:g} %" if "eo:cloud_cover" in about else None,
    }
    return {key: str(value) for key, value in facts.items() if value}


def _kind(text: bytes) -> str:
    """Say what a JSON is instead of an item, where it tells."""
    try:
        content = json.loads(text)
    except ValueError:
        return "it is not JSON"
    kind = content.get("type") if isinstance(content, dict) else type(content).__name__
    return "" if kind == "Feature" else f"it is a {kind or 'JSON without type'}"

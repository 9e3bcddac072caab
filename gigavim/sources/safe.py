"""Sentinel-2 products as ESA packs them: SAFE folders of levels 1C and 2A.

Layout and formulas: Sentinel-2 Products Specification Document, S2-PDGS-TAS-DI-PSD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from gigavim.errors import SourceError
from gigavim.sources.bands import SENTINEL_2_NM
from gigavim.sources.folder import Folder
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.source import Band

METADATA = re.compile(r"(?:.*/)?MTD_MSIL(1C|2A)\.xml", re.IGNORECASE)

IMAGE = re.compile(
    r".*GRANULE/(?P<granule>[^/]+)/IMG_DATA/(?:.*/)?[^/]*?"
    r"(?:^|_|/)(?P<band>B\d\d|B8A|SCL|AOT|WVP)(?:_(?P<metres>\d\d)m)?\.(?:jp2|tiff?)",
    re.IGNORECASE,
)

IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Bands by ESA's ``band_id``."""

BASELINE_WITH_OFFSET = 4.0
OFFSET = -1000.0
"""Added to every stored number since processing baseline 04.00, so that it can be negative."""

NODATA = 0.0


def is_safe(folder: Folder) -> bool:
    """Whether a folder holds the metadata of a Sentinel-2 product."""
    return any(METADATA.fullmatch(name) for name in folder.names)


def safe_product(folder: Folder) -> Product:
    """Read which bands a SAFE folder holds, each at its finest, and how they become reflectances.

    Raises
    ------
    SourceError
        If its metadata cannot be read, it holds no image, or several tiles.
    """
    name = next(name for name in folder.names if METADATA.fullmatch(name))
    try:
        root = ElementTree.fromstring(folder.read(name))
    except ElementTree.ParseError as error:
        raise SourceError(
            f"{folder.path}: {name} is no XML ({error}); download it again"
        ) from error
    images = _finest_images(folder)
    if not images:
        raise SourceError(f"{folder.path}: there is no image under GRANULE; download it again")
    baseline = _text(root, "PROCESSING_BASELINE")
    offsets = _offsets(root, baseline)
    quantum = _number(root, r"(BOA_|L2A_BOA_)?QUANTIFICATION_VALUE", 10_000.0)
    spectral = [_spectral(root, name, images, quantum, offsets) for name in IDS if name in images]
    listed = {match[1] for text in _listed(root) if (match := re.search(r"_(B\d\d|B8A)", text))}
    missing = sorted(listed - images.keys())
    return Product(
        folder.path,
        (*spectral, *_extras(root, images)),
        {
            "format": f"Sentinel-2 SAFE, {_text(root, 'PROCESSING_LEVEL') or 'level unknown'}",
            "satellite": _text(root, "SPACECRAFT_NAME"),
            "sensed": _text(root, "PRODUCT_START_TIME"),
            "processing baseline": baseline,
            "offset": ", ".join(f"{value:g}" for value in sorted(set(offsets.values()))),
            **({"missing bands": ", ".join(missing)} if missing else {}),
        },
    )


def needs_offset(baseline: str) -> bool:
    """Whether numbers of a processing baseline are shifted.

    >>> needs_offset("05.09"), needs_offset("03.01")
    (True, False)
    """
    try:
        return float(baseline) >= BASELINE_WITH_OFFSET
    except ValueError:
        return False


def _finest_images(folder: Folder) -> dict[str, str]:
    """Return the dataset of each band; level 2A has one for each resolution."""
    found: dict[str, tuple[int, str]] = {}
    granules = set()
    for name in folder.names:
        if match := IMAGE.fullmatch(name):
            granules.add(match["granule"])
            band, metres = match["band"].upper(), int(match["metres"] or 0)
            found[band] = min(found.get(band, (metres, name)), (metres, name))
    if len(granules) > 1:
        raise SourceError(
            f"{folder.path} holds {len(granules)} tiles, as products before 2016 did; "
            "name the IMG_DATA folder of one"
        )
    return {band: folder.dataset(name) for band, (_, name) in found.items()}


def _offsets(root: ElementTree.Element, baseline: str) -> dict[str, float]:
    """Return what is added to the stored numbers of each band."""
    usual = OFFSET if needs_offset(baseline) else 0.0
    said = {
        IDS[int(element.get("band_id", 0))]: float(element.text or 0)
        for element in _elements(root, r"(BOA|RADIO)_ADD_OFFSET")
    }
    return {name: said.get(name, usual) for name in IDS}


def _spectral(
    root: ElementTree.Element,
    name: str,
    images: dict[str, str],
    quantum: float,
    offsets: dict[str, float],
) -> ProductBand:
    wavelength = float(SENTINEL_2_NM[re.sub(r"^b0", "b", name.lower())])
    for element in _elements(root, "Spectral_Information"):
        told = element.findtext("Wavelength/CENTRAL")
        if element.get("bandId") == str(IDS.index(name)) and told:
            wavelength = float(told)
    return ProductBand(
        Band(name, wavelength),
        images[name],
        scale=1 / quantum,
        offset=offsets[name] / quantum,
        nodata=NODATA,
    )


def _extras(root: ElementTree.Element, images: dict[str, str]) -> Iterator[ProductBand]:
    """Yield the scene classification, aerosol thickness and water vapour of level 2A."""
    if "SCL" in images:
        yield ProductBand(
            Band("SCL"), images["SCL"], 1, 1.0, 0.0, NODATA, has_classes=True, is_extra=True
        )
    for name in ("AOT", "WVP"):
        if name in images:
            quantum = _number(root, f"{name}_QUANTIFICATION_VALUE", 1000.0)
            yield ProductBand(Band(name), images[name], 1, 1 / quantum, 0.0, is_extra=True)


def _listed(root: ElementTree.Element) -> Iterator[str]:
    """Yield the images that the metadata name."""
    for element in _elements(root, r"IMAGE_FILE|IMAGE_ID"):
        yield element.text or ""


def _elements(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Yield all elements of a name, a regular expression, in any namespace."""
    for element in root.iter():
        if re.fullmatch(name, element.tag.rpartition("}")[2]):
            yield element


def _text(root: ElementTree.Element, name: str) -> str:
    return next((element.text or "" for element in _elements(root, name)), "").strip()


def _number(root: ElementTree.Element, name: str, usual: float) -> float:
    text = _text(root, name)
    return float(text) if text else usual

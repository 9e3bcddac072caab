"""How large a pixel is: read from where each format says it, never guessed from magnification.

A reader tries, in this order: what the user says; the vendor's field; DICOM pixel spacing, OME
physical size, NGFF scale, GeoTIFF transform; TIFF resolution tags if they are sane. The first that
speaks wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gigavim.geometry import Spacing

MICROMETRE = "µm"

UM = {
    "m": 1e6, "meter": 1e6, "metre": 1e6,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micrometer": 1.0, "micrometre": 1.0, "micron": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "pm": 1e-6, "picometer": 1e-6, "picometre": 1e-6,
    "Å": 1e-4, "angstrom": 1e-4,
    "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip
"""Micrometres to one of each unit that OME and NGFF know."""

SANE_UM = (0.05, 20.0)
"""TIFF resolution tags outside say something about a screen or a printer, not about a slide."""


def user_spacing(given: tuple[float, float] | None, unit: str) -> Spacing | None:
    """Take what the user says: height and width of a level-0 pixel."""
    return None if given is None else Spacing(*given, unit, "user")


def micrometres(y: object, x: object, unit: str | None, origin: str) -> Spacing | None:
    """Take height and width of a pixel in a unit of length; None where one does not make sense."""
    factor = UM.get(unit or "")
    try:
        height, width = float(str(y)), float(str(x))
    except ValueError:
        return None
    if factor is None or not (0 < height < math.inf and 0 < width < math.inf):
        return None
    return Spacing(height * factor, width * factor, MICROMETRE, origin)


def openslide_spacing(properties: Mapping[str, str]) -> Spacing | None:
    """Take what OpenSlide found in the vendor's metadata."""
    vendor = properties.get("openslide.vendor")
    y, x = properties.get("openslide.mpp-y"), properties.get("openslide.mpp-x")
    if vendor == "generic-tiff":
        # These come from the resolution tags, which have a rank and a check of their own.
        return None
    origin = "DICOM PixelSpacing" if vendor == "dicom" else "openslide.mpp"
    if "aperio.MPP" in properties:
        origin = "aperio.MPP"
        y = x = y or properties["aperio.MPP"]
    return micrometres(y, x, "µm", origin)


def aperio_spacing(description: Mapping[str, object]) -> Spacing | None:
    """Take the MPP of an Aperio image description."""
    mpp = description.get("MPP")
    return micrometres(mpp, mpp, "µm", "aperio.MPP")


def ome_spacing(pixels: Mapping[str, str]) -> Spacing | None:
    """Take PhysicalSize from the attributes of an OME Pixels element; µm unless they say else."""
    y = micrometres(
        pixels.get("PhysicalSizeY"), 1, pixels.get("PhysicalSizeYUnit", "µm"), "OME PhysicalSize"
    )
    x = micrometres(
        1, pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "µm"), "OME PhysicalSize"
    )
    return Spacing(y.y, x.x, MICROMETRE, y.origin) if y and x else None


def transform_spacing(
    transform: tuple[float, float, float, float, float, float], unit: str | None
) -> Spacing | None:
    """Take the sides of a pixel under an affine transform; without a CRS they mean nothing."""
    a, b, _, d, e, _ = transform
    y, x = math.hypot(b, e), math.hypot(a, d)
    return Spacing(y, x, unit, "transform") if unit and y > 0 and x > 0 else None


def resolution_spacing(y: float, x: float, unit: str) -> Spacing | None:
    """Take the pixels per inch or centimetre of TIFF tags, if a microscope can have meant them."""
    if not (y > 0 and x > 0):
        return None
    spacing = micrometres(1 / y, 1 / x, unit, "TIFF resolution")
    low, high = SANE_UM
    if spacing is None or not (low <= spacing.y <= high and low <= spacing.x <= high):
        return None
    return spacing

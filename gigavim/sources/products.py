"""A satellite product is many rasters that are one image: which there are, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from gigavim.sources.source import Band


@dataclass(frozen=True, slots=True)
class ProductBand:
    """One band of a product: where it lies, and what its numbers mean."""

    band: Band
    dataset: str
    """GDAL's name of the file or of a variable in it."""
    index: int = 1
    """In that file, from 1."""
    scale: float | None = None
    """What a stored number is multiplied with; as the file says if None."""
    offset: float | None = None
    """What is added after that; as the file says if None."""
    nodata: float | None = None
    """The stored number that says that there is none; as the file says if None."""
    has_classes: bool = False
    """Whether numbers are codes, which have no mean: a scene classification, QA bits."""
    is_extra: bool = False
    """Read only where it is asked for by name: QA bands, aerosol, thermal, panchromatic."""


@dataclass(frozen=True, slots=True)
class Product:
    """A scene of several rasters, before any of them is opened."""

    path: str
    """As the user gave it."""
    bands: tuple[ProductBand, ...]
    """Those that are read unless others are asked for, then the extra ones."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What ``gigavim info`` shows."""

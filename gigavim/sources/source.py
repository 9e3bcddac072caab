"""What every reader promises: levels, bands, spacing, and the pixels of a window of one level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Level, Spacing, Window


@dataclass(frozen=True, slots=True)
class Band:
    """One spectral or colour plane."""

    name: str
    """As the file or its sensor calls it: ``red``, ``B08``, ``band 3``."""
    wavelength_nm: float | None = None
    """Centre of the band, where the file says it."""
    zero: float = 0.0
    """What a number that is stored as 0 is read as: the offset of the file."""

    def __str__(self) -> str:
        return f"{self.name} ({self.wavelength_nm:g}nm)" if self.wavelength_nm else self.name


RGB = (Band("red"), Band("green"), Band("blue"))


@dataclass(frozen=True, slots=True)
class ReadError:
    """A part of the image that cannot be decoded."""

    level: int
    window: Window
    """In pixels of ``level``."""
    message: str


@dataclass(frozen=True, slots=True)
class Pixels:
    """What a window holds."""

    values: NDArray[Any]
    """Shape (height, width, band); 0 where not valid."""
    valid: NDArray[np.bool_]
    """Shape (height, width); False beyond the image, on nodata, and where decoding failed."""
    errors: tuple[ReadError, ...] = ()
    """What could not be decoded; the pixels concerned are not valid."""
    read_s: float = 0.0
    """Seconds spent waiting for bytes, where the reader can tell that from decoding."""


class Source(Protocol):
    """One image opened for reading.

    A source pickles as its path and options, and opens the file once per thread, on first use,
    since the handles of OpenSlide and GDAL belong to one thread of one process.
    """

    @property
    def path(self) -> str:
        """The file or folder, as given."""
        ...

    @property
    def kind(self) -> Literal["slide", "scene"]:
        """``scene`` where pixels lie in a CRS, else ``slide``."""
        ...

    @property
    def reader(self) -> str:
        """The library that reads it: ``openslide``, ``tifffile``, ``rasterio`` or ``zarr``."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first."""
        ...

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands that are read, in the order asked for."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that ``read_level`` returns, after scale and offset."""
        ...

    @property
    def spacing(self) -> Spacing | None:
        """Of level 0; None where neither the file nor the user says it."""
        ...

    @property
    def crs(self) -> str | None:
        """The CRS as WKT, for a scene."""
        ...

    @property
    def transform(self) -> tuple[float, float, float, float, float, float] | None:
        """Level-0 pixel corners to the CRS: x = a*col + b*row + c, y = d*col + e*row + f."""
        ...

    @property
    def metadata(self) -> dict[str, str]:
        """What ``gigavim info`` shows: vendor, compression, objective power and the like."""
        ...

    def read_level(self, level: int, window: Window) -> Pixels:
        """Read a window of one level.

        Parameters
        ----------
        window
            In pixels of that level; what lies beyond the image comes back as not valid.

        Raises
        ------
        SourceError
            If the file as a whole cannot be read. A part that cannot be decoded is no error: it
            comes back as not valid, with a `ReadError` that names it.
        """
        ...

"""What a run is asked to do: the part that decides the result, and the part that must not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from gigavim.orders import Order

Mode = Literal["whole", "tiles"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides the result. It is stored with it, and a resumed run must match it."""

    model: str | None = None
    """A shipped model's name or a file; the shipped one for the kind of image if None."""
    mode: Mode = "whole"
    """``whole``: the image is one sequence. ``tiles``: each tile is a short sequence of its own."""
    spacing: float | None = None
    """Side of a pixel that the model sees, µm or CRS units; the model's own if None."""
    source_spacing: tuple[float, float] | None = None
    """Height and width of a level-0 pixel, where the user knows better than the file."""
    bands: tuple[str, ...] | None = None
    """Bands to read, by name, index or wavelength; the model's if None."""
    order: Order = "raster"
    """The order in which patches are read as a sequence."""
    heads: tuple[str, ...] = ()
    """``features``, ``classify``, ``clusters``; what the model can do if empty."""
    clusters: int = 8
    """Number of clusters of the unsupervised map."""
    seed: int = 0
    """Of the clustering."""
    mask: str | None = None
    """A GeoJSON, PNG or TIFF that says what is foreground."""
    read_all: bool = False
    """Read every patch, foreground or not."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON would hold them."""
        fields = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. None of it changes the result."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    readers: int = 2
    """Threads that read, decode and normalise ahead of the encoder."""
    chunk: int = 16_384
    """Tokens that a layer holds at once; the rest waits as residual stream."""

"""What a run is asked to do: the part that decides the result, and the part that must not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gigavim.orders import Order

Mode = Literal["whole", "tiles"]
Precision = Literal["float32", "bfloat16"]
Stain = Literal["macenko", "reinhard"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides the result. It is stored with it, and a resumed run must match it."""

    model: str | None = None
    """A shipped model's name or a file; the shipped one for the kind of image if None."""
    encoder: str | None = None
    """A tile encoder, ``timm:NAME`` or a file: `model` reads its features, or is None for these."""
    tile: int | None = None
    """Side of the tiles that the tile encoder takes, in pixels; its own if None."""
    trust: bool = False
    """Whether the tile encoder may be a program, TorchScript."""
    mode: Mode | None = None
    """``whole``: the image is one sequence. ``tiles``: each tile is a short sequence of its own. If
    None the one that the model is better in, ``whole`` where that is not known."""
    spacing: float | None = None
    """Side of a pixel that the model sees, µm or CRS units; the model's own if None."""
    source_spacing: tuple[float, float] | None = None
    """Height and width of a level-0 pixel, where the user knows better than the file."""
    bands: tuple[str, ...] | None = None
    """Bands to read, by name, index or wavelength; the model's if None."""
    crs: str | None = None
    """Reproject a scene to this CRS."""
    bounds: tuple[float, float, float, float] | None = None
    """West, south, east and north of what is read of a scene, in the CRS in which it is read."""
    aoi: str | None = None
    """A GeoJSON of polygons, outside of which nothing of a scene is read."""
    mask_clouds: bool = False
    """Leave out what a scene's quality band says is cloud or shadow."""
    order: Order | None = None
    """The order in which patches are read as a sequence; if None ``cross`` for models of cross
    blocks, which know no other, and ``raster`` for others."""
    heads: tuple[str, ...] = ()
    """``features``, ``classify``, ``clusters``; what the model can do if empty."""
    clusters: int = 8
    """Number of clusters of the unsupervised map."""
    seed: int = 0
    """Of the clustering."""
    precision: Precision = "float32"
    """Of the encoder's matrix products; norms, residual stream and scan stay in float32."""
    mask: str | None = None
    """A GeoJSON, PNG or TIFF that says what is foreground."""
    read_all: bool = False
    """Read every patch, foreground or not."""
    exclude_qc: bool = False
    """Leave out what `gigavim.quality` finds wrong: out of focus, pen, cloud and the like."""
    stain: Stain | None = None
    """How a slide is given the stain of the reference slide; it keeps its own if None."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON would hold them."""
        fields = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


def source_options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `open_source` is told by a configuration, of a `RunConfig` or of a store."""
    names = ("source_spacing", "bands", "crs", "bounds", "aoi", "mask_clouds")
    told = {name: configuration[name] for name in names if configuration.get(name)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. None of it changes the result."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    readers: int = 2
    """Threads that read, decode and normalise ahead of the encoder."""
    max_memory: int | None = None
    """Bytes of host memory that the process may take; 60 % of what is free if None."""
    max_device_memory: int | None = None
    """Bytes of a GPU's memory that it may take; 60 % of what is free if None."""
    workers: int | None = None
    """Processes of this machine that share the sequence of an image; this one alone if None."""
    scheduler: str | None = None
    """Address of a Dask cluster whose workers share it instead."""
    chunk: int | None = None
    """Most tokens that a layer takes from one save to the next; as suits the device if None."""


def parse_bytes(text: str) -> int:
    """Read an amount of memory.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> parse_bytes("4GiB"), parse_bytes("1.5 GB"), parse_bytes("800m")
    (4294967296, 1500000000, 838860800)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt]?)(i?b?)", text.strip().lower())
    if match is None or (match[3] == "i") or (match[3] == "ib" and not match[2]):
        raise ValueError(f"{text!r} is no amount of memory; write 4GiB, 3500MiB or 4GB")
    # As for every tool: GB are thousands, GiB and a bare G 1024s.
    step = 1000 if match[3] == "b" else 1024
    return int(float(match[1]) * step ** " kmgt".index(match[2] or " "))

"""What commands can be told, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any

import typer

from gigavim.config import RunConfig, parse_bytes
from gigavim.orders import ORDERS


class Mode(StrEnum):
    """How an image is read."""

    whole = "whole"
    tiles = "tiles"


class Products(StrEnum):
    """What the encoder's matrix products are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Stain(StrEnum):
    """How a slide's stain is changed."""

    macenko = "macenko"
    reinhard = "reinhard"


Order = StrEnum("Order", {name: name for name in ORDERS})  # type: ignore[misc]

Images = Annotated[list[str], typer.Argument(help="Slides and scenes: files, or OME-Zarr folders.")]
Model_ = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A model of `gigavim models`, or a file of weights."),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="A tile encoder of your own: timm:NAME, or weights with a TOML file beside them.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(min=1, help="Side of the tiles for --encoder, in pixels. By default its own."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run an --encoder that is a program, TorchScript.")
]
Spacing_ = Annotated[
    float | None,
    typer.Option(
        "--spacing",
        "--mpp",
        help="Size of a pixel that the model sees: µm for a slide, CRS units for a scene. "
        "By default the model's.",
    ),
]
SourceSpacing = Annotated[
    float | None,
    typer.Option(
        "--source-spacing",
        "--source-mpp",
        help="Size of a pixel of the file, where the file does not say it or is wrong.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(help="Bands by name, index or wavelength: red,green,blue,nir or red=3,nir=4."),
]
Crs = Annotated[
    str | None, typer.Option(help="Reproject a scene, as in EPSG:32633.", metavar="CRS")
]
Bounds = Annotated[
    str | None,
    typer.Option(
        metavar="W,S,E,N", help="Read this part of a scene, in the CRS in which it is read."
    ),
]
Aoi = Annotated[str | None, typer.Option(help="GeoJSON polygons: read what of a scene is in them.")]
MaskClouds = Annotated[
    bool,
    typer.Option("--mask-clouds", help="Leave out what a scene's quality band says is cloud."),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        help="The image as one sequence, or each tile as one of its own. By default what the model "
        "is better in."
    ),
]
OrderOption = Annotated[
    Order | None, typer.Option(help="The order of the patches in the sequence, raster by default.")
]
Mask = Annotated[
    str | None, typer.Option(help="What to read: GeoJSON polygons, or a PNG or TIFF mask.")
]
NoMask = Annotated[bool, typer.Option("--no-mask", help="Read everything, background too.")]
ExcludeQc = Annotated[
    bool,
    typer.Option(
        "--exclude-qc", help="Leave out what is out of focus, pen, folded, cloud and the like."
    ),
]
StainOption = Annotated[
    Stain | None, typer.Option(help="Give a slide the stain of the reference slide.")
]
Heads = Annotated[
    list[str] | None,
    typer.Option("--head", help="features, classify or clusters; more than one may be given."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory that a run may take, as in 4GiB. By default 60 % of what is free.",
    ),
]
MaxDeviceMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory of the GPU that a run may take. By default 60 % of what is free.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def config_in(told: Mapping[str, Any]) -> RunConfig:
    """Return the part of a command's options that decides the result; defaults where it has none.

    Parameters
    ----------
    told
        By the names of the command's parameters: ``locals()`` at its start.
    """
    same = {field.name: told[field.name] for field in fields(RunConfig) if field.name in told}
    same = {
        name: value.value if isinstance(value, StrEnum) else value for name, value in same.items()
    }
    read = {
        "source_spacing": square(told["source_spacing"]),
        "bands": names_in(told["bands"]),
        "bounds": bounds_in(told["bounds"]),
        "heads": tuple(told.get("head") or ()),
        "read_all": told["no_mask"],
    }
    return RunConfig(**same | read)


def square(side: float | None) -> tuple[float, float] | None:
    """Return height and width of a pixel, of which the user gave the side."""
    return None if side is None else (side, side)


def bounds_in(text: str | None) -> tuple[float, float, float, float] | None:
    """Return west, south, east and north that the user gave with commas between them."""
    if text is None:
        return None
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not W,S,E,N, as in 600000,5290000,610000,5300000", param_hint="--bounds"
        ) from None
    return west, south, east, north


def names_in(names: str | None) -> tuple[str, ...] | None:
    """Return names that the user gave with commas between them."""
    return None if names is None else tuple(name.strip() for name in names.split(","))


def pairs_in(text: str | None, option: str) -> dict[str, str]:
    """Return pairs that the user gave as NAME=VALUE with commas between them."""
    pairs = [pair.rpartition("=") for pair in (text or "").split(",") if pair.strip()]
    for name, sign, value in pairs:
        if not sign or not name.strip():
            raise typer.BadParameter(f"{value!r} is not NAME=VALUE", param_hint=option)
    return {name.strip(): value.strip() for name, _, value in pairs}


def bytes_in(text: str | None, option: str = "--max-memory") -> int | None:
    """Return bytes, of which the user gave a text such as 4GiB."""
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None

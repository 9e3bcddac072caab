"""Which model suits an image, and in what an image is other than what a model was trained on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gigavim.area import cell_areas
from gigavim.checkpoint import Model, ModelSpec, load_model, read_spec
from gigavim.config import RunConfig
from gigavim.errors import ModelError
from gigavim.foreground import data_of, thumbnail
from gigavim.georeference import Registration
from gigavim.models import shipped, weights_path
from gigavim.sources import Band, Source
from gigavim.sources.bands import match_bands, range_nm
from gigavim.stain import stain_shares
from gigavim.tile_encoder import description_of, lend, load_tile_encoder

Stamp = tuple[int, int] | None
"""Size of a file, and when it was changed, in nanoseconds."""

RGB = ("red", "green", "blue")
FINE_UM = 0.55
"""Coarsest pixel of a slide in which nuclei are looked for: 0.5 µm, as scanners mean it."""
LAND_M = 5.0, 20.0
"""Sides of a pixel in which land cover is told."""
REFLECTED_NM = 3000.0
"""Longest wavelength at which sunlight is seen, and not heat."""
OFF = 1.5
"""Factor between the spacings of training and of a run from which on it warns."""

MEANT_FOR = {
    "nuclei": "slides in H&E of 0.5 µm/px and finer",
    "landcover": "scenes with red, green and blue at 5 to 20 m",
    "slide-mini": "other slides",
    "scene-mini": "other scenes",
}
"""What the rule of `default_model` takes each model for."""


def chosen_model(source: Source, config: RunConfig, device: str) -> Model:
    """Load the model that a run is to use, with its tile encoder where it has one.

    Raises
    ------
    ModelError
        If a model or tile encoder cannot be loaded, they do not belong together, or nothing says at
        which spacing tiles are read.
    """
    if config.encoder is None and (config.tile is not None or config.trust):
        raise ModelError("--tile and --trust are of a tile encoder; name one with --encoder")
    name = config.model
    if name is None and config.encoder is None:
        name = default_model(source, config.spacing, bands_chosen=config.bands is not None)
    about = config.encoder and str(description_of(Path(config.encoder)))
    stamps = _stamp(name), _stamp(config.encoder), _stamp(about)
    model = _load(name, config.encoder, config.tile, config.trust, device, stamps)
    if config.encoder is None and model.spec.tiles is not None:
        raise ModelError(
            f"{model.path} reads features of {model.spec.tiles.name} "
            f"({model.spec.tiles.sha256[:12]}); pass this file with --encoder"
        )
    if config.encoder is not None and model.spec.spacing is None and config.spacing is None:
        raise ModelError(
            f"{config.encoder} does not say which spacing it was trained at; pass --spacing, as in "
            "--spacing 0.5, or write it beside it"
        )
    return model


@functools.lru_cache(maxsize=2)
def _load(
    name: str | None,
    encoder: str | None,
    tile: int | None,
    trust: bool,
    device: str,
    stamps: tuple[Stamp, ...],
) -> Model:
    """Load a model, once for many images; ``stamps`` tell when a file is another."""
    if encoder is None:
        assert name is not None
        return load_model(name, device)
    tiles = load_tile_encoder(encoder, device, tile=tile, trust=trust)
    if name is None:
        return tiles
    model = load_model(name, device)
    lend(tiles, model)
    return model


def _stamp(name: str | None) -> Stamp:
    """Return what changes with a file; None for one that has another name here, or is not there."""
    if name is None or not Path(name).is_file():
        return None
    about = Path(name).stat()
    return about.st_size, about.st_mtime_ns


def default_model(
    source: Source, spacing: float | None = None, *, bands_chosen: bool = False
) -> str:
    """Return the name of the shipped model for an image.

    - ``nuclei`` for slides of 0.5 µm per pixel and finer that are stained as its training data,
      with haematoxylin and eosin;
    - ``landcover`` for scenes of 5 to 20 m per pixel: of red, green and blue alone, 0 to 255, or of
      reflectances in these bands and any others, where it knows how its bytes were made of them;
    - otherwise, or where these do not ship, ``slide-mini`` and ``scene-mini``, which make clusters.

    Parameters
    ----------
    spacing
        That the user asks for, in the place of the source's own.
    bands_chosen
        Whether the source's bands are those that the user asks for: then all of them are read.

    Raises
    ------
    ModelError
        If this installation lacks the model.
    SourceError
        If the thumbnail of a slide cannot be read.
    """
    side = pixel_side(source)
    if side is not None and spacing is not None and source.spacing is not None:
        side *= spacing / math.sqrt(source.spacing.y * source.spacing.x)
    names = tuple(band.name for band in source.bands)
    if names == RGB and source.dtype == np.uint8 and side is not None:
        nuclei = shipped("nuclei")
        spec = nuclei and read_spec(nuclei)
        fine = source.kind == "slide" and side <= FINE_UM
        if fine and spec and not any(unusual_stain(source, spec, (0, 1, 2))):
            return "nuclei"
    landcover = shipped("landcover")
    if source.kind == "scene" and landcover and side is not None and LAND_M[0] <= side <= LAND_M[1]:
        spec = read_spec(landcover)
        if names == RGB and source.dtype == np.uint8:
            return "landcover"
        if (
            spec
            and spec.white is not None
            and _has_bands(source, spec)
            and not (bands_chosen and len(source.bands) > len(spec.bands))
            and holds_reflectance(source)
        ):
            return "landcover"
    return weights_path(f"{source.kind}-mini").stem


def bands_of(spec: ModelSpec) -> tuple[Band, ...]:
    """Return the bands that a model takes, with their wavelengths where it knows them."""
    wavelengths = spec.wavelengths_nm or (None,) * len(spec.bands)
    return tuple(map(Band, spec.bands, wavelengths))


def _has_bands(source: Source, spec: ModelSpec) -> bool:
    return len(match_bands(bands_of(spec), source.bands)) == len(spec.bands)


def holds_reflectance(source: Source) -> bool:
    """Whether values are reflectances: fractions, by and large of 1, in bands that see sunlight.

    That is told by their wavelengths or common names.

    Raises
    ------
    SourceError
        If a thumbnail of the image cannot be read.
    """
    if source.dtype.kind != "f" or not all(map(_is_of_sunlight, source.bands)):
        return False
    pixels, _, _ = thumbnail(source, 256)
    values = pixels.values[data_of(pixels, source.bands)]
    return bool(values.size and np.quantile(values, 0.9) <= 1)


def _is_of_sunlight(band: Band) -> bool:
    return 0 < range_nm(band)[1] <= REFLECTED_NM


def pixel_side(source: Source) -> float | None:
    """Return the side of a level-0 pixel in µm of a slide, or metres of a scene; None if unknown.

    Of a scene in degrees it is that of a square as large as a pixel in the middle row.
    """
    if source.spacing is None:
        return None
    if source.spacing.unit == "µm":
        return math.sqrt(source.spacing.y * source.spacing.x)
    registration = Registration(
        1.0, 1.0, source.spacing, crs=source.crs, transform=source.transform
    )
    areas = cell_areas(registration, source.levels[0].height).of_row
    return None if areas is None else 1e3 * math.sqrt(areas[len(areas) // 2])


def misfits(source: Source, spec: ModelSpec, slots: Sequence[int], ratio: float) -> Iterator[str]:
    """Yield in what an image is outside of what a model was trained for, for people.

    Parameters
    ----------
    slots
        Where each band of the source goes among the model's.
    ratio
        Level-0 pixels to a side of a pixel that the model sees.
    """
    side = pixel_side(source)
    unit = {"slide": "µm", "scene": "metre"}[source.kind]
    if spec.spacing and spec.unit == unit and side is not None:
        factor = side * ratio / spec.spacing
        if max(factor, 1 / factor) > OFF:
            yield (
                f"the model was trained at {spec.spacing:g} {unit}/px and reads "
                f"{side * ratio:.3g}; what it says may mean less"
            )
    if not match_bands(bands_of(spec), source.bands):
        yield (
            f"its bands {', '.join(band.name for band in source.bands)} are taken for "
            f"{', '.join(spec.bands[slot] for slot in slots)}, in this order; "
            "--bands says otherwise"
        )
    is_fixed = spec.normalisation == "fixed" and spec.scale == 1 / 255
    is_known = spec.white is not None and holds_reflectance(source)
    if is_fixed and source.dtype != np.uint8 and not is_known:
        remedy = "stretch them to bytes first"
        if spec.white is not None and all(map(_is_of_sunlight, source.bands)):
            remedy += ", or name their scale in the file: gdal_edit.py -scale 0.0001"
        elif spec.white is not None:
            remedy += ", or name the bands of reflectances: --bands red=3,green=2,blue=1"
        yield f"its values are {source.dtype}, and the model was trained on 0 to 255; {remedy}"
    for band, share, low, high in unusual_stain(source, spec, slots):
        yield (
            f"{band} has {share:.0%} of the stain, and {low:.0%} to {high:.0%} in what the model "
            "was trained on; what it says may mean less"
        )


def unusual_stain(
    source: Source, spec: ModelSpec, slots: Sequence[int]
) -> Iterator[tuple[str, float, float, float]]:
    """Yield bands, with their share in the stain and the range of it that the model knows."""
    if not spec.stain:
        return
    pixels, _, _ = thumbnail(source, 1024)
    values = pixels.values[data_of(pixels, source.bands)].astype(np.float64) * spec.scale
    for slot, share in zip(slots, stain_shares(values), strict=True):
        low, high = spec.stain[slot]
        if not low <= share <= high:
            yield spec.bands[slot], float(share), low, high

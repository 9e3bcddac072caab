"""What a run will do: which model sees which pixels of which image. Nothing is encoded here."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.checkpoint import Model
from gigavim.config import Mode, RunConfig, source_options
from gigavim.errors import BandError, ModelError, NoSpacingError, SourceError
from gigavim.foreground import data_of, foreground, thumbnail
from gigavim.geometry import Grid, Spacing
from gigavim.head import ClassTable
from gigavim.orders import Order
from gigavim.patches import (
    PatchBlock,
    PatchReader,
    block_side,
    foreground_blocks,
    tile_blocks,
)
from gigavim.pipelines.suitable import bands_of, chosen_model, holds_reflectance, misfits
from gigavim.quality import Quality, examine, exclude_qc
from gigavim.sequence import PatchSequence
from gigavim.sources import Plane, Source, open_source, reopen
from gigavim.sources.bands import match_bands, says_what_it_is
from gigavim.sources.gdal_cache import bound_cache
from gigavim.sources.plane import no_spacing
from gigavim.stain_normalisation import stain_transform

logger = logging.getLogger(__name__)

HEADS = ("features", "classify", "clusters", "nuclei")


class NothingToReadError(SourceError):
    """Nothing of the image is foreground."""


@dataclass(frozen=True)
class Setup:
    """An image and a model that fit each other; no more than a thumbnail is read yet."""

    config: RunConfig
    source: Source
    model: Model
    plane: Plane
    grid: Grid
    """All patches, foreground or not."""
    order: Order
    """In which the sequence is read."""
    slots: tuple[int, ...]
    """Where each band of the source goes among the model's."""
    heads: tuple[str, ...]

    own: Spacing
    """Of level 0."""

    @property
    def mode(self) -> Mode:
        """How the image is read: as was asked for, or as the model is better in."""
        return self.config.mode or self.model.spec.mode or "whole"

    @property
    def tile(self) -> int | None:
        """Patches to a side of a tile; None where the image is one sequence."""
        spec = self.model.spec
        if self.mode == "whole":
            return None
        return (spec.tile - spec.architecture.patch) // spec.architecture.stride + 1

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width of the pixels that the model sees, in the unit of `own`."""
        return self.own.y * self.plane.ratio_y, self.own.x * self.plane.ratio_x


@dataclass(frozen=True)
class Plan:
    """What will be read, and where it goes."""

    setup: Setup
    sequence: PatchSequence
    """The foreground patches: the rows of the result."""
    reader: PatchReader
    blocks: tuple[PatchBlock, ...]
    """What is read at once, in the order of reading."""
    quality: Quality | None = None
    """What is wrong with the image, where it is left out."""
    warnings: tuple[str, ...] = ()
    """In what the image is outside of what the model was trained for."""

    @property
    def tile(self) -> int | None:
        """Patches to a side of a tile; None where the image is one sequence."""
        return self.setup.tile

    @property
    def megapixels(self) -> float:
        """Level pixels that will be read, in millions."""
        grid, plane = self.setup.grid, self.setup.plane
        windows = (
            plane.level_window(
                grid.window(b.block.row, b.block.column, b.block.rows, b.block.columns)
            )
            for b in self.blocks
        )
        return sum(window.height * window.width for window in windows) / 1e6

    @property
    def tokens(self) -> int:
        """Tokens that the encoder will see."""
        return sum(len(block.cells) for block in self.blocks)

    @property
    def told_by_block(self) -> ClassTable | None:
        """Classes that are known for good once a block is encoded; None where no map is."""
        table = self.setup.model.spec.classes
        known = self.tile is not None and "classify" in self.setup.heads
        return table if known and table is not None and len(table.names) <= 255 else None

    @cached_property
    def positions(self) -> tuple[NDArray[np.int32], ...]:
        """For each block, the row of the result that each patch is; -1 for one that is none."""
        return tuple(self.sequence.positions_of(block.index) for block in self.blocks)


def set_up(path: str, config: RunConfig, device: str = "cpu") -> Setup:
    """Open an image and a model and see whether they fit.

    Raises
    ------
    GigavimError
        If the image or the model cannot be opened, or they do not fit.
    """
    bound_cache()
    source = open_source(path, **source_options(config.as_dict()))
    model = chosen_model(source, config, device)
    order = _order(config, model)
    heads = _heads(config, model)
    source, slots = _fit_bands(source, config, model)
    if source.spacing is None:
        raise NoSpacingError(no_spacing(source))
    plane = Plane.at(source, _spacing(source.spacing, model, config))
    architecture = model.spec.architecture
    grid = Grid.over(
        source.levels[0].height,
        source.levels[0].width,
        patch=architecture.patch,
        stride=architecture.stride,
        ratio_y=plane.ratio_y,
        ratio_x=plane.ratio_x,
    )
    return Setup(config, source, model, plane, grid, order, slots, heads, source.spacing)


def make_plan(setup: Setup) -> Plan:
    """Find the foreground and cut it in blocks.

    Raises
    ------
    NothingToReadError
        If there is no foreground.
    SourceError
        If the image cannot be read.
    """
    config, source, plane, grid = setup.config, setup.source, setup.plane, setup.grid
    found = foreground(source, grid, mask=config.mask, read_all=config.read_all)
    quality = None
    if config.exclude_qc:
        quality = examine(source, grid, found)
        found = exclude_qc(found, quality)
    if not found.any():
        what = "no tissue" if source.kind == "slide" else "no valid pixel"
        raise NothingToReadError(
            f"{source.path}: {what} was found; --no-mask reads everything, "
            "--mask FILE says where to look"
        )
    spec = setup.model.spec
    warnings = tuple(misfits(source, spec, setup.slots, math.sqrt(plane.ratio_y * plane.ratio_x)))
    for warning in warnings:
        logger.warning("%s: %s", source.path, warning)
    tile = setup.tile
    if tile is None:
        blocks = tuple(foreground_blocks(grid, found, block_side(plane, grid)))
    else:
        blocks = tuple(tile_blocks(grid, found, block_side(plane, grid, tile), tile))
    mean, std = _normalisation(setup)
    stain = None if config.stain is None else stain_transform(source, config.stain)
    scale, top = spec.scale, None
    if spec.white is not None and holds_reflectance(source):
        top = 255 * spec.scale
        scale = top / spec.white
    return Plan(
        setup,
        PatchSequence.from_foreground(grid, found, setup.order),
        PatchReader(
            plane, grid, setup.slots, spec.architecture.bands, scale, mean, std, stain, top
        ),
        blocks,
        quality,
        warnings,
    )


def _fit_bands(source: Source, config: RunConfig, model: Model) -> tuple[Source, tuple[int, ...]]:
    """Find the model's bands among the source's, by wavelength and name, and read those alone.

    Bands that the user chose, or of which nothing is known, go to the model in their order where
    nothing tells which is which.
    """
    wanted, partial = bands_of(model.spec), model.spec.partial_bands
    # Whoever names a band knows better than the file what it is.
    named = {item.rpartition("=")[0].strip() for item in config.bands or ()}
    bands = [replace(b, wavelength_nm=None) if b.name in named else b for b in source.bands]
    found = match_bands(wanted, bands)
    fits = bool(found) and (partial or len(found) == len(wanted))
    if fits and len(found) == len(bands):
        return source, tuple(sorted(found, key=found.__getitem__))
    if fits and config.bands is None:
        chosen = [f"{wanted[slot].name}={index + 1}" for slot, index in found.items()]
        return reopen(source, chosen), tuple(found)
    is_open = config.bands is not None or not any(map(says_what_it_is, bands))
    if len(bands) == len(wanted) and not found and is_open:
        return source, tuple(range(len(wanted)))
    names = [band.name for band in wanted]
    raise BandError(
        f"{source.path}: the model takes {', '.join(map(str, wanted))}"
        f"{' or some of them' * partial}, and it has {', '.join(map(str, source.bands))}; "
        f"say which is which, as in "
        f"--bands {','.join(f'{name}={i}' for i, name in enumerate(names[:3], 1))}"
    )


def _order(config: RunConfig, model: Model) -> Order:
    """Return the order that was asked for, if the model can read in it, or the model's own."""
    cross = model.spec.architecture.block == "cross"
    if cross and config.order not in (None, "cross"):
        raise ModelError(
            f"{model.path} reads rows and columns both ways, not in {config.order} order; "
            "leave --order out"
        )
    if not cross and config.order == "cross":
        raise ModelError(
            f"{model.path} reads one sequence and has no blocks for --order cross; use raster"
        )
    return config.order or ("cross" if cross else "raster")


def _heads(config: RunConfig, model: Model) -> tuple[str, ...]:
    heads = config.heads or (_natural_head(model),)
    for head in heads:
        if head not in HEADS:
            raise ModelError(f"there is no head {head!r}; there are {', '.join(HEADS)}")
    if "classify" in heads and not model.spec.architecture.classes and model.bag is None:
        raise ModelError(f"{model.path} has no classes; use --head clusters or features")
    if (
        model.bag is not None
        and "classify" in heads
        and (config.mode or model.spec.mode) == "tiles"
    ):
        raise ModelError(f"{model.path} classifies whole images; use --mode whole")
    if "nuclei" in heads and (model.decoder is None or model.spec.nuclei is None):
        raise ModelError(f"{model.path} was not trained to find nuclei; use --model nuclei")
    return heads


def _natural_head(model: Model) -> str:
    """Return what a model was trained for."""
    if model.spec.nuclei is not None:
        return "nuclei"
    return "clusters" if model.spec.classes is None else "classify"


def _spacing(own: Spacing, model: Model, config: RunConfig) -> float | None:
    """Decide on the spacing: the user's, the model's, or the source's own as it stands.

    Of a source that is coarser than the model's, there is nothing finer to read than its own.
    """
    trained = model.spec.spacing
    if config.spacing is not None or trained is None or own.unit != model.spec.unit:
        return config.spacing
    return max(trained, own.y, own.x)


def _normalisation(setup: Setup) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band, the model's or the image's own."""
    spec = setup.model.spec
    if spec.normalisation == "fixed":
        return tuple(spec.mean[s] for s in setup.slots), tuple(spec.std[s] for s in setup.slots)
    pixels, _, _ = thumbnail(setup.source, 1024)
    values = pixels.values[data_of(pixels, setup.source.bands)].astype(np.float64) * spec.scale
    if not len(values):
        raise SourceError(f"{setup.source.path}: it has no valid pixel to be normalised by")
    std = values.std(0)
    return _floats(values.mean(0)), _floats(np.where(std > 0, std, 1))


def _floats(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)

"""Which images make a stack, and in which order their patches are read as one sequence."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

from gigavim.config import RunConfig
from gigavim.errors import GigavimError, ModelError, SourceError
from gigavim.pipelines.plan import NothingToReadError, Plan, Setup, make_plan, set_up
from gigavim.sequence import PatchSequence
from gigavim.sources import Source
from gigavim.sources.dates import date_of
from gigavim.sources.pixel_grid import PixelGrid

logger = logging.getLogger(__name__)

StackOrder = Literal["date", "place"]
"""``date``: date after date, each in the order of its patches; ``place``: patch after patch, each
with all of its dates."""


@dataclass(frozen=True, eq=False)
class StackPlan:
    """What will be read of all dates, and where in the sequence it goes."""

    dates: tuple[date, ...]
    """Rising."""
    plans: tuple[Plan, ...]
    """Of each date, for the same model and grid; what is cloud there is no part of it."""
    order: StackOrder

    @cached_property
    def places(self) -> Plan:
        """What the maps show: the patches that any date has, over the image that has most."""
        clearest = max(self.plans, key=lambda plan: len(plan.sequence))
        grid, order = clearest.setup.grid, clearest.setup.order
        seen = np.zeros(grid.shape, np.bool_)
        for plan in self.plans:
            seen[tuple(plan.sequence.index.T)] = True
        sequence = PatchSequence.from_foreground(grid, seen, order)
        warnings = tuple(
            f"{day}: {warning}"
            for day, plan in zip(self.dates, self.plans, strict=True)
            for warning in plan.warnings
        )
        return dataclasses.replace(clearest, sequence=sequence, warnings=warnings)

    @cached_property
    def place_of(self) -> tuple[NDArray[np.int32], ...]:
        """For each date, which of the places each of its patches is, rising."""
        return tuple(self.places.sequence.positions_of(plan.sequence.index) for plan in self.plans)

    @cached_property
    def ranks(self) -> tuple[NDArray[np.int64], ...]:
        """For each date, where in the sequence of all dates each of its patches is, rising."""
        lengths = [len(plan.sequence) for plan in self.plans]
        day = np.repeat(np.arange(len(lengths)), lengths)
        place = np.concatenate(self.place_of).astype(np.int64)
        if self.order == "date":
            key = day * len(self.places.sequence) + place
        else:
            key = place * len(lengths) + day
        rank = np.empty(len(key), np.int64)
        rank[np.argsort(key, kind="stable")] = np.arange(len(key))
        return tuple(np.split(rank, np.cumsum(lengths)[:-1]))

    @cached_property
    def tokens(self) -> Plan:
        """What the encoder sees: the patches of all dates, a place as often as it is seen."""
        index = np.empty((sum(map(len, self.ranks)), 2), np.int32)
        for plan, ranks in zip(self.plans, self.ranks, strict=True):
            index[ranks] = plan.sequence.index
        places = self.places
        return dataclasses.replace(
            places,
            sequence=dataclasses.replace(places.sequence, index=index),
            blocks=tuple(block for plan in self.plans for block in plan.blocks),
        )

    @property
    def date_of_token(self) -> NDArray[np.int16]:
        """Which date each token of the sequence is of, shape (n,)."""
        found = np.empty(len(self.tokens.sequence), np.int16)
        for number, ranks in enumerate(self.ranks):
            found[ranks] = number
        return found


def plan_stack(
    paths: Sequence[str],
    config: RunConfig,
    device: str = "cpu",
    *,
    dates: Sequence[date] | None = None,
    order: StackOrder = "date",
) -> StackPlan:
    """Open images of one place and find what is foreground on each date.

    Images on the same pixels that are cut differently are read where all of them are. A date on
    which nothing is foreground, as under clouds, is left out, with a warning.

    Parameters
    ----------
    dates
        Of the images, in their order; by default as `date_of` finds them.

    Raises
    ------
    GigavimError
        If an image or the model cannot be opened or they do not fit, a date is not known or comes
        twice, the images lie on different pixels, or the model cannot read a stack.
    """
    setups = set_up_alike(paths, dataclasses.replace(config, mode="whole"), device)
    _check_model(setups[0])
    if dates is None:
        dates = [_known_date(setup.source) for setup in setups]
    elif len(dates) != len(paths):
        raise GigavimError(f"--dates has {len(dates)} dates for {len(paths)} images; give each one")
    by_date = sorted(zip(dates, setups, strict=True), key=lambda pair: pair[0])
    for (day, setup), (next_day, other) in pairwise(by_date):
        if day == next_day:
            raise GigavimError(
                f"{setup.source.path} and {other.source.path} are both of {day}; "
                "leave one out, or say their dates with --dates"
            )
    found: list[tuple[date, Plan]] = []
    for day, setup in by_date:
        try:
            found.append((day, make_plan(setup)))
        except NothingToReadError as error:
            logger.warning("%s is left out: %s", day, error)
    if not found:
        raise SourceError(f"{paths[0]} and the others have nothing to read on any date")
    return StackPlan(tuple(day for day, _ in found), tuple(plan for _, plan in found), order)


def set_up_alike(paths: Sequence[str], config: RunConfig, device: str = "cpu") -> list[Setup]:
    """Open images so that all lie on one grid of patches.

    Raises
    ------
    GigavimError
        If one cannot be opened, does not fit the model, or lies on other pixels than the first.
    """
    setups = [set_up(path, config, device) for path in paths]
    first, *others = (_pixel_grid(setup.source) for setup in setups)
    for path, grid in zip(paths[1:], others, strict=True):
        if grid.offset_in(first) is None:
            west, south, east, north = first.bounds
            side = f"{first.transform.a:.12g} {-first.transform.e:.12g}"
            raise SourceError(
                f"{path} does not lie on the pixels of {paths[0]}; bring it there, as with "
                f"gdalwarp -t_srs {_crs_name(first)} -tr {side} "
                f"-te {west:.12g} {south:.12g} {east:.12g} {north:.12g} -r bilinear"
            )
    if all(_corners(grid, first) == _corners(first, first) for grid in others):
        return setups
    wests, souths, easts, norths = zip(*(grid.bounds for grid in (first, *others)), strict=True)
    shared = max(wests), max(souths), min(easts), min(norths)
    if shared[0] >= shared[2] or shared[1] >= shared[3]:
        raise SourceError(f"{', '.join(paths)} share no ground; a stack is of one place")
    config = dataclasses.replace(config, bounds=shared)
    return [set_up(path, config, device) for path in paths]


def _corners(grid: PixelGrid, first: PixelGrid) -> tuple[tuple[int, int] | None, int, int]:
    return grid.offset_in(first), grid.height, grid.width


def _pixel_grid(source: Source) -> PixelGrid:
    """Return where the pixels of a scene lie."""
    if source.transform is None:
        raise SourceError(
            f"{source.path} lies nowhere, and a stack is of one place; georeference it"
        )
    crs = CRS.from_wkt(source.crs) if source.crs else None
    level = source.levels[0]
    return PixelGrid(crs, Affine(*source.transform), level.height, level.width)


def _crs_name(grid: PixelGrid) -> str:
    return "''" if grid.crs is None else str(grid.crs.to_string())


def _known_date(source: Source) -> date:
    found = date_of(source)
    if found is None:
        raise SourceError(
            f"{source.path} does not say when it was taken; say it of all images, in their order, "
            "as in --dates 2024-05-01,2024-06-03"
        )
    return found


def _check_model(setup: Setup) -> None:
    """Refuse what cannot read several dates of one place."""
    if setup.order == "cross":
        raise ModelError(
            f"{setup.model.path} reads rows and columns of one image; a stack needs a model that "
            "reads a sequence"
        )
    if "nuclei" in setup.heads:
        raise ModelError(f"{setup.model.path} finds nuclei, and a stack is of scenes")

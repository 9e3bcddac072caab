"""A made-up stretch of land: what covers each pixel of the sample scene."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.noise import smooth_noise


class Cover(IntEnum):
    """What covers the ground."""

    LAKE = 0
    RIVER = auto()
    BROADLEAF = auto()
    CONIFER = auto()
    MEADOW = auto()
    WHEAT = auto()
    MAIZE = auto()
    RAPESEED = auto()
    STUBBLE = auto()
    SOIL = auto()
    MOIST_SOIL = auto()
    TILES = auto()
    CONCRETE = auto()
    ASPHALT = auto()


CROPS = (
    (Cover.WHEAT, 0.27), (Cover.MAIZE, 0.16), (Cover.RAPESEED, 0.07), (Cover.MEADOW, 0.2),
    (Cover.STUBBLE, 0.1), (Cover.SOIL, 0.12), (Cover.MOIST_SOIL, 0.08),
)  # fmt: skip
"""What grows on the fields, and on what share of them."""

TOWNS = ((0.52, 0.60, 150), (0.18, 0.30, 45), (0.80, 0.28, 50), (0.25, 0.85, 40), (0.86, 0.72, 60))
"""Centres, as shares of height and width, and radii in pixels."""

DISTRICTS = 36
"""Parts of the land whose fields run in one direction, with a road around each."""


@dataclass(frozen=True)
class Land:
    """The ground as a sensor would see it from above."""

    cover: NDArray[np.uint8]
    """Of each pixel, a `Cover`, shape (height, width)."""
    brightness: NDArray[np.float32]
    """By how much each pixel is brighter than its cover is as a rule, shape (height, width)."""


def make_land(height: int, width: int, rng: np.random.Generator) -> Land:
    """Make up the land, of pixels of 10 m."""
    shape = height, width
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    hills = smooth_noise(shape, 700, rng, slope=3.2)
    wood = smooth_noise(shape, 160, rng, slope=2.6)
    rough = smooth_noise(shape, 40, rng)
    # Nothing but roofs and roads is straight: edges of all else waver.
    wavy_y, wavy_x = (v + 8 * smooth_noise(shape, 300, rng, slope=4) for v in (y, x))

    cover, brightness, border = _fields(wavy_y, wavy_x, rng)
    brightness += 0.05 * rough
    woods = wood + 0.5 * hills > 0.75
    cover[woods] = np.where((hills + 0.3 * rough)[woods] > 0.5, Cover.CONIFER, Cover.BROADLEAF)
    # Trees stand apart: crowns and shade.
    brightness[woods] = rng.normal(1, 0.1, np.count_nonzero(woods)) + 0.05 * rough[woods]
    cover[(border < 1.6) & ~woods] = Cover.ASPHALT
    for down, right, radius in TOWNS:
        _build(cover, brightness, y - down * height, x - right * width, radius, rough, rng)

    course = _meander(y, width, height)
    across = np.abs(wavy_x - course) / np.sqrt(1 + np.gradient(course, axis=0) ** 2)
    banks = across - (9 + 5 * y / height)
    cover[(banks < 6 + 4 * rough) & (banks > 0)] = Cover.MEADOW
    cover[banks < 0] = Cover.RIVER
    lake = np.hypot((y - 0.33 * height) / 170, (x - 0.74 * width) / 260)
    shore = lake + 0.25 * smooth_noise(shape, 250, rng, slope=3.5) + 0.02 * rough
    cover[(shore < 1.06) & (shore > 1)] = Cover.BROADLEAF
    cover[shore < 1] = Cover.LAKE
    water = cover <= Cover.RIVER
    brightness[water] = 1 + 0.06 * hills[water]
    # The slopes towards the sun, in the south-east, are brighter.
    slope = np.gradient(hills, axis=0) + np.gradient(hills, axis=1)
    brightness[~water] *= 1 + 1.5 * slope[~water]
    return Land(cover.astype(np.uint8), np.clip(brightness, 0.3, 2).astype(np.float32))


def _meander(y: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Return the column at which the river crosses each row."""
    t = y / height
    bends = 0.07 * np.sin(7.1 * t + 0.4) + 0.035 * np.sin(17.3 * t) + 0.012 * np.sin(41 * t + 1)
    return np.asarray(width * (0.47 + 0.08 * t + bends), np.float32)


def _fields(
    y: NDArray[np.float32], x: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Lay fields out; return their cover, brightness, and pixels to the border of a district."""
    nearest = np.full(y.shape, np.inf, np.float32)
    second = nearest.copy()
    number = np.zeros(y.shape, np.int64)
    for district in range(DISTRICTS):
        at_y, at_x = rng.random(2) * y.shape
        away = np.hypot(y - np.float32(at_y), x - np.float32(at_x))
        second = np.minimum(second, np.maximum(nearest, away))
        number[away < nearest] = district
        nearest = np.minimum(nearest, away)
    turn = rng.uniform(0, np.pi, DISTRICTS)[number].astype(np.float32)
    breadth = rng.uniform(14, 34, DISTRICTS)[number].astype(np.float32)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    # Strips, cut at their own places in fields of their own lengths.
    strip = np.floor(across / breadth).astype(np.int64) + 1000 * number
    starts, lengths = rng.uniform(0, 99, 997), rng.uniform(40, 110, 997)
    field = np.floor((along + starts[strip % 997]) / lengths[strip % 997]).astype(np.int64)
    ticket = (strip * 7919 + field * 104_729) % 65_521
    covers, shares = zip(*CROPS, strict=True)
    grown = rng.choice(covers, 65_521, p=shares)
    bright = rng.normal(1, 0.09, 65_521).astype(np.float32)
    # Over its slope, which is small where two centres lie close.
    border = second - nearest
    border /= np.maximum(np.hypot(*np.gradient(border)), 0.1)
    return grown[ticket], bright[ticket], border


def _build(
    cover: NDArray[np.intp],
    brightness: NDArray[np.float32],
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    radius: float,
    rough: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Build a town around the point where ``y`` and ``x`` are 0: gardens, roofs and streets."""
    far = np.hypot(y, x) / radius + 0.25 * rough
    town = far < 1
    turn = rng.uniform(0.2, 0.6)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    chance = rng.random(np.count_nonzero(town))
    core = np.clip(0.95 - 0.75 * far[town], 0, 1)
    cover[town] = np.select(
        [chance < 0.65 * core, chance < core, chance < core + 0.6 * (1 - core)],
        [Cover.TILES, Cover.CONCRETE, Cover.MEADOW],
        Cover.BROADLEAF,
    )
    brightness[town] = rng.normal(1, 0.15, np.count_nonzero(town))
    halls = town & (far > 0.75) & ((along // 22) % 3 == 0) & ((across // 16) % 4 == 0)
    cover[halls] = Cover.CONCRETE
    streets = (np.mod(along, 11) < 1.3) | (np.mod(across, 15) < 1.3)
    main = (np.abs(along) < 1.5) | (np.abs(across) < 1.5)
    cover[(town & streets) | ((far < 2.2) & main)] = Cover.ASPHALT

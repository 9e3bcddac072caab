"""One stain for all slides: colours as if a slide had been stained where the reference was.

Both methods look once at a sample of a slide's tissue and yield a `StainTransform`, which treats
every pixel alike, so no result depends on how the slide was cut in windows. Off unless asked for:
models trained on slides of many laboratories do not need it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import NoSpacingError, SourceError
from gigavim.foreground import FINEST_UM, thumbnail
from gigavim.geometry import Grid
from gigavim.masks import Mask, covered
from gigavim.sources.plane import Plane, no_spacing
from gigavim.sources.source import Source
from gigavim.stain import glass
from gigavim.tissue import tissue

logger = logging.getLogger(__name__)

Method = Literal["macenko", "reinhard"]

SAMPLE_UM = 2.0
"""Stains are looked at no finer than this; nuclei still stand out."""
SAMPLE_SIDE = 128
"""Of a window of the sample, in pixels."""
SAMPLE_WINDOWS = 64
LEAST_PIXELS = 5_000
"""Of tissue, 0.02 mm²: with less, the extremes of a stain are chance."""

BETA = 0.15
"""Optical density below which a pixel is glass, Macenko's beta."""
ALPHA = 1.0
"""Percentile that stands for an extreme, Macenko's alpha."""
LEAST_ANGLE = np.radians(10)
"""Between both stains; H&E of ten sources had 17 to 44°."""

LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]).T
"""RGB to the cones' responses, Reinhard et al. 2001, equation 4; for row vectors."""
LAB = (np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])).T
"""Logarithms of these to l, alpha and beta, equation 6."""


@dataclass(frozen=True, eq=False)
class StainFrame:
    """The stain of one slide, as axes in the space where a method works."""

    white: NDArray[np.float64]
    """Glass, as shares of full intensity, shape (3,)."""
    origin: NDArray[np.float64]
    """Of logarithms, mixed as the method does; shape (3,)."""
    axes: NDArray[np.float64]
    """One a row, each as long as the stain is strong; shape (3, 3)."""


@dataclass(frozen=True, eq=False)
class StainTransform:
    """Changes the stain of 8-bit RGB pixels; pickles, and may be called by many threads.

    Mixed, in logarithms, the colours go through an affine map and back again.
    """

    mix: NDArray[np.float32]
    """From red, green and blue to where the map is affine, shape (3, 3), for row vectors."""
    matrix: NDArray[np.float32]
    """Of the map, shape (3, 3)."""
    offset: NDArray[np.float32]
    """Of the map, shape (3,)."""
    white: NDArray[np.float32] | None
    """Glass, shape (3,), towards which the change fades out; None where the map knows glass."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels of shape (..., 3) in the other stain."""
        # Bands first: products with a matrix of three columns are thirty times slower.
        bands = np.moveaxis(pixels, -1, 0).reshape(3, -1)
        seen = np.maximum(bands, 1) * np.float32(1 / 255)
        mapped = self.matrix.T @ np.log(self.mix.T @ seen) + self.offset[:, None]
        # What is lighter than any pixel can be is white either way, and would overflow.
        restained = np.linalg.inv(self.mix).T @ np.exp(np.minimum(mapped, 1))
        if self.white is not None:
            # A stain makes nothing lighter than glass.
            restained = np.minimum(restained, np.maximum(self.white[:, None], seen))
            density = np.log(self.white).mean() - np.log(seen).mean(0)
            restained = seen + np.clip(density / np.float32(BETA), 0, 1) * (restained - seen)
        rounded = np.rint(np.clip(restained * 255, 0, 255)).astype(np.uint8)
        return np.ascontiguousarray(rounded.T).reshape(pixels.shape)


def stain_transform(
    source: Source, method: Method, target: StainFrame | None = None
) -> StainTransform | None:
    """Look at the tissue of a slide and return what gives it the stain of the reference.

    Parameters
    ----------
    target
        What `stain_frame` finds in the reference; the slide CMU-1-Small-Region if None.

    Returns
    -------
    transform
        None, with a warning in the log, where there is too little tissue to tell the stains.

    Raises
    ------
    SourceError
        If the image is not stained tissue in 8-bit RGB, does not know its spacing, or cannot be
        read.
    """
    try:
        own = stain_frame(*tissue_sample(source), method)
    except ValueError as error:
        logger.warning("%s: the stain is left as it is: %s", source.path, error)
        return None
    return transform_between(own, REFERENCE[method] if target is None else target, method)


def tissue_sample(source: Source) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Look at up to 64 windows spread over the tissue of a slide.

    Returns
    -------
    sample
        Their pixels but for glass, shape (n, 3).
    white
        Glass, as shares of full intensity, shape (3,).

    Raises
    ------
    SourceError
        As `stain_transform`.
    """
    names = tuple(band.name for band in source.bands)
    if source.kind != "slide" or source.dtype != np.uint8 or len(names) != 3:
        raise SourceError(
            f"{source.path}: a stain is normalised in 8-bit red, green and blue, and this has "
            f"{', '.join(names)} as {source.dtype}; leave the normalisation out"
        )
    finest, spacing = source.levels[0], source.spacing
    if spacing is None:
        raise NoSpacingError(no_spacing(source))
    extent_um = max(finest.height * spacing.y, finest.width * spacing.x)
    pixels, ratio_y, ratio_x = thumbnail(source, min(2048, max(1, int(extent_um / FINEST_UM))))
    if pixels.valid.any() and np.percentile(pixels.values[pixels.valid].max(1), 25) < 48:
        raise SourceError(
            f"{source.path}: its background is dark, so it is not stained but fluorescent; "
            "leave the normalisation out"
        )
    white = glass(pixels)
    plane = Plane.at(source, max(SAMPLE_UM, spacing.y, spacing.x))
    grid = Grid.over(
        finest.height, finest.width, patch=SAMPLE_SIDE, ratio_y=plane.ratio_y, ratio_x=plane.ratio_x
    )
    found = np.argwhere(covered(Mask(tissue(pixels), ratio_y, ratio_x), grid))
    chosen = found[np.linspace(0, len(found) - 1, min(len(found), SAMPLE_WINDOWS)).astype(int)]
    windows = [plane.read(grid.window(row, column)) for row, column in chosen]
    seen = np.concatenate([np.empty((0, 3), np.uint8), *(w.values[w.valid] for w in windows)])
    return seen[_density(seen, white).mean(1) > BETA], white


def stain_frame(
    sample: NDArray[np.uint8], white: NDArray[np.float64], method: Method
) -> StainFrame:
    """Measure the stain of tissue.

    Macenko et al. 2009, *A method for normalizing histology slides for quantitative analysis*: in
    the plane of optical densities that holds most of the tissue, haematoxylin and eosin are the
    extreme directions, here at the 1st and 99th percentile, and each is as strong as its 99th
    percentile of concentration. Here the third direction, across, is kept as it is: what is neither
    stain, which the paper drops.

    Reinhard et al. 2001, *Color transfer between images*: mean and standard deviation of the
    colours in l-alpha-beta. The paper moves every colour; here glass stays glass.

    Parameters
    ----------
    sample
        Pixels of tissue, shape (n, 3).
    white
        Glass, as shares of full intensity, shape (3,).

    Raises
    ------
    ValueError
        If there is too little tissue, or only one stain.
    """
    if len(sample) < LEAST_PIXELS:
        raise ValueError(
            f"{len(sample):,} pixels of tissue were found, and it takes {LEAST_PIXELS:,}"
        )
    if method == "macenko":
        axes = -_macenko(_density(sample, white))
        return StainFrame(white, np.log(white), axes)
    colours = np.log(_intensities(sample) @ LMS) @ LAB
    to_logarithms = np.linalg.inv(LAB)
    spread = colours.std(0)
    if spread.min() < 1e-3:
        raise ValueError("the tissue has only one colour")
    return StainFrame(white, colours.mean(0) @ to_logarithms, spread[:, None] * to_logarithms)


def transform_between(own: StainFrame, target: StainFrame, method: Method) -> StainTransform:
    """Return what brings one stain's frame onto another's."""
    matrix = np.linalg.inv(own.axes) @ target.axes
    offset = target.origin - own.origin @ matrix
    mix = np.eye(3) if method == "macenko" else LMS
    return StainTransform(
        mix.astype(np.float32),
        matrix.astype(np.float32),
        offset.astype(np.float32),
        None if method == "macenko" else own.white.astype(np.float32),
    )


def _macenko(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions of both stains and of what is neither, as long as they are strong."""
    _, vectors = np.linalg.eigh(density.T @ density)
    plane = vectors[:, [2, 1]] * np.where(vectors[:, 2].sum() < 0, -1, 1)
    along, across = (density @ plane).T
    ends = np.percentile(np.arctan2(across, along), (ALPHA, 100 - ALPHA))
    if np.ptp(ends) < LEAST_ANGLE:
        raise ValueError(f"its stains are only {np.degrees(np.ptp(ends)):.0f}° apart in colour")
    stains = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.T
    # Haematoxylin takes more of the red than eosin does.
    stains = stains[np.argsort(-stains[:, 0])]
    rest = np.cross(*stains)
    directions = np.vstack([stains, rest / np.linalg.norm(rest)])
    amounts = density @ np.linalg.inv(directions)
    strength = np.percentile(amounts[:, :2], 100 - ALPHA, axis=0)
    return np.asarray(directions * np.append(strength, 1)[:, None])


def _density(pixels: NDArray[np.uint8], white: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return optical densities, natural logarithms, 0 for glass."""
    return np.asarray(np.log(white) - np.log(_intensities(pixels)))


def _intensities(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what share of full intensity comes through; black lets a little through, too."""
    return np.maximum(pixels, 1) / 255.0


_GLASS = np.array([0.9647, 0.9529, 0.9529])

REFERENCE: dict[Method, StainFrame] = {
    "macenko": StainFrame(
        _GLASS,
        np.log(_GLASS),
        -np.array([[1.766, 1.8078, 1.0562], [0.2403, 1.3338, 0.8006], [0.0172, -0.5169, 0.8559]]),
    ),
    "reinhard": StainFrame(
        _GLASS,
        np.array([-0.8322, -0.913, -0.7009]),
        np.array([[0.4182, 0.4182, 0.4182], [0.0485, 0.0485, -0.0969], [0.0216, -0.0216, 0.0]]),
    ),
}
"""The slide CMU-1-Small-Region (Aperio, CC0), as `stain_frame` finds it."""

"""Faults of slides: pen, folds, bubbles and black borders on a thumbnail; focus on a sample.

A stain takes light away, so colours are told by their optical density (natural logarithms, 0 for
the slide's own glass) and by the shares that red, green and blue have in it. At 8 µm, with a
density over 0.5, H&E of eight sources has red from 0.09 to 0.46, green from 0.28 and blue up to
0.39; haematoxylin with DAB has red up to 0.44 and blue up to 0.41. Inks lie outside.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gigavim.foreground import thumbnail
from gigavim.geometry import Grid
from gigavim.masks import Mask, covered
from gigavim.quality.findings import Fault, Quality, percent
from gigavim.quality.focus import COARSEST_UM, out_of_focus
from gigavim.sources.source import Pixels, Source
from gigavim.stain import glass
from gigavim.tissue import tissue

FINEST_UM = 8.0
"""All but focus is looked for no finer than this, and on 2048 pixels a side at most."""

BLUR = Fault("out of focus", (86, 180, 233))
FOLD = Fault("fold", (230, 159, 0))
BUBBLE = Fault("bubble", (240, 228, 66))
PEN = Fault("pen", (0, 158, 115))
BORDER = Fault("black border", (90, 90, 90))

BLACK = 24
"""Brightest band of a pixel that no light reached."""
PEN_MM2 = 0.03
"""A stroke is larger: a tenth of a millimetre of a fine pen."""
INK_REACH_UM = 300
"""So far beside ink, what is darker than tissue is ink on tissue, which has the colours of both."""
FOLD_UM = 150
"""Folds are narrower than twice this."""
FOLD_MM2 = 0.02
BUBBLE_UM = 200
"""Bubbles are wider."""
RIM_UM = 20
"""Their rims are narrower than twice this."""


def examine_slide(source: Source, grid: Grid, foreground: NDArray[np.bool_]) -> Quality:
    """Look for faults of a slide; see `examine`."""
    pixels, ratio_y, ratio_x = thumbnail(source, _side(source))
    spacing = source.spacing
    faults = (BLUR, FOLD, BUBBLE, PEN, BORDER)
    if pixels.values.shape[2] != 3 or pixels.values.dtype != np.uint8 or spacing is None:
        nothing = np.zeros(grid.shape, np.bool_)
        words = ["no 8-bit colours or no spacing: faults were not looked for"]
        return Quality.of(dict.fromkeys(faults, nothing), foreground, words)
    um = math.sqrt(ratio_y * spacing.y * ratio_x * spacing.x)
    found_tissue = tissue(pixels)
    words = [] if found_tissue.any() else ["no tissue was found: the slide may be empty"]
    seen = pixels.values[pixels.valid].max(axis=1, initial=0)
    if seen.size and np.percentile(seen, 25) < 48 and not _has_glass(pixels):
        nothing = np.zeros(grid.shape, np.bool_)
        words.append("the background is dark (fluorescence): faults of glass were not looked for")
        return Quality.of(dict.fromkeys(faults, nothing), foreground, words)

    def on_grid(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return covered(Mask(mask, ratio_y, ratio_x), grid)

    density = _density(pixels)
    border = black_border(pixels)
    density[border] = 0
    pen = pen_marks(density, um)
    pen = _with_ink_on_tissue(pen, density, found_tissue, um)
    clean = found_tissue & ~pen
    blurred = out_of_focus(source, grid, Mask(clean, ratio_y, ratio_x))
    if blurred is None:
        words.append(f"pixels over {COARSEST_UM:g} µm: too coarse to judge the focus")
        blurred = np.zeros(grid.shape, np.bool_)
    masks = {
        BLUR: blurred & foreground,
        FOLD: on_grid(folds(density, clean, um)),
        BUBBLE: on_grid(bubbles(density, um)),
        PEN: on_grid(pen),
        BORDER: on_grid(border),
    }
    quality = Quality.of(masks, foreground, (), borders=(BORDER,))
    for name, share in quality.shares.items():
        if share:
            of = "the image" if name == BORDER.name else "the tissue"
            words.append(f"{name}: {percent(share)} of {of}")
    return Quality(quality.labels, quality.names, quality.colours, quality.shares, tuple(words))


def pen_marks(density: NDArray[np.float32], um: float) -> NDArray[np.bool_]:
    """Find strokes of green, blue, red, yellow and black ink.

    Parameters
    ----------
    density
        Optical density, shape (height, width, 3).
    um
        Side of a pixel.
    """
    strength, red, green, blue = _strength_and_shares(density)
    grey = np.ptp(np.stack([red, green, blue]), axis=0) < 0.08
    ink = (
        ((green < 0.27) & (strength > 0.3))
        | ((red > 0.48) & (strength > 0.5))
        | ((blue > 0.42) & (red < 0.15) & (strength > 0.4))
        | ((blue > 0.50) & (strength > 0.2))
        | (grey & (strength > 1.8))
    )
    return _large(_opened(ink, 12 / um), PEN_MM2 * 1e6 / um**2)


def _with_ink_on_tissue(
    pen: NDArray[np.bool_], density: NDArray[np.float32], tissue: NDArray[np.bool_], um: float
) -> NDArray[np.bool_]:
    """Let strokes go on where they cross tissue."""
    from scipy import ndimage

    clean = tissue & ~pen
    if not pen.any() or not clean.any():
        return pen
    strength = density.mean(axis=2)
    dark = strength > 2 * np.median(strength[clean])
    reach = max(1, round(INK_REACH_UM / um))
    return np.asarray(ndimage.binary_dilation(pen, iterations=reach, mask=pen | dark), np.bool_)


def folds(density: NDArray[np.float32], tissue: NDArray[np.bool_], um: float) -> NDArray[np.bool_]:
    """Find narrow bands that take twice the light of the tissue beside them: two layers of it.

    Parameters
    ----------
    density
        Optical density, shape (height, width, 3).
    tissue
        Shape (height, width).
    um
        Side of a pixel.
    """
    from scipy import ndimage

    if not tissue.any():
        return tissue
    # Over gaps between cells, which two layers of loose tissue have as well.
    strength = ndimage.gaussian_filter(density.mean(axis=2), max(0.5, 8 / um))
    side = 2 * round(FOLD_UM / um) + 1
    beside = ndimage.grey_opening(strength, size=(side, side))
    # Darker than one layer of this slide gets, or epithelium beside loose tissue would be a fold.
    darkest = max(0.8, 1.3 * float(np.percentile(strength[tissue], 90)))
    ridge = tissue & (strength > 1.8 * beside) & (strength > darkest)
    return _large(_opened(ridge, 8 / um), FOLD_MM2 * 1e6 / um**2)


def bubbles(density: NDArray[np.float32], um: float) -> NDArray[np.bool_]:
    """Find air under the cover slip: round, and rimmed by a thin grey line.

    Parameters
    ----------
    density
        Optical density, shape (height, width, 3).
    um
        Side of a pixel.
    """
    from scipy import ndimage
    from skimage import measure

    strength, red, green, blue = _strength_and_shares(density)
    grey = np.ptp(np.stack([red, green, blue]), axis=0) < 0.15
    side = 2 * max(1, round(RIM_UM / um)) + 1
    thin = strength - ndimage.grey_opening(strength, size=(side, side)) > 0.25
    rims = measure.label(grey & thin, connectivity=2)  # type: ignore[no-untyped-call]
    found = np.zeros(rims.shape, np.bool_)
    for rim in measure.regionprops(rims):  # type: ignore[no-untyped-call]
        if rim.area_filled * um**2 < math.pi / 4 * BUBBLE_UM**2:
            continue
        # A disk fills its convex hull, and is as wide as it is high.
        if rim.area_filled > 0.9 * rim.area_convex and rim.eccentricity < 0.8:
            rows, columns = rim.slice
            found[rows, columns] |= rim.image_filled
    return found


def black_border(pixels: Pixels) -> NDArray[np.bool_]:
    """Find black along the rim of a thumbnail, where the scanner recorded nothing."""
    from scipy import ndimage

    black = (pixels.values.max(axis=2) <= BLACK) & pixels.valid
    parts, count = ndimage.label(black)
    rim = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    # A dark nucleus may touch the rim; a border runs along it.
    along = np.bincount(rim, minlength=count + 1)
    along[0] = 0
    return np.asarray((along >= max(4, min(parts.shape) // 20))[parts], np.bool_)


def _side(source: Source) -> int:
    """Longest side of the thumbnail."""
    finest, spacing = source.levels[0], source.spacing
    if spacing is None:
        return 2048
    extent_um = max(finest.height * spacing.y, finest.width * spacing.x)
    return min(2048, math.ceil(extent_um / FINEST_UM))


def _has_glass(pixels: Pixels) -> bool:
    """Tell whether any of a thumbnail is light."""
    return bool(np.mean(pixels.values[pixels.valid].min(axis=1) >= 128) >= 0.01)


def _density(pixels: Pixels) -> NDArray[np.float32]:
    """Return optical densities over the slide's glass, 0 where a pixel is not valid."""
    light = np.log(np.maximum(pixels.values, 1) / np.float32(255))
    over = np.maximum(np.log(glass(pixels)) - light, 0)
    return np.where(pixels.valid[..., None], over, 0).astype(np.float32)


def _strength_and_shares(density: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Return mean density, and the shares of red, green and blue."""
    total = density.sum(axis=2)
    shares = density / np.maximum(total, 1e-6)[..., None]
    return total / 3, shares[..., 0], shares[..., 1], shares[..., 2]


def _opened(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Drop what is narrower than twice the radius, in pixels."""
    from scipy import ndimage

    reach = round(radius)
    if reach < 1:
        return mask
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= radius + 0.3
    return np.asarray(ndimage.binary_opening(mask, disk), np.bool_)


def _large(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Drop connected parts of fewer pixels."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    kept = np.bincount(parts.ravel()) >= max(1.0, least)
    kept[0] = False
    return np.asarray(kept[parts], np.bool_)

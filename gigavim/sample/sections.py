"""Which tissue lies where on the sample slide: a made-up block of colon, cut and mounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.noise import smooth_noise
from gigavim.sample.stains import EPITHELIUM, GLANDS, MUSCLE, STROMA

CELL = 16
"""Side of a cell of the plan, in pixels."""


@dataclass(frozen=True)
class Section:
    """One piece of tissue, roughly an ellipse."""

    y: float
    """Of its centre; these and its radii are in heights of the slide."""
    x: float
    across: float
    along: float
    degrees: float
    """By how much it is turned."""
    kind: Literal["wall", "tumour", "pale"]
    """``wall`` has the layers of the colon, ``tumour`` nests of epithelium in stroma; ``pale`` took
    up little stain."""


SECTIONS = (
    Section(0.48, 0.35, 0.20, 0.37, 62, "wall"),
    Section(0.30, 0.92, 0.20, 0.24, -20, "tumour"),
    Section(0.80, 1.01, 0.10, 0.19, 12, "pale"),
    Section(0.08, 0.66, 0.025, 0.05, 30, "pale"),
    Section(0.93, 0.63, 0.02, 0.035, -40, "tumour"),
)

GAINS = np.array([(1.0, 1.0), (1.25, 1.0), (0.9, 0.95), (0.6, 1.6)], np.float32)
"""How strongly each texture takes haematoxylin and eosin."""


@dataclass(frozen=True)
class Layout:
    """What is painted where, on a grid of cells with one more on each side."""

    edge: NDArray[np.float32]
    """Pixels to the rim of the tissue, negative outside it, shape (rows + 2, columns + 2)."""
    stain: NDArray[np.float32]
    """How much each texture gives of haematoxylin and eosin, of shape
    (4, 2, rows + 2, columns + 2)."""
    parts: NDArray[np.float32]
    """Four patchworks of parts of the slide that add up to 1, shape (4, rows + 2, columns + 2)."""


def lay_out(rows: int, columns: int, rng: np.random.Generator) -> Layout:
    """Make up a slide of ``rows`` x ``columns`` cells."""
    from scipy import ndimage

    shape = rows + 2, columns + 2

    def noise(size: float, slope: float = 3.0) -> NDArray[np.float32]:
        """Features as large as a share of the slide's height."""
        return smooth_noise(shape, size * rows, rng, slope=slope)

    def shares(index: NDArray[np.intp]) -> NDArray[np.float32]:
        """Turn numbers from 0 to 3 into four softly bounded shares."""
        each = [ndimage.gaussian_filter((index == n).astype(np.float32), 0.5) for n in range(4)]
        return np.stack(each)

    edge = np.full(shape, -np.inf, np.float32)
    texture = np.zeros(shape, np.intp)
    strength = np.ones(shape, np.float32)
    y, x = (np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32) - 0.5) / rows
    outline, layers, nests, follicles = noise(0.1), noise(0.06), noise(0.025), noise(0.012)
    for section in SECTIONS:
        turn = np.deg2rad(section.degrees)
        dy, dx = y - section.y, x - section.x
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / section.along
        v = (dy * np.cos(turn) - dx * np.sin(turn)) / section.across + 0.3 * u**2
        inside = (1 - np.hypot(u, v) + 0.13 * outline) * section.across * rows * CELL
        match section.kind:
            case "wall":
                depth = v + 0.12 * layers
                wanted = np.select([depth < -0.3, depth < 0.12], [GLANDS, STROMA], MUSCLE)
                wanted[(np.abs(depth + 0.25) < 0.15) & (follicles > 1.1)] = EPITHELIUM
            case "tumour":
                wanted = np.select([nests > 0.4, nests > -0.6], [EPITHELIUM, GLANDS], STROMA)
            case "pale":
                wanted = np.where(nests > 1.2, GLANDS, STROMA)
        here = inside > edge
        edge[here], texture[here] = inside[here], wanted[here]
        strength[here] = 0.4 if section.kind == "pale" else 1.0
    # Vessels and clefts are empty; they lie in the loose tissue.
    edge = np.where(texture == STROMA, np.minimum(edge, 90 * (2.2 - noise(0.015))), edge)
    uneven = 1 + 0.1 * np.stack([noise(0.2), noise(0.2)])
    stain = shares(texture)[:, None] * strength * GAINS[:, :, None, None] * uneven
    patchwork = np.argmax([noise(0.04) for _ in range(4)], axis=0)
    return Layout(edge.astype(np.float32), stain.astype(np.float32), shares(patchwork))

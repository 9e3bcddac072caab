"""Where pixels lie in napari's world, whose coordinates are (y, x).

Of a slide, micrometres from the top-left corner of the image. Of a scene, x is the easting and y is
minus the northing, so that north is up and scenes line up, in the unit of the CRS.

An image has its corner at (0, 0); napari takes whole numbers for the centres of pixels. Half a
pixel lies between the two, and half a patch on a map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Spacing
from gigavim.georeference import Transform

Affine = NDArray[np.float64]
"""Shape (3, 3): (row, column, 1) to (y, x, 1)."""

_UNITS = {"µm": "micrometer", "metre": "meter", "degree": "degree", "foot": "foot",
          "US survey foot": "survey_foot"}  # fmt: skip


def layer_units(unit: str) -> tuple[str, str]:
    """Return a unit as layers want it; pixels where napari does not know it.

    The scale bar has a unit as long as that of all layers is one of the same kind.
    """
    name = _UNITS.get(unit, "pixel")
    return name, name


def world_of_level0(spacing: Spacing, transform: Transform | None = None) -> Affine:
    """Return where the corners of level-0 pixels lie.

    Parameters
    ----------
    transform
        Level-0 pixels to the CRS, of a scene.

    >>> world_of_level0(Spacing(0.5, 0.25, "µm", "user")) @ (2, 4, 1)
    array([1., 1., 1.])
    >>> utm = (10, 0, 5e5, 0, -10, 6e6)
    >>> world_of_level0(Spacing(10, 10, "metre", "transform"), utm) @ (2, 4, 1)
    array([-5.99998e+06,  5.00040e+05,  1.00000e+00])
    """
    if transform is None:
        return np.diag([spacing.y, spacing.x, 1.0])
    a, b, c, d, e, f = transform
    return np.array([[-e, -d, -f], [b, a, c], [0.0, 0.0, 1.0]])


def layer_affine(
    world: Affine,
    cell: tuple[float, float] = (1.0, 1.0),
    corner: tuple[float, float] = (0.0, 0.0),
) -> Affine:
    """Return where the centres of an array's pixels lie, as napari's layers want it.

    Parameters
    ----------
    world
        Corners of level-0 pixels to the world.
    cell
        Height and width of a pixel of the array, in level-0 pixels.
    corner
        Top and left of the array, in level-0 pixels.

    >>> layer_affine(np.eye(3), cell=(16, 16)) @ (0, 1, 1)
    array([ 8., 24.,  1.])
    """
    centres = np.diag([*cell, 1.0])
    centres[:2, 2] = np.asarray(corner) + np.asarray(cell) / 2
    return world @ centres


def to_world(
    world: NDArray[np.floating[Any]], points: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Move (row, column) points, shape (n, 2), to (y, x)."""
    return np.asarray(points @ world[:2, :2].T + world[:2, 2])


def from_world(world: Affine, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Move (y, x) points, shape (n, 2), to (row, column)."""
    return to_world(np.linalg.inv(world), points)

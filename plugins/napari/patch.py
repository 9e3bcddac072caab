"""What a run says of one patch of its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gigavim.ngff import Colour
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.world import from_world
from gigavim.similarity import FeatureTable, Similar

SAMPLE = 10_000
"""Similarities that the range of colours is found by."""
DARKEST = 5
"""Percentage of patches that have the darkest colour."""
ALIKE = 0.99
"""The darkest colour at most: where all are more alike, colours would show rounding."""


@dataclass(frozen=True, slots=True)
class ClassOfPatch:
    """A class that a patch has, or may have."""

    head: str
    name: str
    colour: Colour
    probability: float | None
    """None from a head that answers with classes alone."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One token and its place."""

    token: int
    """Row of ``tokens/*``."""
    row: int
    """On the grid of patches."""
    column: int
    x: int
    """Of its top-left corner, in level-0 pixels."""
    y: int
    is_readable: bool
    classes: tuple[ClassOfPatch, ...]
    """The likeliest first; all of a head with probabilities, one of a head without."""


@dataclass(frozen=True, eq=False, slots=True)
class Comparison:
    """What a patch was found to be like, as it is shown."""

    similar: Similar
    heat: NDArray[np.float32]
    """Similarity of each cell of the grid, NaN where there is none, shape (rows, columns)."""
    limits: tuple[float, float]
    """Range of similarities to show in colours."""


def patch_at(results: Results, y: float, x: float) -> Patch | None:
    """Return the patch at a place in the world; None where no patch was read."""
    token = results.token_at(y, x)
    if token is None:
        return None
    row, column = results.grid_index[token].tolist()
    left, top = np.asarray(results.store.array("tokens/coords")[token]).tolist()
    is_readable = bool(results.store.array("tokens/valid")[token])
    classes = [found for head in results.heads for found in _classes(results, head, token)]
    return Patch(token, row, column, left, top, is_readable, tuple(classes))


def why_no_patch(results: Results, y: float, x: float) -> str:
    """Say why there is no patch at a place in the world."""
    image = results.store.attributes["source"]
    row, column = from_world(results.world, np.array([[y, x]]))[0]
    if 0 <= row < image["height"] and 0 <= column < image["width"]:
        return "There is no patch here: the run took it for background, or left it out by its mask."
    return "There is no patch here: this is outside of the image."


def compare(results: Results, table: FeatureTable, token: int, count: int) -> Comparison:
    """Find the patches that are most like one, which comes first.

    Parameters
    ----------
    count
        Patches to find besides the asked one.
    """
    similar = table.similar(token, count + 1)
    heat = np.full(results.rows.shape, np.nan, np.float32)
    heat[results.grid_index[:, 0], results.grid_index[:, 1]] = similar.similarity
    some = similar.similarity[:: max(1, len(similar.similarity) // SAMPLE)]
    low = float(np.nanpercentile(np.append(some, np.float32(1)), DARKEST))
    return Comparison(similar, heat, (min(low, ALIKE), 1.0))


def _classes(results: Results, head: str, token: int) -> list[ClassOfPatch]:
    """Return what a head says of a patch; nothing if it does not speak of patches."""
    names, colours = results.classes(head)
    labels = results.levels(f"labels/{head}")[0]
    if labels.shape != results.rows.shape:
        return []
    if head == "classify" and "tokens/probs" in results.store.group:
        probs = np.asarray(results.store.array("tokens/probs")[token], np.float32)
        if np.isnan(probs).any():
            return []
        order = np.argsort(-probs, kind="stable")
        return [ClassOfPatch(head, names[k], colours[k], float(probs[k])) for k in order]
    row, column = results.grid_index[token]
    label = int(labels[row, column])
    return [ClassOfPatch(head, names[label - 1], colours[label - 1], None)] if label else []

"""The layers that show a patch and what it is like: its outline, points, and a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image, Layer, Points, Shapes

from gigavim.plugins.napari.patch import Comparison
from gigavim.plugins.napari.results import FOREGROUND, Results
from gigavim.plugins.napari.world import layer_units

KINDS = SIMILARITY, SIMILAR, ASKED = "similarity", "similar", "asked"
"""Of these layers, the lowest first."""
GREEN, CYAN = "#39ff14", "#00e5ff"
"""Of the asked patch and of those like it: colours that neither stains nor land have."""
SMALLEST = 9
"""Pixels of a mark on the screen, however far away."""


def mark(viewer: Any, results: Results, token: int) -> None:
    """Outline a patch."""
    corners, width = results.cell_corners(token), 0.06 * _side(results, token)
    layer = _layer(viewer, ASKED, results)
    if layer is not None:
        layer.data = [corners]
        return
    outline = Shapes(
        [corners],
        shape_type="polygon",
        name="asked patch",
        edge_color=GREEN,
        edge_width=width,
        face_color="transparent",
        opacity=1,
        **_common(results, ASKED),
    )
    _add(viewer, outline)


def show_similar(viewer: Any, results: Results, found: Comparison) -> None:
    """Show the patches that are like the asked one, and how alike all are."""
    _show_heat(viewer, results, found)
    tokens = found.similar.tokens
    places = results.token_centres(tokens)
    side = _side(results, int(tokens[0]))
    # From near, the asked patch has its outline, and no more than a dot.
    sizes = np.array([side / 10, *[side] * (len(tokens) - 1)])
    colours = [GREEN, *[CYAN] * (len(tokens) - 1)]
    features = {"token": tokens, "similarity": found.similar.similarity[tokens]}
    layer = _layer(viewer, SIMILAR, results)
    if layer is not None:
        layer.data = places
        layer.features = features
        layer.size = sizes
        layer.border_color = colours
        return
    points = Points(
        places,
        name="similar patches",
        size=sizes,
        symbol="square",
        face_color="transparent",
        border_color=colours,
        border_width=0.1,
        canvas_size_limits=(SMALLEST, 10_000),
        features=features,
        **_common(results, SIMILAR),
    )
    _add(viewer, points)


def clear(viewer: Any, *kinds: str) -> None:
    """Remove the layers of these kinds."""
    for layer in [layer for layer in viewer.layers if _ours(layer).get("kind") in kinds]:
        viewer.layers.remove(layer)


def _show_heat(viewer: Any, results: Results, found: Comparison) -> None:
    layer = _layer(viewer, SIMILARITY, results)
    if layer is not None:
        layer.data = found.heat
        layer.contrast_limits = found.limits
        return
    heat = Image(
        found.heat,
        name="similarity",
        affine=results.affine(f"labels/{FOREGROUND}"),
        colormap="inferno",
        contrast_limits=found.limits,
        opacity=0.7,
        **_common(results, SIMILARITY),
    )
    heat.colorbar.visible = True
    _add(viewer, heat)


def _layer(viewer: Any, kind: str, results: Results) -> Any | None:
    """Return the layer of a kind if it is of this run; remove that of another run."""
    for layer in viewer.layers:
        if _ours(layer).get("kind") == kind:
            if _ours(layer)["store"] == str(results.store.path):
                return layer
            viewer.layers.remove(layer)
            return None
    return None


def _add(viewer: Any, layer: Layer) -> None:
    """Add a layer above the others, in the order of kinds, and leave selected what is."""
    active = viewer.layers.selection.active
    above = KINDS[KINDS.index(_ours(layer)["kind"]) + 1 :]
    place = next(
        (n for n, other in enumerate(viewer.layers) if _ours(other).get("kind") in above),
        len(viewer.layers),
    )
    viewer.layers.insert(place, layer)
    viewer.layers.selection.active = active


def _common(results: Results, kind: str) -> dict[str, Any]:
    """Return what our layers have in common."""
    about = {"kind": kind, "head": None, "store": str(results.store.path)}
    return {
        "units": layer_units(results.unit),
        "axis_labels": ("y", "x"),
        "metadata": {"gigavim": about | {"source": results.source}},
    }


def _ours(layer: Any) -> dict[str, Any]:
    return layer.metadata.get("gigavim") or {}


def _side(results: Results, token: int) -> float:
    """Return the shorter side of a token's cell, in the world."""
    first, second, third, _ = results.cell_corners(token)
    return float(min(np.linalg.norm(second - first), np.linalg.norm(third - second)))

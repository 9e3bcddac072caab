"""A class map as a viewer shows it now: which classes, from which probability on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from gigavim.ngff import Colour
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.threshold import HeadMap, NucleiMap
from gigavim.plugins.napari.window import keep_fresh


@dataclass(frozen=True, eq=False)
class Shown:
    """The class map of a head, and the layer that it is shown by."""

    results: Results
    head: str
    map: HeadMap
    layer: Labels

    @property
    def threshold(self) -> float:
        """Least probability of a cell that is shown."""
        return threshold_of(self.layer)

    def cut(self, threshold: float) -> None:
        """Leave out cells whose highest probability is lower."""
        layer, found = self.layer, self.map
        layer.metadata["gigavim"]["threshold"] = threshold
        levels = found.levels(threshold, len(layer.data) if layer.multiscale else 1)
        # First, or the window would wait once for what it does not know to be read beside it.
        if isinstance(found, NucleiMap):
            keep_fresh(layer, found.pixels)
            keep_fresh(layer, found.probabilities)
        layer.data = levels if layer.multiscale else np.asarray(levels[0])

    def legend(self) -> list[tuple[Colour, str, str]]:
        """Return colour, name and size of the classes that are seen."""
        if not self.layer.visible:
            return []
        found, hidden = self.map, hidden_classes(self.layer)
        sizes, rows = found.sizes(self.threshold), found.rows(self.threshold)
        return [
            (found.colours[row], found.names[row], f"{words[0]} {found.columns[0]}")
            for row, words in enumerate(rows)
            if row + 1 not in hidden and sizes[row] > 0
        ]

    def title(self) -> str:
        """Say what a picture is of."""
        model = self.results.store.attributes["model"]["id"]
        above = f", probability ≥ {self.threshold:.2f}" if self.threshold else ""
        return f"{Path(self.results.source).name}: {self.head} by {model}{above}"


def threshold_of(layer: Any) -> float:
    """Return what the class map of a layer was last cut at."""
    return float(layer.metadata["gigavim"].get("threshold", 0.0))


def hidden_classes(layer: Any) -> set[int]:
    """Return the classes that a layer does not show."""
    colours = layer.colormap.color_dict.items()
    return {label for label, colour in colours if label and colour[3] == 0}


def show_class(layer: Any, label: int, is_shown: bool) -> None:
    """Show or hide a class of a layer; its data stay."""
    colours = dict(layer.colormap.color_dict)
    colours[label] = (*colours[label][:3], float(is_shown))
    layer.colormap = DirectLabelColormap(color_dict=colours)

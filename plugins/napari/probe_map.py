"""What a few annotations make of a whole image, and the layers that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import Colormap, DirectLabelColormap
from numpy.typing import NDArray

from gigavim.annotations import Annotation
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.world import layer_affine, layer_units
from gigavim.probe import Encoded, Probe, fit_probe

HEAD = "probe"


@dataclass(frozen=True, eq=False)
class Taught:
    """A probe, and its map."""

    probe: Probe
    encoded: Encoded
    labels: NDArray[np.uint8]
    """As of `Probe.map`."""
    probs: NDArray[np.float16]
    """As of `Probe.map`."""

    @cached_property
    def amounts(self) -> dict[str, tuple[str, str]]:
        """By class, how many patches were learned from and how much of the image has it."""
        found = np.bincount(self.labels.ravel(), minlength=len(self.probe.counts) + 1)[1:]
        shares = found / max(1, found.sum())
        rows = zip(self.probe.classes.names, self.probe.counts, shares, strict=True)
        return {name: (str(count), f"{share:.1%}") for name, count, share in rows}

    @property
    def words(self) -> str:
        """How well the shapes foretell each other."""
        if self.probe.accuracy is None:
            return "Draw two shapes or more of each class to see how well they foretell each other."
        return (
            f"{self.probe.accuracy:.0%} right in shapes that were held out: mean of the classes, "
            f"{self.probe.folds} parts, each shape whole in one of them"
        )


def teach(results: Results, encoded: Encoded | None, annotations: Sequence[Annotation]) -> Taught:
    """Fit a probe and map the image with it; seconds for a million patches.

    Parameters
    ----------
    encoded
        What the store holds, if it was read before.

    Raises
    ------
    GigavimError
        If there are no features, or fewer than two classes.
    """
    encoded = encoded or Encoded.of(results.store)
    probe = fit_probe(encoded, annotations)
    return Taught(probe, encoded, *probe.map(encoded))


def show_taught(viewer: Any, results: Results, taught: Taught) -> None:
    """Show the map of a probe, in the layers of the last one where there are any.

    Classes are a layer of labels, and each has a hidden one of probabilities. What people draw
    stays on top and selected.
    """
    grid = taught.encoded.grid
    placed: dict[str, Any] = {
        "affine": layer_affine(
            results.world, (grid.cell_y, grid.cell_x), (grid.corner_y, grid.corner_x)
        ),
        "units": layer_units(results.unit),
        "axis_labels": ("y", "x"),
    }
    before = {_key(layer): layer for layer in viewer.layers if _is_ours(layer, results)}
    names, colours = taught.probe.classes.names, taught.probe.classes.colours
    clear = np.zeros(4)
    table: dict[int | None, NDArray[np.floating[Any]]] = {None: clear, 0: clear}
    table |= {label: np.array([*rgb, 255]) / 255 for label, rgb in enumerate(colours, 1)}
    colormap = DirectLabelColormap(color_dict=table)
    features = {"index": np.arange(len(names) + 1), "class": ["background", *names]}
    shown = before.pop(("classes", None), None)
    if shown is None:
        _insert(
            viewer,
            Labels(
                taught.labels, name=f"probe · {stem_of(results)}", colormap=colormap, opacity=0.5,
                features=features, metadata=_ours(results, "classes", None), **placed,
            ),
        )  # fmt: skip
    else:
        shown.colormap, shown.features, shown.data = colormap, features, taught.labels
    for name, rgb, probs in zip(names, colours, taught.probs, strict=True):
        red, green, blue = np.array(rgb) / 255
        ramp = Colormap([[red, green, blue, 0], [red, green, blue, 1]], name=name)
        layer = before.pop(("probabilities", name), None)
        if layer is None:
            _insert(
                viewer,
                Image(
                    probs, name=f"probe: {name} · {stem_of(results)}", colormap=ramp,
                    contrast_limits=(0, 1), visible=False, blending="translucent",
                    metadata=_ours(results, "probabilities", name), **placed,
                ),
            )  # fmt: skip
        else:
            layer.data, layer.colormap = probs, ramp
    for left in before.values():
        viewer.layers.remove(left)


def kind_of(layer: Any) -> str | None:
    """Return what a layer of the plugin is, None for another one."""
    ours = (layer.metadata.get("gigavim") if layer is not None else None) or {}
    return ours.get("kind")


def store_of(layer: Any) -> str | None:
    """Return the store that a layer shows, None if it shows none."""
    ours = (layer.metadata.get("gigavim") if layer is not None else None) or {}
    return ours.get("store")


def stem_of(results: Results) -> str:
    """Return the name of a store, without what all their names end with."""
    return results.store.path.name.removesuffix(".zarr").removesuffix(".gigavim")


def _ours(results: Results, kind: str, name: str | None) -> dict[str, Any]:
    """Return what the plugin knows its layers by."""
    store, source = str(results.store.path), results.source
    return {
        "gigavim": {"kind": kind, "head": HEAD, "store": store, "source": source, "class": name}
    }


def _is_ours(layer: Any, results: Results) -> bool:
    ours = layer.metadata.get("gigavim") or {}
    return ours.get("head") == HEAD and ours.get("store") == str(results.store.path)


def _key(layer: Any) -> tuple[str, str | None]:
    ours = layer.metadata["gigavim"]
    return ours["kind"], ours["class"]


def _insert(viewer: Any, layer: Any) -> None:
    """Add a layer beneath the shapes, which stay selected."""
    active = viewer.layers.selection.active
    shapes = [n for n, other in enumerate(viewer.layers) if kind_of(other) == "annotations"]
    viewer.layers.insert(min(shapes, default=len(viewer.layers)), layer)
    viewer.layers.selection.active = active


def _stem(results: Results) -> str:
    return results.store.path.name.removesuffix(".zarr").removesuffix(".gigavim")

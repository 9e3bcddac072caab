"""Layers of images and of results: data, attributes and type, as readers return them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import Colormap, DirectLabelColormap
from napari.utils.colormaps.standardize_color import transform_color
from napari.utils.notifications import show_info

from gigavim.geometry import Spacing, Window
from gigavim.plugins.napari.lazy import Pyramid
from gigavim.plugins.napari.pyramids import (
    band_pyramid,
    label_pyramid,
    rgba_pyramid,
    value_pyramid,
)
from gigavim.plugins.napari.results import FAULTS, FOREGROUND, Results
from gigavim.plugins.napari.world import Affine, layer_affine, layer_units, world_of_level0
from gigavim.sources import Pixels, Source, open_source, reopen
from gigavim.sources.source import RGB
from gigavim.views.rgb import Stretch

LayerData = tuple[Any, dict[str, Any], str]

LATTICE = 8
"""Windows to a side of the lattice in which the range of values is looked for."""
WINDOW = 256
"""Pixels to a side of each."""

CHANNELS = ("blue", "green", "red", "cyan", "magenta", "yellow", "gray")
"""Colours of the channels of a slide that has others than red, green and blue."""

MOST_BANDS = 16
"""That get layers of their own, each of which takes napari a third of a second."""

MOST_OBJECTS = 1_000_000
"""That a layer of points takes in a second or so; more are seen in the class map alone."""


def image_layers(path: str, results: Results | None = None) -> list[LayerData]:
    """Show an image in colours; by its bands, the channels of fluorescence together.

    Parameters
    ----------
    results
        Of the image, which say where it lies and what its bands are.

    Raises
    ------
    SourceError
        If it cannot be read.
    """
    asked = None if results is None else results.store.attributes["configuration"]["bands"]
    source = open_source(path) if results is None else results.open_image(path)

    def narrowed(indices: Sequence[int]) -> Source:
        return reopen(source, [asked[i] if asked else source.bands[i].name for i in indices])

    if results is None:
        spacing = source.spacing or Spacing(1, 1, "pixel", "not known")
        world = world_of_level0(spacing, source.transform if source.kind == "scene" else None)
        unit, store = spacing.unit, None
    else:
        world, unit, store = results.world, results.unit, str(results.store.path)
    name, bands = Path(source.path).name, source.bands
    common = _placed(layer_affine(world), unit) | {
        "multiscale": True,
        "metadata": _ours("image", None, store, source.path),
    }
    if bands == RGB and source.dtype == np.uint8:
        pyramid = rgba_pyramid(source, Stretch((0, 1, 2), None, None))
        return [(list(pyramid.levels), common | {"name": name, "rgb": True}, "image")]
    pixels = _samples(source)
    is_composed = source.kind == "scene" and len(bands) >= 3
    is_channel = not is_composed and len(bands) > 1
    layers = []
    if len(bands) > MOST_BANDS:
        show_info(f"{name} has {len(bands)} bands, of which the first {MOST_BANDS} are layers")
    for index, band in enumerate(bands[:MOST_BANDS]):
        one = Stretch.of(Pixels(pixels.values[..., [index]], pixels.valid), [band])
        shown = {
            "name": f"{name} · {band.name}" if len(bands) > 1 else name,
            "contrast_limits": _limits(one),
            "visible": not is_composed,
            "blending": "additive" if is_channel else "translucent",
            "colormap": CHANNELS[index % len(CHANNELS)] if is_channel else "gray",
        }
        pyramid = band_pyramid(narrowed([index]))
        layers.append((list(pyramid.levels), common | shown, "image"))
    if is_composed:
        stretch = Stretch.of(pixels, bands)
        pyramid = rgba_pyramid(
            narrowed(stretch.bands), Stretch((0, 1, 2), stretch.low, stretch.span)
        )
        colours = f"{name} · {', '.join(bands[index].name for index in stretch.bands)}"
        layers.append((list(pyramid.levels), common | {"name": colours, "rgb": True}, "image"))
    return layers


def result_layers(results: Results) -> list[LayerData]:
    """Show the first class map of a store and, hidden beneath it, all that there is."""
    layers = []
    for name, kind in ((FOREGROUND, "foreground"), (FAULTS, "mask")):
        if name in results.label_maps:
            layers.append(_class_layer(results, name, kind, is_visible=False))
    for name in results.value_maps:
        layers += _value_layers(results, name)
    if "objects" in results.store.group:
        layers += [_objects_layer(results, head) for head in results.heads if _has(results, head)]
    for head in reversed(results.heads):
        layers.append(_class_layer(results, head, "classes", is_visible=head == results.heads[0]))
    return layers


def add_results(viewer: Any, results: Results) -> None:
    """Show results in a viewer, and their image if it is there; what is shown already stays.

    Raises
    ------
    GigavimError
        If the image cannot be read.
    """
    if results.has_image:
        add_image(viewer, results)
    shown = {
        (layer.name, (layer.metadata.get("gigavim") or {}).get("store")) for layer in viewer.layers
    }
    for data, attributes, kind in result_layers(results):
        if (attributes["name"], str(results.store.path)) not in shown:
            viewer.add_layer(window_layer((data, attributes, kind)))


def add_image(viewer: Any, results: Results) -> None:
    """Show the image of results beneath all else, unless it is shown.

    Raises
    ------
    GigavimError
        If the image cannot be read.
    """
    ours = [layer.metadata.get("gigavim") or {} for layer in viewer.layers]
    if any((its.get("kind"), its.get("source")) == ("image", results.source) for its in ours):
        return
    layers = image_layers(results.source, results)
    for index, data in enumerate(layers):
        viewer.layers.insert(index, window_layer(data))
    for its in ours:
        if its.get("store") == str(results.store.path):
            its["source"] = results.source


def window_layer(data: LayerData) -> Layer:
    """Return a layer for a window that `attach` keeps fresh: to make it, nothing is waited for."""
    never_wait([data])
    return Layer.create(*data)


def never_wait(layers: Sequence[LayerData]) -> None:
    """Have layers made without waiting for what they show."""
    for data, *_ in layers:
        if isinstance(data, list):
            data[0].pyramid.waits = False


def _class_layer(results: Results, head: str, kind: str, *, is_visible: bool) -> LayerData:
    names, colours = results.classes(head)
    clear = np.zeros(4)
    table: dict[int | None, Any] = {None: clear, 0: clear}
    table |= {label: np.array([*colour, 255]) / 255 for label, colour in enumerate(colours, 1)}
    attributes = _placed(results.affine(f"labels/{head}"), results.unit) | {
        "name": f"{head} · {_stem(results)}",
        "colormap": DirectLabelColormap(color_dict=table),
        "features": {"index": range(len(names) + 1), "class": ["background", *names]},
        "opacity": 0.5,
        "visible": is_visible,
        "metadata": _ours(kind, head, str(results.store.path), results.source),
    }
    return _flat(label_pyramid(results.levels(f"labels/{head}")), attributes, "labels")


def _value_layers(results: Results, name: str) -> list[LayerData]:
    layers = []
    arrays, placed = results.levels(f"maps/{name}"), results.affine(f"maps/{name}")
    # What a head says of classes is probabilities, attention is a map of its own.
    kind = "probabilities" if name in results.heads else "map"
    for channel, (label, colour, limits) in enumerate(results.channels(name)):
        red, green, blue, _ = transform_color(colour)[0]
        attributes = _placed(placed, results.unit) | {
            "name": f"{name}: {label} · {_stem(results)}",
            "colormap": Colormap([[red, green, blue, 0], [red, green, blue, 1]], name=label),
            "contrast_limits": limits if limits[0] < limits[1] else (limits[0], limits[0] + 1),
            "visible": False,
            "metadata": _ours(kind, name, str(results.store.path), results.source),
        }
        layers.append(_flat(value_pyramid(arrays, channel), attributes, "image"))
    return layers


def _objects_layer(results: Results, head: str) -> LayerData:
    """Show what was found as disks of its area, in level-0 pixels from the image's corner."""
    group = f"objects/{head}"
    area = results.store.values(f"{group}/area_um2")
    y, x = results.spacing
    attributes = _placed(results.world, results.unit) | {
        "name": f"{head}, one by one · {_stem(results)}",
        "size": 2 * np.sqrt(area / np.pi / (y * x)),
        "face_color": "transparent",
        "border_color": np.array([*results.classes(head)[1][0], 255]) / 255,
        "features": {
            "area_um2": area,
            "probability": results.store.values(f"{group}/probability"),
        },
        "visible": False,
        "metadata": _ours("objects", head, str(results.store.path), results.source),
    }
    return results.store.values(f"{group}/centroids")[:, ::-1], attributes, "points"


def _has(results: Results, head: str) -> bool:
    """Whether the objects of a head are all there, and not too many for a layer."""
    ends: Any = results.store.group.get(f"objects/{head}/ends")
    return ends is not None and 0 < ends.shape[0] <= MOST_OBJECTS


def _placed(affine: Affine, unit: str) -> dict[str, Any]:
    return {"affine": affine, "units": layer_units(unit), "axis_labels": ("y", "x")}


def _ours(kind: str, head: str | None, store: str | None, source: str) -> dict[str, Any]:
    """Return what the plugin knows its layers by."""
    return {"gigavim": {"kind": kind, "head": head, "store": store, "source": source}}


def _flat(pyramid: Pyramid, attributes: dict[str, Any], kind: str) -> LayerData:
    """Return a map of one level as the small array that it is."""
    if len(pyramid.levels) > 1:
        return list(pyramid.levels), attributes | {"multiscale": True}, kind
    return np.asarray(pyramid.levels[0]), attributes, kind


def _stem(results: Results) -> str:
    return results.store.path.name.removesuffix(".zarr").removesuffix(".gigavim")


def _samples(source: Source) -> Pixels:
    """Read the coarsest level, or a lattice of windows where there are no coarse ones."""
    number, level = len(source.levels) - 1, source.levels[-1]
    if max(level.height, level.width) <= LATTICE * WINDOW:
        return source.read_level(number, Window(0, 0, level.height, level.width))
    tops, lefts = (
        np.linspace(0, max(0, size - WINDOW), LATTICE).astype(int).tolist()
        for size in (level.height, level.width)
    )
    windows = [Window(y, x, WINDOW, WINDOW) for y in tops for x in lefts]
    parts = [source.read_level(number, window) for window in windows]
    return Pixels(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.valid for part in parts]),
    )


def _limits(stretch: Stretch) -> tuple[float, float]:
    """Return the range of a band as napari wants it, never empty."""
    if stretch.low is None or stretch.span is None:
        return 0.0, 255.0
    low, high = float(stretch.low[0]), float(stretch.low[0] + stretch.span[0])
    return (low, high) if high > low else (low, low + 1)

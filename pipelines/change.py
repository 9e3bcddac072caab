"""From two finished runs of one place to a map of what changed between them."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from gigavim import __version__
from gigavim.area import cell_areas
from gigavim.change import ROWS_AT_ONCE, differences, standard_of, threshold_of
from gigavim.config import Resources, RunConfig, source_options
from gigavim.errors import GigavimError
from gigavim.exports.result import Result
from gigavim.foreground import thumbnail
from gigavim.georeference import Registration
from gigavim.head import ClassTable
from gigavim.pipelines.maps import FOREGROUND, PICTURE_SIDE
from gigavim.pipelines.report import Progress
from gigavim.pipelines.run import run_image
from gigavim.pipelines.stack.plan import set_up_alike
from gigavim.quality.scene import CLOUD, SHADOW
from gigavim.sources import open_source
from gigavim.store import ResultStore
from gigavim.store.naming import SUFFIX, store_path
from gigavim.views.geotiff import write_class_geotiff, write_value_geotiff
from gigavim.views.overlay import write_overlay
from gigavim.views.rgb import to_rgb

logger = logging.getLogger(__name__)

CHANGE = ClassTable(("unchanged", "changed"), ((200, 200, 200), (213, 94, 0)))
SCORE = "change_score"
SAME_PLACE = 1e-3
"""Of a cell, by which two grids may differ."""


@dataclass(frozen=True)
class ChangeSummary:
    """What was found between two dates."""

    store: str
    status: str
    """``complete`` or ``skipped``: it was complete before."""
    before: str
    after: str
    cells: int
    """That are seen on both dates."""
    threshold: float
    """Score from which on a cell has changed."""
    changed: float
    """Share of the cells that have."""
    changed_area: float | None
    """In `area_unit`; None where areas are not known."""
    area_unit: str | None
    overlay: str | None
    geotiff: str | None
    score_geotiff: str | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON would hold them."""
        return asdict(self)


def results_of(
    images: tuple[str, str],
    folder: Path,
    config: RunConfig,
    resources: Resources,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Run two images of one place on the same pixels, and return their stores.

    Raises
    ------
    GigavimError
        If an image, the model, the device or a store fail, or the images lie on other pixels.
    """
    config = dataclasses.replace(config, heads=config.heads or ("features",))
    stores = [store_path(image, folder, alone=False) for image in images]
    if stores[0] == stores[1]:
        raise GigavimError(
            f"{images[0]} and {images[1]} have one name, and results are named by it; rename one"
        )
    for setup, image, store in zip(set_up_alike(images, config), images, stores, strict=True):
        run_image(
            image, store, setup.config, resources, force=force, command=command, progress=progress
        )
    return stores[0], stores[1]


def map_change(
    before: str | Path,
    after: str | Path,
    path: Path,
    *,
    threshold: float | None = None,
    force: bool = False,
    command: Sequence[str] = (),
) -> ChangeSummary:
    """Map what changed between two finished runs of one place by one model.

    What is cloud or shadow on either date by the image's own quality band, or was not read, has no
    score. Beside the store go a picture and, of what lies on Earth, a GeoTIFF of the two classes
    and one of the scores.

    Parameters
    ----------
    path
        The store to write, ``<name>.gigavim.zarr``: a run's, with features that are the difference
        of both dates' and the map ``change``.
    threshold
        Score from which on a cell has changed; by default as `threshold_of` finds it.

    Raises
    ------
    GigavimError
        If a store is not complete, they are of different models or places, or nothing is seen on
        both dates.
    """
    started = time.perf_counter()
    results = Result.open(before), Result.open(after)
    _check_alike(*results)
    attributes = _attributes(*results, threshold, command)
    if not force and ResultStore.is_finished(path, attributes):
        found = ResultStore.open(path).attributes["found"]
        return ChangeSummary(**{**found, "status": "skipped"})
    rows = _seen_on_both(*results)
    index = results[1].store.values("tokens/grid_index")[rows[:, 1]]
    layer = results[1].layer("foreground")
    place = layer.registration
    with ResultStore.create(path, attributes, force=force) as store:
        tokens: Any = results[1].store.group["tokens"]
        store.write_array("tokens/coords", results[1].store.values("tokens/coords")[rows[:, 1]])
        store.write_array("tokens/grid_index", index)
        store.describe("tokens", **dict(tokens.attrs))
        store.write_array("tokens/valid", np.ones(len(rows), np.uint8))
        scores = _compare(*results, rows, store)
        store.write_array("tokens/change", scores)
        limit = threshold_of(scores) if threshold is None else threshold
        is_changed = scores > limit
        values = np.full(layer.shape, np.nan, np.float32)
        values[tuple(index.T)] = scores
        layout = np.zeros(layer.shape, np.uint8)
        layout[tuple(index.T)] = 1 + is_changed
        seen = (layout > 0).astype(np.uint8)
        store.write_label_map("foreground", seen, FOREGROUND.names, FOREGROUND.colours, place)
        store.write_label_map("change", layout, CHANGE.names, CHANGE.colours, place)
        store.write_map(SCORE, values[None], ("score",), CHANGE.colours[1:], place)
        store.write_errors((), ())
        areas = cell_areas(place, layer.shape[0], results[1].size[0])
        area = None if areas.of_row is None else float(areas.of_row[index[is_changed, 0]].sum())
        summary = ChangeSummary(
            store=str(path),
            status="complete",
            before=str(before),
            after=str(after),
            cells=len(rows),
            threshold=limit,
            changed=float(is_changed.mean()),
            changed_area=area,
            area_unit=areas.unit,
            **_write_pictures(path, results[1], layout, values, place),
            seconds=time.perf_counter() - started,
        )
        store.finish(found=summary.as_dict(), seconds=summary.seconds)
    return summary


def _compare(
    before: Result, after: Result, rows: NDArray[np.int64], store: ResultStore
) -> NDArray[np.float32]:
    """Return the scores of the cells, and write the differences of their features."""
    first, second = (result.store.array("tokens/features") for result in (before, after))
    standards = standard_of(first, rows[:, 0]), standard_of(second, rows[:, 1])
    scores: list[NDArray[np.float32]] = []

    def parts() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            score, difference = differences(first, second, part, standards)
            scores.append(score)
            yield difference

    store.write_rows("tokens/features", parts(), (len(rows), first.shape[1]), np.float16)
    vectors = [result.store.values("image/vector") for result in (before, after)]
    store.write_array("image/vector", vectors[1] - vectors[0])
    return np.concatenate(scores)


def _check_alike(before: Result, after: Result) -> None:
    """Refuse results whose features or cells are not comparable."""
    paths = f"{before.store.path} and {after.store.path}"
    models = [result.about["model"] for result in (before, after)]
    if models[0]["weights_sha256"] != models[1]["weights_sha256"]:
        raise GigavimError(
            f"{paths} are by the models {models[0]['id']} and {models[1]['id']} "
            f"({models[0]['weights_sha256'][:12]}, {models[1]['weights_sha256'][:12]}), whose "
            "features are not comparable; run both with one --model"
        )
    for name, said in (("bands", "source"), ("mode", "configuration")):
        values = [result.about[said][name] for result in (before, after)]
        if values[0] != values[1]:
            raise GigavimError(
                f"{paths} were run with {name} {_words(values[0])} and {_words(values[1])}; "
                f"run both with the same --{name}"
            )
    layers = [result.layer("foreground") for result in (before, after)]
    here, there = (layer.registration for layer in layers)
    if layers[0].shape != layers[1].shape or not _same_place(here, there):
        raise GigavimError(
            f"{paths} do not lie on the same cells; run both on the same part of the same pixels, "
            "as `gigavim change` does with two images, or with --bounds"
        )


def _same_place(one: Registration, other: Registration) -> bool:
    here, there = one.cell_transform, other.cell_transform
    if here is None or there is None:
        sizes = [(each.cell_y, each.cell_x) for each in (one, other)]
        return here == there and sizes[0] == sizes[1]
    systems = [None if each.crs is None else CRS.from_wkt(each.crs) for each in (one, other)]
    slack = SAME_PLACE * max(abs(here[0]), abs(here[1]))
    return systems[0] == systems[1] and np.allclose(here, there, rtol=0, atol=slack)


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _seen_on_both(before: Result, after: Result) -> NDArray[np.int64]:
    """Return where each cell that is seen on both dates is in either store, shape (m, 2)."""
    shape = before.layer("foreground").shape
    found = []
    for result in (before, after):
        index = result.store.values("tokens/grid_index")
        rows = np.full(shape, -1, np.int64)
        rows[tuple(index.T)] = np.where(
            result.store.values("tokens/valid") > 0, np.arange(len(index)), -1
        )
        if "qc" in result.heads():
            quality = result.layer("qc")
            faults = [
                number
                for number, name in enumerate(quality.names, 1)
                if name in (CLOUD.name, SHADOW.name)
            ]
            rows[np.isin(np.asarray(quality.levels[0][...]), faults)] = -1
        found.append(rows)
    seen = (found[0] >= 0) & (found[1] >= 0)
    if not seen.any():
        raise GigavimError(
            f"{before.store.path} and {after.store.path} see no cell on both dates; "
            "choose dates with fewer clouds"
        )
    pairs = np.column_stack([rows[seen] for rows in found])
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


def _attributes(
    before: Result, after: Result, threshold: float | None, command: Sequence[str]
) -> dict[str, Any]:
    """Say what the store is of: the later image, and what it is compared with."""
    compared = {
        name: {
            "store": str(result.store.path.absolute()),
            **{key: result.about["source"][key] for key in ("uri", "size", "fingerprint")},
            "configuration": result.about["configuration"],
        }
        for name, result in (("before", before), ("after", after))
    }
    return {
        "version": __version__,
        "command": " ".join(command),
        "configuration": after.about["configuration"]
        | {"change": {**compared, "threshold": threshold}},
        **{name: after.about[name] for name in ("model", "source", "spacing", "grid")},
    }


def _write_pictures(
    path: Path,
    result: Result,
    layout: NDArray[np.uint8],
    scores: NDArray[np.float32],
    place: Registration,
) -> dict[str, str | None]:
    """Put an overlay of what changed, and GeoTIFFs, beside the store."""
    stem = path.name.removesuffix(SUFFIX)
    found: dict[str, str | None] = dict.fromkeys(("overlay", "geotiff", "score_geotiff"))
    uri = result.about["source"]["uri"]
    if Path(uri).exists():
        source = open_source(uri, **source_options(result.about["configuration"]))
        pixels, ratio_y, ratio_x = thumbnail(source, PICTURE_SIDE)
        overlay = path.with_name(f"{stem}.change.png")
        write_overlay(
            overlay,
            to_rgb(pixels, source.bands),
            (ratio_y, ratio_x),
            layout,
            place,
            CHANGE.names,
            CHANGE.colours,
            title=f"{Path(uri).name}: change by {result.model}",
        )
        found["overlay"] = str(overlay)
    else:
        logger.warning("%s is not there any more: there is no picture of the change", uri)
    if place.cell_transform is not None:
        geotiff, score = path.with_name(f"{stem}.change.tif"), path.with_name(f"{stem}.{SCORE}.tif")
        write_class_geotiff(geotiff, layout, place, CHANGE.names, CHANGE.colours)
        write_value_geotiff(score, scores, place, SCORE)
        found |= {"geotiff": str(geotiff), "score_geotiff": str(score)}
    return found

"""The second pass of a run whose model maps pixels: window by window to maps and nuclei.

Features are in the store; pixels are read again. A window is decoded with a rim around it, of what
the decoder sees and of what a nucleus that begins in it may reach into, so that neither maps nor
nuclei depend on the windows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.foreground import thumbnail
from gigavim.geometry import Block, Window
from gigavim.georeference import Registration
from gigavim.nuclei import Nuclei, instances, measure
from gigavim.patches import PatchReader
from gigavim.pipelines.maps import PICTURE_SIDE
from gigavim.pipelines.plan import Plan
from gigavim.pipelines.report import Progress, Stages
from gigavim.pipelines.stream import reader_pool, stream
from gigavim.qupath import qupath_origin
from gigavim.store import ResultStore
from gigavim.store.windows import SIDE, WindowedMap
from gigavim.views.objects import write_centroids, write_geojson
from gigavim.views.overlay import write_overlay
from gigavim.views.rgb import to_rgb

NUCLEI = "nuclei"
CLASS, COLOUR = "nucleus", (213, 94, 0)
MARGIN = 64
"""Pixels around a window in which its nuclei are seen whole: 32 µm."""
DECODED = 72
"""Patches to a side that are decoded at once."""


def map_nuclei(
    plan: Plan,
    store: ResultStore,
    store_path: Path,
    readers: int,
    stages: Stages,
    progress: Progress,
) -> dict[str, Any]:
    """Find the nuclei of an image whose features are in the store, or go on finding them.

    Returns
    -------
    found
        ``nuclei``, ``nuclei_per_mm2``, and the paths ``geojson``, ``table`` and ``overlay``.

    Raises
    ------
    GigavimError
        If the image cannot be read any more, or the store not be written.
    """
    found = NucleiPass(plan, store)
    with reader_pool(readers) as client:
        found.run(client, stages, progress, ahead=readers)
    with stages.measure("write"):
        count = found.write()
        files = found.write_files(store_path)
    return {"nuclei": count, "nuclei_per_mm2": count / found.tissue_mm2(), **files}


@dataclass(frozen=True, slots=True)
class MapWindow:
    """A part of the maps, and what is read for it."""

    number: int
    block: Block
    """Its patches."""
    seen: Block
    """With the rim; may reach beyond the grid."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """What was read for a window."""

    window: MapWindow
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Reader:
    """Reads the pixels of windows; a task on Dask.

    What cannot be read was found and recorded when the patches were.
    """

    reader: PatchReader

    def __call__(self, window: MapWindow) -> Pixels:
        """Read one."""
        seen = window.seen
        place = self.reader.grid.window(seen.row, seen.column, seen.rows, seen.columns)
        return Pixels(window, *self.reader.pixels(place))


@dataclass(frozen=True)
class NucleiPass:
    """The nuclei of an image, from the features in its store."""

    plan: Plan
    store: ResultStore

    @cached_property
    def windows(self) -> tuple[MapWindow, ...]:
        """Windows with any foreground."""
        grid, sequence = self.plan.setup.grid, self.plan.sequence
        foreground = sequence.scatter(np.ones(len(sequence), np.bool_), False)
        side, rim = SIDE // grid.patch, self._halo + self._margin
        return tuple(
            MapWindow(number, block, _grown(block, rim))
            for number, block in enumerate(grid.blocks(side, side))
            if foreground[block.slices].any()
        )

    @cached_property
    def maps(self) -> WindowedMap:
        """Where windows are committed."""
        plane = self.plan.setup.plane
        return WindowedMap(self.store, NUCLEI, (CLASS,), (plane.height, plane.width))

    @cached_property
    def registration(self) -> Registration:
        """Of the maps, whose cells are the pixels that the model sees."""
        setup = self.plan.setup
        return dataclasses.replace(
            Registration.of(setup.grid, setup.source),
            cell_y=setup.plane.ratio_y, cell_x=setup.plane.ratio_x, corner_y=0.0, corner_x=0.0,
        )  # fmt: skip

    def run(self, client: Any, stages: Stages, progress: Progress, *, ahead: int) -> None:
        """Decode and commit all windows that are not yet.

        Parameters
        ----------
        client
            A ``distributed.Client`` that reads.
        ahead
            Windows read and not yet decoded.
        """
        todo = [window for window in self.windows if not self.maps.done(window.number)]
        plane = self.plan.setup.plane
        size = plane.height, plane.width
        self.store.announce(NUCLEI, (CLASS,), (COLOUR,), size, self.registration)
        progress.start("nuclei", sum(w.block.rows * w.block.columns for w in self.windows))
        valid = self.store.values("tokens/valid") > 0
        for window in self.windows:
            if self.maps.done(window.number):
                progress.advance(window.block.rows * window.block.columns)
        for pixels in stream(client, Reader(self.plan.reader), todo, ahead=ahead):
            with stages.measure("nuclei"):
                self._commit(pixels, valid)
            progress.advance(pixels.window.block.rows * pixels.window.block.columns)

    def parts(self) -> Iterator[Nuclei]:
        """Yield the nuclei of each window, in level-0 pixels."""
        plane = self.plan.setup.plane
        ratio = np.array([plane.ratio_x, plane.ratio_y])
        for window in self.windows:
            found = Nuclei(**self.maps.read(window.number))
            yield dataclasses.replace(
                found,
                centroids=found.centroids * ratio,
                areas=found.areas * plane.ratio_x * plane.ratio_y,
                vertices=found.vertices * ratio,
            )

    def write(self) -> int:
        """Write what was found to the store, once all windows are done; return how many nuclei."""
        self.maps.finish((CLASS,), (COLOUR,), self.registration)
        own = self.plan.setup.own
        count = sum(len(part.areas) for part in self.parts())
        corners = sum(len(part.vertices) for part in self.parts())
        um2 = own.y * own.x
        for name, values, shape in (
            ("centroids", (part.centroids for part in self.parts()), (count, 2)),
            ("area_um2", (part.areas * um2 for part in self.parts()), (count,)),
            ("probability", (part.probabilities for part in self.parts()), (count,)),
            ("vertices", (part.vertices for part in self.parts()), (corners, 2)),
        ):
            self.store.write_rows(f"objects/{NUCLEI}/{name}", values, shape, np.float32)
        self.store.write_rows(f"objects/{NUCLEI}/ends", self._ends(), (count,), np.int64)
        self.store.describe(
            f"objects/{NUCLEI}",
            coordinates="x, y in level-0 pixels from the top-left corner of the image",
            vertices="outline of nucleus i: rows ends[i - 1] (0 for the first) to ends[i]",
        )
        return count

    def write_files(self, store_path: Path) -> dict[str, str]:
        """Put outlines, centroids and a picture beside the store; return their paths."""
        stem = store_path.name.removesuffix(".zarr").removesuffix(".gigavim")
        geojson = store_path.with_name(f"{stem}.{NUCLEI}.geojson")
        table = store_path.with_name(f"{stem}.{NUCLEI}.csv")
        overlay = store_path.with_name(f"{stem}.{NUCLEI}.png")
        own = self.plan.setup.own
        origin = qupath_origin(self.plan.setup.source)
        write_geojson(geojson, self.parts(), CLASS, COLOUR, origin)
        write_centroids(table, self.parts(), own.y * own.x)
        self._write_overlay(overlay)
        return {"geojson": str(geojson), "table": str(table), "overlay": str(overlay)}

    def tissue_mm2(self) -> float:
        """Return the area of what was looked at."""
        setup = self.plan.setup
        cell = setup.grid.cell_y * setup.own.y * setup.grid.cell_x * setup.own.x
        return int((self.store.values("tokens/valid") > 0).sum()) * cell / 1e6

    def _commit(self, read: Pixels, valid: NDArray[np.bool_]) -> None:
        """Decode a window, find its nuclei, and write both."""
        window, patch = read.window, self.plan.setup.grid.patch
        known, features = self._features(window.seen, valid)
        nucleus, depth = self._decode(read.pixels, features, known)
        rim = self._halo * patch
        there = known.repeat(patch, 0).repeat(patch, 1) & read.valid
        there = there[rim:-rim, rim:-rim]
        nucleus[~there] = 0.0
        config = self.plan.setup.model.spec.nuclei
        assert config is not None  # the plan has seen to it
        labels = instances(nucleus, depth, config)
        margin = self._margin * patch
        own = np.s_[margin : labels.shape[0] - margin, margin : labels.shape[1] - margin]
        found = measure(labels, nucleus, depth, config, own)
        place = Window(window.block.row * patch, window.block.column * patch, *labels[own].shape)
        offset = np.array([place.x - margin, place.y - margin])
        moved = dataclasses.replace(
            found, centroids=found.centroids + offset, vertices=found.vertices + offset
        )
        probs = np.where(there, nucleus, np.nan)[own][None]
        arrays = {field.name: getattr(moved, field.name) for field in dataclasses.fields(moved)}
        self.maps.commit(window.number, place, (labels[own] > 0).astype(np.uint8), probs, arrays)

    def _features(
        self, seen: Block, valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which patches have features, and these, 0 for the others, (rows, columns, D)."""
        cells = np.indices((seen.rows, seen.columns)).reshape(2, -1).T
        corner = np.array([seen.row, seen.column])
        positions = self.plan.sequence.positions_of(cells + corner).astype(np.int64)
        known = positions >= 0
        known[known] = valid[positions[known]]
        width = self.plan.setup.model.encoder.config.width
        features = np.zeros((len(cells), width), np.float32)
        # In rising order, so that each part of the file is read once.
        rows = np.flatnonzero(known)[np.argsort(positions[known])]
        if len(rows):
            features[rows] = self.store.array("tokens/features").oindex[positions[rows]]
        shape = seen.rows, seen.columns
        return known.reshape(shape), features.reshape(*shape, width)

    @torch.inference_mode()
    def _decode(
        self,
        pixels: NDArray[np.float32],
        features: NDArray[np.float32],
        known: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Return probability and depth of all but the halo, shape (2, height, width).

        What the decoder makes of a part fits the cache, or nearly. Parts without a patch that is
        known are 0.
        """
        decoder = self.plan.setup.model.decoder
        assert decoder is not None  # the plan has seen to it
        device = next(decoder.parameters()).device
        patch, halo = decoder.patch, decoder.halo
        rim = halo * patch
        rows, columns = (side - 2 * halo for side in features.shape[:2])
        probs = np.zeros((2, rows * patch, columns * patch), np.float32)
        for row in range(0, rows, DECODED):
            for column in range(0, columns, DECODED):
                seen = np.s_[row : row + DECODED + 2 * halo, column : column + DECODED + 2 * halo]
                if not known[seen][halo:-halo, halo:-halo].any():
                    continue
                under = tuple(slice(part.start * patch, part.stop * patch) for part in seen)
                inputs = (
                    torch.from_numpy(values).to(device).permute(2, 0, 1)[None]
                    for values in (pixels[under], features[seen])
                )
                logits = decoder(*inputs)[0, :, rim:-rim, rim:-rim].float()
                y, x = row * patch, column * patch
                there = np.s_[:, y : y + logits.shape[1], x : x + logits.shape[2]]
                probs[there] = logits.sigmoid().cpu().numpy()
        return probs

    def _ends(self) -> Iterator[NDArray[np.int64]]:
        """Yield where each nucleus's vertices end among all."""
        before = 0
        for part in self.parts():
            yield part.ends + before
            before += len(part.vertices)

    def _write_overlay(self, path: Path) -> None:
        """Show the class map at the resolution of a picture."""
        setup = self.plan.setup
        pixels, ratio_y, ratio_x = thumbnail(setup.source, PICTURE_SIDE)
        group = self.store.group[f"labels/{NUCLEI}"]
        datasets: Any = group.attrs["ome"]
        paths = [dataset["path"] for dataset in datasets["multiscales"][0]["datasets"]]
        finer = max(1.0, min(ratio_y / setup.plane.ratio_y, ratio_x / setup.plane.ratio_x))
        level = min(len(paths) - 1, int(math.log2(finer)))
        write_overlay(
            path,
            to_rgb(pixels, setup.source.bands),
            (ratio_y, ratio_x),
            self.store.values(f"labels/{NUCLEI}/{paths[level]}"),
            self.registration.reduced(2**level),
            (CLASS,),
            (COLOUR,),
            title=f"{Path(setup.source.path).name}: {NUCLEI} by {setup.model.path.stem}",
        )

    @property
    def _halo(self) -> int:
        """Patches that the decoder sees beyond a window."""
        decoder = self.plan.setup.model.decoder
        assert decoder is not None  # the plan has seen to it
        return decoder.halo

    @property
    def _margin(self) -> int:
        """Patches that a nucleus of a window may reach beyond it."""
        return math.ceil(MARGIN / self.plan.setup.grid.patch)


def _grown(block: Block, by: int) -> Block:
    """Return a block with so many patches more on each side."""
    return Block(block.row - by, block.column - by, block.rows + 2 * by, block.columns + 2 * by)

"""A linear classifier fitted on stored features under a few annotations, in seconds.

What it classifies is what `gigavim run` does: each patch of an image that was read whole, each tile
of one that was read in tiles. So it can be put in place of the classifier of the model that made
the features, and a run with that model gives the map that the probe gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.annotations import NONE, Annotation, annotated_cells
from gigavim.errors import GigavimError, StoreError
from gigavim.geometry import Grid
from gigavim.head import ROWS_AT_ONCE, ClassTable, Rows, palette
from gigavim.store import ResultStore

RIDGE = 1.0
"""Half of it times the squared weights, on standardised features, is added to the summed loss."""
MOST = 2_000
"""Patches or tiles of a class that a probe is fitted on, evenly among those under its shapes."""
FOLDS = 5
"""Parts that shapes are divided in, at most, to see how well a probe knows the others."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a run made features of, and where it lies."""

    features: Rows
    """Of patches, or of tiles, shape (n, D)."""
    valid: NDArray[np.bool_]
    """Which of them could be read, shape (n,)."""
    row_of: NDArray[np.intp]
    """The row of `features` that each token of the store belongs to, shape (N,)."""
    index: NDArray[np.int32]
    """Row and column of each token's cell, shape (N, 2)."""
    grid: Grid

    @classmethod
    def of(cls, store: ResultStore) -> Encoded:
        """Find the features in a store.

        Raises
        ------
        StoreError
            If there are none yet.
        """
        is_tiled = store.attributes["configuration"]["mode"] == "tiles"
        kind, name = ("tiles", "vectors") if is_tiled else ("tokens", "features")
        try:
            features, valid = store.array(f"{kind}/{name}"), store.values(f"{kind}/valid") > 0
            corners, index = (store.values(f"{each}/grid_index") for each in (kind, "tokens"))
        except KeyError as error:
            raise StoreError(
                f"{store.path} has no features yet; wait until its run is done, or run again"
            ) from error
        row_of = _tile_of(corners, index) if is_tiled else np.arange(len(index))
        return cls(features, valid, row_of, index, _grid(store))


@dataclass(frozen=True, eq=False)
class Probe:
    """Weights of a linear classifier of features, and what they were learned from."""

    classes: ClassTable
    weight: NDArray[np.float32]
    """Of features as they are stored, shape (K, D)."""
    bias: NDArray[np.float32]
    """Shape (K,)."""
    counts: tuple[int, ...]
    """Patches or tiles under the shapes of each class."""
    shapes: tuple[int, ...]
    """Shapes of each class that lie on any."""
    accuracy: float | None = None
    """Mean over the classes of the share that is named right in shapes that were held out, whole;
    None where a class has one shape."""
    folds: int = 0
    """Parts that the shapes were divided in for that."""

    def predict(self, features: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield the probabilities of the classes for features that are read in parts.

        Parameters
        ----------
        features
            Shape (n, D).

        Yields
        ------
        probs
            Of some at a time, in their order, shape (m, K).
        """
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        for start in range(0, features.shape[0], ROWS_AT_ONCE):
            part = np.asarray(features[start : start + ROWS_AT_ONCE], np.float32)
            logits = torch.nn.functional.linear(torch.from_numpy(part), weight, bias)
            yield logits.softmax(-1).numpy()

    def map(self, encoded: Encoded) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Classify all that a run encoded.

        Returns
        -------
        labels
            1 more than the index of the likeliest class of each cell, 0 where nothing was read,
            shape (rows, columns).
        probs
            0 where nothing was read, shape (K, rows, columns).
        """
        by_row = np.concatenate(list(self.predict(encoded.features)))
        found = np.where(encoded.valid, by_row.argmax(1) + 1, 0).astype(np.uint8)
        by_row[~encoded.valid] = 0
        labels = np.zeros(encoded.grid.shape, np.uint8)
        probs = np.zeros((len(self.bias), *encoded.grid.shape), np.float16)
        cells = tuple(encoded.index.T)
        labels[cells] = found[encoded.row_of]
        for number, layout in enumerate(probs):
            layout[cells] = by_row[encoded.row_of, number]
        return labels, probs


def fit_probe(encoded: Encoded, annotations: Sequence[Annotation]) -> Probe:
    """Fit a probe on the features under annotations: multinomial logistic regression.

    Features are standardised, and classes weigh the same however much of them was drawn. The same
    annotations give the same probe.

    Raises
    ------
    GigavimError
        If fewer than two classes lie on anything that was read.
    """
    drawn = _shape_of_rows(encoded, annotations)
    names = tuple(dict.fromkeys(each.name for each in annotations))
    class_of = np.array([names.index(each.name) for each in annotations], np.intp)
    rows = np.flatnonzero(drawn != NONE)
    counts = np.bincount(class_of[drawn[rows]], minlength=len(names))
    there = np.flatnonzero(counts)
    if len(there) < 2:
        only = f"{names[there[0]]!r} alone lies" if len(there) else "no class lies"
        raise GigavimError(
            f"{only} on patches that were read, of {len(annotations)} shapes; "
            "a probe needs two classes: draw the other one as well, on tissue or data"
        )
    rows = np.sort(
        np.concatenate([_thinned(rows[class_of[drawn[rows]] == each]) for each in there])
    )
    features = _take(encoded.features, rows)
    shapes = drawn[rows]
    labels = np.searchsorted(there, class_of[shapes])
    weight, bias = _fit(features, labels)
    accuracy, folds = _cross_validated(features, labels, shapes)
    colours = _colours(annotations, names)
    return Probe(
        ClassTable(tuple(names[each] for each in there), tuple(colours[each] for each in there)),
        weight.astype(np.float32),
        bias.astype(np.float32),
        tuple(counts[there].tolist()),
        tuple(len(np.unique(shapes[labels == each])) for each in range(len(there))),
        accuracy,
        folds,
    )


def _grid(store: ResultStore) -> Grid:
    """Return the grid of a store's patches."""
    grid = store.attributes["grid"]
    ratio_y, ratio_x = (cell / grid["stride"] for cell in grid["cell_level0"])
    return Grid(grid["rows"], grid["columns"], grid["patch"], grid["stride"], ratio_y, ratio_x)


def _tile_of(corners: NDArray[np.integer], index: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return which tile each token is in, given the first cell of each tile.

    Tiles start at multiples of their side, so at multiples of the largest that divides all corners;
    where that is more than the side, there is nothing between them.
    """
    side = int(np.gcd.reduce(corners, axis=None)) or int(index.max()) + 1
    shape = np.concatenate([corners, index]).max(0) // side + 1
    tile_of = np.full(shape, NONE, np.intp)
    tile_of[tuple((corners // side).T)] = np.arange(len(corners))
    return np.asarray(tile_of[tuple((index // side).T)])


def _shape_of_rows(encoded: Encoded, annotations: Sequence[Annotation]) -> NDArray[np.int32]:
    """Return which annotation each row of the features is under, `NONE` for none, shape (n,).

    A tile is under the one that most of its annotated patches are under.
    """
    drawn = annotated_cells(annotations, encoded.grid)[tuple(encoded.index.T)]
    under = np.flatnonzero(drawn != NONE)
    votes, counts = np.unique(
        np.column_stack([encoded.row_of[under], drawn[under]]), axis=0, return_counts=True
    )
    shape_of = np.full(len(encoded.valid), NONE, np.int32)
    # The last of several assignments stays.
    rows, shapes = votes[np.argsort(counts, kind="stable")].T
    shape_of[rows] = shapes
    shape_of[~encoded.valid] = NONE
    return shape_of


def _thinned(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return `MOST` rows at most, evenly among these."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(np.intp)]


def _take(features: Rows, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Read some rows, in rising order; memory is that of the rows."""
    parts = []
    for start in range(0, features.shape[0], ROWS_AT_ONCE):
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + ROWS_AT_ONCE)]
        if len(here):
            part = features[int(here[0]) : int(here[-1]) + 1]
            parts.append(np.asarray(part, np.float32)[here - here[0]])
    return np.concatenate(parts)


def _fit(
    features: NDArray[np.float32], labels: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (K, D) and biases (K,) of the features as they are."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(0, np.float64), features.std(0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0  # a constant feature tells nothing; rounding must not blow it up
    model = LogisticRegression(C=1 / RIDGE, class_weight="balanced", max_iter=1000)
    model.fit((features - mean) / spread, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # Of two classes there is one logit; half of it for one is half of it against the other.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / spread
    return weight, bias - weight @ mean


def _cross_validated(
    features: NDArray[np.float32], labels: NDArray[np.intp], shapes: NDArray[np.int32]
) -> tuple[float | None, int]:
    """Hold whole shapes out in turn, and see how much of each class is named right.

    Neighbours under one shape are so alike that those left in would tell of those held out.
    """
    part_of = np.empty(len(labels), np.intp)
    folds = FOLDS
    for each in np.unique(labels):
        own, number = np.unique(shapes[labels == each], return_inverse=True)
        part_of[labels == each] = number
        folds = min(folds, len(own))
    if folds < 2:
        return None, 0
    part_of %= folds
    found = np.empty_like(labels)
    for part in range(folds):
        held = part_of == part
        weight, bias = _fit(features[~held], labels[~held])
        found[held] = (features[held] @ weight.T + bias).argmax(1)
    right = found == labels
    return float(np.mean([right[labels == each].mean() for each in np.unique(labels)])), folds


def _colours(annotations: Sequence[Annotation], names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the colour of each class, from the palette where no annotation has one."""
    given = {each.name: each.colour for each in annotations if each.colour is not None}
    fallback = [(int(red), int(green), int(blue)) for red, green, blue in palette(len(names))]
    return [given.get(name, fallback[number]) for number, name in enumerate(names)]
